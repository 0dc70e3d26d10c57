"""Whether a domain and its guest run: started with paused CPUs for a pull, ended again, resumed, thawed.

Owns: how what a run of ours did to the domain is told apart from what its owner did (by a mark on the domain and by the
record of a start), and that only the former is undone. Must not know: what is done while it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Optional, Protocol

from ..core import errors
from ..core.process import Process
from ..definitions import domain_xml
from . import domain_freeze, domain_mark, domain_start
from .bindings import libvirt
from .clean_up import attempt, leave
from .handle import Handle
from .jobs import Jobs
from .libvirt_error import is_unanswered

NEVER_RAN = 0.05  # seconds of its CPUs, whose threads have to start; less than any firmware takes


class StartRecord(Protocol):
    """Where a start is recorded until the domain is tagged: holder.Hold."""

    @property
    def starting(self) -> bool: ...

    def note_start(self) -> None: ...

    def clear_start(self) -> None: ...


class Power:
    """The power state of one domain."""

    def __init__(self, vm: Handle, jobs: Jobs):
        self._vm, self._jobs = vm, jobs

    @contextlib.contextmanager
    def awake(self, start: bool, hold: StartRecord) -> Iterator[bool]:
        """Keep the domain running in QEMU inside the block: start it with paused CPUs if it is off, and end it
        gracefully after.

        hold: where the start is recorded. Yields True if it was started in this way, by us or by a killed run of ours.
        Raises DomainNotRunning if it is off and `start` is False. If somebody has resumed the domain meanwhile, it is
        theirs, and remains running.
        """
        owner = self._started_by() if self._vm.active else None
        unmarked = self._is_unmarked(hold)
        if self._vm.active and not (owner and self._is_paused()) and not unmarked:
            yield False
            return
        if owner and not owner.is_dead:
            raise errors.Busy(
                f"domain '{self._vm.name}' was started paused by a pull (process {owner.pid} on "
                f"{owner.host}): try again when that has ended; if it never ends, run virsh destroy "
                "--graceful"
            )
        if not (owner or unmarked or start):
            raise errors.DomainNotRunning(f"domain '{self._vm.name}' is not running: start it first, or use "
                                          "--offline=auto")  # fmt: skip
        ours = self._started_paused(hold, is_up=bool(owner or unmarked))
        try:
            yield True
        except BaseException as error:
            left: list[str] = []
            attempt(lambda: self._end_paused(ours), "the domain, which was started paused,", left)
            leave(error, left)
            raise
        self._end_paused(ours)

    def left_paused(self, hold: Optional[StartRecord]) -> bool:
        """Return whether a dead run started it and left it paused: `awake` with that hold ends it. hold: None if there
        is no record of a start."""
        if self._is_unmarked(hold):
            return True
        owner = self._started_by() if self._vm.active and self._is_paused() else None
        return owner is not None and owner.is_dead

    def _is_unmarked(self, hold: Optional[StartRecord]) -> bool:
        """Return whether it was started for a run that was killed before it tagged it, and has not run since."""
        if hold is None or not hold.starting or not self._vm.active or self._started_by() or not self._is_paused():
            return False
        return self._vm.vcpu_seconds() < NEVER_RAN

    def _started_paused(self, hold: StartRecord, is_up: bool) -> Process:
        """Start the domain unless it is up, and tag it; return the tag's owner."""
        if not is_up:
            self._require_startable()
            self._vm.link.check()  # a call that is answered at once calls it too late
            self._start_paused(hold)
        with self._vm.live("mark it as started for a pull"):
            owner = domain_mark.put(self._vm.dom, domain_mark.STARTED_PAUSED)
        hold.clear_start()
        return owner

    def _start_paused(self, hold: StartRecord) -> None:
        """Start the domain. The record of the start remains if the start happened or may still happen."""
        hold.note_start()
        try:
            with self._vm.seam("start it paused"):
                self._call_start()
        except errors.NbdpullError as error:
            if is_unanswered(error):
                subject = f"domain '{self._vm.name}' may still start, paused: the next pull, or nbdpull cleanup,"
                leave(error, [f"{subject} stops it"])
            else:
                hold.clear_start()
            raise

    def _call_start(self) -> None:
        try:
            self._vm.dom.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        except libvirt.libvirtError as error:
            disks = [] if self._vm.is_remote else domain_xml.parse_disks(self._vm.dom.XMLDesc(0))
            images = [disk.source for disk in disks if disk.type in ("file", "block") and not disk.empty]
            raise domain_start.failed(self._vm.name, error, images, self._vm.link.timeout) from error

    def _require_startable(self) -> None:
        if self._vm.other_session:
            raise errors.DomainNotRunning(f"domain '{self._vm.name}' seems to be off: {self._vm.other_session}")
        if self._vm.has_saved_state:
            raise errors.Unsupported(f"domain '{self._vm.name}' has a saved state, which a start would consume: start "
                                     "it yourself, or remove the state with virsh managedsave-remove")  # fmt: skip

    def _is_paused(self) -> bool:
        return self._vm.guest_state().paused

    def _started_by(self) -> Optional[Process]:
        """Return the process that started it for a pull, None if none did: then its owner may have paused it."""
        with self._vm.seam("read its mark"):
            return domain_mark.owner(self._vm.dom, domain_mark.STARTED_PAUSED)

    def _end_paused(self, owner: Process) -> None:
        """End the domain if it is still as we started it. A graceful end lets QEMU store its bitmaps."""
        with self._vm.ignoring_check(), contextlib.suppress(errors.DomainNotRunning, errors.DomainStopped):
            if self._vm.active and self._is_paused() and self._started_by() == owner and self._jobs.operation() is None:
                with self._vm.live("end it again"):
                    self._vm.dom.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
                self._vm.was_active = False

    def resume_guest(self) -> None:
        """Resume a guest whose CPUs QEMU stopped. HypervisorError, DomainNotRunning."""
        with self._vm.ignoring_check(), self._vm.live("resume the guest"):
            self._vm.dom.resume()

    @property
    def left_frozen(self) -> bool:
        """Whether an interrupted run started to freeze the guest, and the guard that should thaw it is dead, too."""
        with self._vm.seam("read its mark"):
            owner = domain_mark.owner(self._vm.dom, domain_mark.FREEZING) if self._vm.active else None
        return owner is not None and owner.is_dead

    def thaw_guest(self) -> None:
        """Thaw a guest that is left_frozen."""
        with self._vm.live("thaw the guest"):
            domain_freeze.thaw(self._vm.dom)
