"""The connection to libvirt: every call has a deadline, and one that breaks with its daemon is made anew.

Owns: deadlines, the second try on a new connection, and which calls must have none. Objects of libvirt come out wrapped
so that the same holds for theirs. Must not know: what a call is for, or what its error means (domain.py does).

A thread a call is what it takes: libvirt has no time limits of its own, and a call to a daemon that is stopped, or that
waits for a QEMU that is, never returns. There are some dozens of calls in a run, and two a second while it reads, each
at 0.1 ms.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import Any, Callable, Optional

import libvirt

from . import errors

DAEMON_WAIT = 30  # seconds that the daemon itself waits for another call on the same domain, before it refuses ours
AFTER_SILENCE = 2  # seconds for each further call once one was not answered: the way out must not take minutes
REOPEN_TIME = 60  # seconds in which a restarted daemon has to be back
# lost in the midst they may have been done, and by then it is not the same call
NOT_REPEATED = ("backupBegin", "fsFreeze", "createWithFlags")


class Link:
    """One connection. stall_timeout: seconds that a call may take, beside what the daemon waits by itself."""

    def __init__(self, uri: Optional[str], stall_timeout: float):
        self._uri = uri
        self._timeout = DAEMON_WAIT + stall_timeout
        self._silent = False
        self._renewing = threading.Lock()
        self.generation = 0
        self.raw = self.bounded(libvirt.open, uri)

    def connection(self) -> Any:
        """The virConnect, wrapped."""
        return _Wrapped(self, self.raw, lambda: self.raw)

    def bounded(self, call: Callable, *args: Any) -> Any:
        """What the call returns or raises; NoAnswer if it does neither in time. The call itself goes on then."""
        outcome: list[tuple[Any, Optional[BaseException]]] = []
        ended = threading.Event()

        def run() -> None:
            try:
                outcome.append((call(*args), None))
            except BaseException as error:
                outcome.append((None, error))
            ended.set()

        timeout = AFTER_SILENCE if self._silent else self._timeout
        threading.Thread(target=run, daemon=True).start()
        try:
            ended.wait(timeout)
        except BaseException:
            ended.wait(timeout)  # who goes on to clean up must find the call's work done
            raise
        self._silent = not outcome
        if not outcome:
            raise errors.NoAnswer(f"libvirt did not answer within {timeout:g} s; QEMU or the daemon hangs")
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def lost(self) -> bool:
        try:
            return not self.raw.isAlive()
        except libvirt.libvirtError:
            return True

    def renew(self, generation: int) -> None:
        """Connect again, unless another thread did since `generation`; raises libvirt's error if it stays away."""
        with self._renewing:
            deadline = time.monotonic() + REOPEN_TIME
            while generation == self.generation:
                try:
                    self.raw = self.bounded(libvirt.open, self._uri)
                    self.generation += 1
                except libvirt.libvirtError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def close(self) -> None:
        """Let go of the connection; never waits for it."""
        if not self._silent:
            self.bounded(self.raw.close)


class _Wrapped:
    """An object of libvirt: its methods through the link. `again` gives the same object of the link's connection."""

    def __init__(self, link: Link, real: Any, again: Callable[[], Any]):
        self._link, self._real, self._again = link, real, again
        self._generation = link.generation

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._call, name)

    def _call(self, name: str, *args: Any) -> Any:
        return self._wrap(self._raw_call(name, *args), name, args)

    def _raw_call(self, name: str, *args: Any) -> Any:
        self._refresh()
        try:
            return self._link.bounded(getattr(self._real, name), *args)
        except libvirt.libvirtError:
            if self._generation == self._link.generation and not self._link.lost():
                raise
            self._link.renew(self._generation)
            if name in NOT_REPEATED:
                raise
        self._refresh()
        return self._link.bounded(getattr(self._real, name), *args)

    def _refresh(self) -> None:
        generation = self._link.generation
        if self._generation != generation:
            self._real, self._generation = self._again(), generation

    def _wrap(self, result: Any, name: str, args: tuple) -> Any:
        if isinstance(result, _OBJECTS):
            return _Wrapped(self._link, result, lambda: self._raw_call(name, *args))
        if isinstance(result, list) and result and isinstance(result[0], _OBJECTS):
            return [_Wrapped(self._link, each, functools.partial(_gone, each)) for each in result]
        return result


def _gone(stale: Any) -> Any:
    """Of a list there is no single call to make one again: the stale one fails by itself."""
    return stale


_OBJECTS = (libvirt.virDomain, getattr(libvirt, "virDomainCheckpoint", libvirt.virDomain))
