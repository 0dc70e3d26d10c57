"""The connection to libvirt: every call has a deadline, and a connection that breaks with its daemon is opened again.

Owns: deadlines, the second try on a new connection, and which calls must not be repeated. It wraps libvirt's objects,
so that the same applies to their methods. Must not know: what a call is for, or what its error means (libvirt_error.py
does).

A daemon that does not come back, or hangs, is detected once: no later call waits for it again. If the daemon answers
while a call about the domain does not, we wait a while longer, as the daemon itself may be waiting.

This takes a thread for each call: libvirt has no timeouts of its own, and a call to a stopped daemon, or to one that
waits for a stopped QEMU, never returns. A run makes some dozens of calls, and two a second while it reads, at 0.1 ms
each.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable, NoReturn, Optional

from ..core import errors
from ..core.errors import Check
from .bindings import libvirt, libvirt_qemu

DAEMON_WAIT = 30  # seconds that the daemon itself waits for another call on the same domain before it refuses ours
AFTER_SILENCE = 2  # seconds for each further call once one was not answered: the way out must not take minutes
AFTER_SIGNAL = 10  # seconds for a daemon to come back, or to answer, after we were asked to end
LOOK_INTERVAL = 0.2  # seconds between checks of the stop flag
# If the connection is lost during one of these, it may have been done, and a second call would mean something else.
NOT_REPEATED = ("backupBegin", "fsFreeze", "createWithFlags")

log = logging.getLogger("nbdpull.libvirt")


class Link:
    """One connection.

    stall_timeout: seconds that a call may take, besides the time that the daemon itself waits, and that a daemon may be
    away; gone: why no more calls are made, "" while there is a daemon. check() is called during a wait for libvirt, and
    its exception ends the wait; to clean up after that, use `ignoring_check`.
    """

    def __init__(self, uri: Optional[str], stall_timeout: float, check: Check = lambda: None):
        self._uri = uri
        self.timeout = stall_timeout
        self.check = check
        self._silent = False
        self._renewing = threading.Lock()
        self.gone = ""
        self.generation = 0
        self.raw = self._open(DAEMON_WAIT + stall_timeout)

    def connection(self) -> Any:
        """Return the virConnect, wrapped."""
        return _Wrapped(self, self.raw, lambda: self.raw)

    def bounded(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return or raise what the call does; NoAnswer if it takes too long. The call itself then continues."""
        self._require_daemon()
        began = _Call(call, args)
        try:
            seconds = self._wait_for(began)
        except errors.NoAnswer:
            raise
        except BaseException as error:
            # The clean-up that follows should find the call's work done.
            if not began.wait(AFTER_SILENCE):
                raise error from errors.NoAnswer("libvirt did not answer yet")
            raise
        self._silent = not began.ended
        if not began.ended:
            log.info("%s: no answer within %g s", began.name, seconds)
            raise errors.NoAnswer(f"libvirt did not answer within {seconds:g} s; QEMU or libvirt hangs")
        return began.result()

    def _wait_for(self, call: _Call) -> float:
        """Wait until a call ends or its time is up; return the limit in seconds."""
        if self._silent:
            call.wait(AFTER_SILENCE, self.check)
            return AFTER_SILENCE
        if not call.wait(self.timeout, self.check):
            # A daemon that is alive may itself be waiting.
            if not _Call(self.raw.getLibVersion, ()).wait(AFTER_SILENCE) and not call.ended:
                self._give_up(f"libvirt's daemon hangs and did not answer within {self.timeout:g} s")
            call.wait(DAEMON_WAIT, self.check)
        return self.timeout + DAEMON_WAIT

    def _open(self, seconds: float) -> Any:
        """Open a new connection. Raises libvirt's error, or NoAnswer."""
        opened = _Call(libvirt.open, (self._uri,))
        if not opened.wait(max(seconds, AFTER_SILENCE), self.check):
            self._give_up(f"libvirt's daemon hangs and did not answer within {seconds:.0f} s")
        return opened.result()

    @contextlib.contextmanager
    def ignoring_check(self) -> Iterator[None]:
        """Ignore check() inside the block: for clean-up after it raised.

        After a signal, clean-up must not take long, either.
        """
        before = self.check, self.timeout
        try:
            self.check()
        except errors.Interrupted:
            self.timeout = min(self.timeout, AFTER_SIGNAL)
        except Exception:  # whatever it is, it is being raised already
            pass
        self.check = lambda: None
        try:
            yield
        finally:
            self.check, self.timeout = before

    def _give_up(self, why: str) -> NoReturn:
        self.gone = why
        self._require_daemon()
        raise AssertionError("it is gone")

    def _require_daemon(self) -> None:
        if self.gone:
            raise errors.NoAnswer(self.gone)

    def lost(self) -> bool:
        try:
            return not self.raw.isAlive()
        except libvirt.libvirtError:
            return True

    def renew(self, generation: int) -> None:
        """Connect again, unless another thread has since `generation`; NoAnswer if the daemon stays away."""
        while not self._renewing.acquire(timeout=LOOK_INTERVAL):
            self.check()
        try:
            deadline = time.monotonic() + self.timeout
            log.info("the connection is lost: connecting again")
            while generation == self.generation:
                self._require_daemon()
                self._try_again(deadline)
        finally:
            self._renewing.release()

    def _try_again(self, deadline: float) -> None:
        try:
            self.raw = self._open(deadline - time.monotonic())
            self.generation += 1
        except libvirt.libvirtError as error:
            if time.monotonic() > deadline:
                why = " ".join(str(error).split())
                self._give_up(f"libvirt's daemon is gone and did not come back within {self.timeout:g} s ({why})")
            time.sleep(LOOK_INTERVAL)
            self.check()

    def close(self) -> None:
        """Close the connection; never wait for it."""
        if not self._silent and not self.gone:
            self.bounded(self.raw.close)


