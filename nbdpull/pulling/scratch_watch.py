"""Scratch space while a job runs: how much the guest's writes have made QEMU put there, and that it never runs out.

Owns: the watching thread, when a job must end for the guest's sake, and which paused guest is ours to resume: if
scratch is full, QEMU lets the guest's write fail, and the guest is paused. Must not know: libvirt, NBD, the store.

If the scratch files are on this machine, they are measured directly: that needs no call of libvirt, whose older daemons
were seen to crash when asked for statistics during a backup. On another host the job's statistics are read, less often.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Optional, Protocol

from ..core import errors, file_system, sizes

LOOK_INTERVAL = 0.2  # seconds
REMOTE_INTERVAL = 5.0
RESERVE = 64 << 20  # bytes; on a small file system, a sixteenth of its size
STARVED = 1 << 20  # bytes: if less is free, QEMU has no room for a cluster and its tables
GROWTH_SAMPLES = 64
LOOKS_AHEAD = 2  # the job ends if at the present rate the space will be used up within this many intervals


class State(Protocol):
    """The state of a guest."""

    @property
    def running(self) -> bool: ...
    @property
    def io_error(self) -> bool: ...


class Power(Protocol):
    """The part of a Domain's power that is needed here."""

    def resume_guest(self) -> None: ...


class Guest(Protocol):
    """The part of a Domain that is needed here."""

    @property
    def is_remote(self) -> bool: ...
    @property
    def power(self) -> Power: ...
    def guest_state(self) -> State: ...
    def ignoring_check(self) -> AbstractContextManager[None]: ...


class Job(Protocol):
    """The part of a job that is needed here."""

    @property
    def scratch_files(self) -> list[str]: ...
    def stats(self) -> dict[str, int]: ...


def reserve(folder: str) -> int:
    """Return how many bytes must remain free."""
    return min(RESERVE, (file_system.size_bytes(folder) or 0) // 16)


def require_room(folder: str, disk_bytes: int, limit: Optional[int] = None) -> None:
    """Raise ScratchFull if a job would have to end as soon as it began, or before it could use its limit."""
    free = file_system.free_bytes(folder)
    wanted = min(disk_bytes, limit or 0) + min(reserve(folder), disk_bytes)
    if free is not None and free < wanted:
        raise errors.ScratchFull(
            f"scratch directory {folder} has {sizes.shown(free)} free, {sizes.shown(wanted)} are needed for what the "
            "guest overwrites during the pull: free some space, or choose another with --scratch-dir"
        )


def starves(vm: Guest, folder: str) -> bool:
    """Return whether the guest is paused because a job had no room in this directory for blocks that the guest
    overwrites. If there is room, the guest is paused because of the file system of its own image."""
    free = None if vm.is_remote else file_system.free_bytes(folder)
    return free is not None and free < STARVED and vm.guest_state().io_error


class Growth:
    """Samples [seconds since the first, bytes] of something that may take days.

    There are at most GROWTH_SAMPLES, spread evenly: whenever this number is reached, every second sample is dropped,
    and from then on only half as many are taken.
    """

    def __init__(self) -> None:
        self.samples: list[list[float]] = []
        self._every, self._looks = 1, 0
        self._began: Optional[float] = None

    def note(self, seconds: float, used: int) -> None:
        self._began = seconds if self._began is None else self._began
        if self._looks % self._every == 0:
            self.samples.append([round(seconds - self._began, 1), used])
        self._looks += 1
        if len(self.samples) == GROWTH_SAMPLES:
            del self.samples[1::2]
            self._every *= 2


class ScratchWatch:
    """The watch on the scratch of one job. `check` raises the error that was detected, if any; peak: highest number of
    bytes in use; growth: samples of the bytes in use."""

    def __init__(self, vm: Guest, folder: str, limit: Optional[int]) -> None:
        self._vm, self._folder, self._limit = vm, folder, limit
        self._ran = vm.guest_state().running
        self._local = not vm.is_remote
        self._stop = threading.Event()
        self._error: Optional[errors.NbdpullError] = None
        self._starved = False
        self._grown = 0  # bytes since the last look
        self._free: Optional[int] = None  # bytes, if the directory is on this host
        self.peak = 0
        self.growth = Growth()

    def check(self) -> None:
        if self._error:
            raise self._error

    @contextmanager
    def guarding_guest(self) -> Iterator[None]:
        """Enter this before the job starts and leave it after its end: the guest is resumed then, if it ran before and
        only the lack of scratch for this job paused it."""
        try:
            yield
        finally:
            if self._ran and self._starved:
                self._resume()

    def _resume(self) -> None:
        with suppress(errors.NbdpullError), self._vm.ignoring_check():  # the guest is gone, or somebody resumed it
            if self._vm.guest_state().io_error:
                self._vm.power.resume_guest()

    @contextmanager
    def watching(self, job: Job) -> Iterator[None]:
        """Watch the scratch in a thread inside the block. Leave it before the job ends, as that frees the space."""
        if not job.scratch_files:
            yield
            return
        thread = threading.Thread(target=self._run, args=[job], daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(2 * LOOK_INTERVAL)  # no longer, as it may hang in a call to libvirt
            if self._error or not thread.is_alive():
                self._look(job)

    def _run(self, job: Job) -> None:
        while not self._stop.wait(LOOK_INTERVAL if self._local else REMOTE_INTERVAL):
            self._look(job)

    def _look(self, job: Job) -> None:
        try:
            self._measure(job)
            self._starved = self._starved or starves(self._vm, self._folder)
            self._error = self._error or self._verdict()
        except errors.NbdpullError:
            pass  # the reader of the job finds out itself whether the job still exists

    def _measure(self, job: Job) -> None:
        used = self._used(job)
        self._grown, self.peak = max(0, used - self.peak), max(used, self.peak)
        self._free = file_system.free_bytes(self._folder) if self._local else None
        self.growth.note(time.monotonic(), used)

    def _used(self, job: Job) -> int:
        if self._local:
            with suppress(OSError):
                return file_system.used_bytes(job.scratch_files)
        return job.stats()["scratch_bytes"]

    def _verdict(self) -> Optional[errors.NbdpullError]:
        if self._limit and self.peak > self._limit:
            return errors.LimitReached(
                f"the guest has overwritten so much that scratch takes {sizes.shown(self.peak)}, more than "
                f"--scratch-limit ({sizes.shown(self._limit)}): the job was ended; pull when the guest writes less"
            )
        if self._free is not None and self._free - LOOKS_AHEAD * self._grown < reserve(self._folder) / 2:
            return errors.ScratchFull(
                f"scratch directory {self._folder} is almost full ({sizes.shown(self._free)} free, "
                f"{sizes.shown(self.peak)} in use): the job was ended "
                "to protect the guest; choose a directory with more room with --scratch-dir"
            )
        return None