class _Call:
    """A call in progress, in its own thread."""

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...]):
        self._call, self._args = call, args
        self.name = getattr(call, "__name__", "a call")
        self._outcome: Any = None
        self._error: Optional[BaseException] = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        began, ended = time.monotonic(), ""
        try:
            self._outcome = self._call(*self._args)
        except BaseException as error:
            self._error, ended = error, f" failed: {error}"
        # Only the name: an argument may be a definition, with a password in it.
        log.info("%s%s (%.3f s)", self.name, ended, time.monotonic() - began)
        self._done.set()

    @property
    def ended(self) -> bool:
        return self._done.is_set()

    def wait(self, seconds: float, check: Check = lambda: None) -> bool:
        """Return whether the call ended in time. An exception from check() ends the wait."""
        deadline = time.monotonic() + seconds
        while not self._done.wait(max(0, min(LOOK_INTERVAL, deadline - time.monotonic()))):
            if time.monotonic() > deadline:
                return self.ended
            check()
        return True

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._outcome


class _Wrapped:
    """An object of libvirt whose methods go through the link.

    `again` returns the same object on the link's connection.
    """

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
            return self._link.bounded(getattr(self._real, name), *map(_unwrapped, args))
        except libvirt.libvirtError:
            if self._generation == self._link.generation and not self._link.lost():
                raise
            self._link.renew(self._generation)
            if name in NOT_REPEATED:
                raise
        self._refresh()
        return self._link.bounded(getattr(self._real, name), *map(_unwrapped, args))

    def _refresh(self) -> None:
        generation = self._link.generation
        if self._generation != generation:
            self._real, self._generation = self._again(), generation

    def _wrap(self, result: Any, name: str, args: tuple[Any, ...]) -> Any:
        if isinstance(result, _OBJECTS):
            return _Wrapped(self._link, result, lambda: self._raw_call(name, *args))
        if isinstance(result, list) and result and isinstance(result[0], _OBJECTS):
            return [_Wrapped(self._link, each, functools.partial(_gone, each)) for each in result]
        return result


def ask_monitor(dom: _Wrapped, command: str) -> str:
    """Return the answer of QEMU's monitor; both are JSON. libvirt marks the domain as tainted by this until it ends."""
    answer: str = dom._link.bounded(libvirt_qemu.qemuMonitorCommand, _unwrapped(dom), command, 0)
    return answer


def _unwrapped(argument: Any) -> Any:
    """Return what libvirt accepts as an argument: its own object, or a list of them."""
    if isinstance(argument, list):
        return [_unwrapped(each) for each in argument]
    if isinstance(argument, _Wrapped):
        argument._refresh()
        return argument._real
    return argument


def _gone(stale: Any) -> Any:
    """Return the stale object: no single call could fetch an item of a list again, so its next call fails."""
    return stale


_OBJECTS = (libvirt.virDomain, getattr(libvirt, "virDomainCheckpoint", libvirt.virDomain))
