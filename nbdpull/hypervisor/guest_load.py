"""The cores that a guest leaves: how many threads of a pull may compress at once while it works.

Owns: the thread that looks at what the guest's processors do, and the rule. Must not know: libvirt, what is computed.

On a host of two cores, beside a guest with one processor that wrote, its writes waited less for it, and the pull took
about as long (docs/performance.md).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Optional, Protocol

from ..core import errors
from ..core.errors import Check

LOOK_INTERVAL = 0.5  # seconds
CHECK_INTERVAL = 0.2  # seconds between looks at the stop flag while a core is waited for
IDLE = 0.25  # cores: a guest that uses no more of its last one than this needs none of its own


class Guest(Protocol):
    """What is asked of a Domain."""

    @property
    def is_remote(self) -> bool: ...

    def vcpu_seconds(self) -> float: ...


class Cores:
    """Hands out the right to compute. allowed: how many threads may at once.

    own: cores that this process may use; host: all there are. A guest of another host leaves all of them. check() is
    called while a core is waited for, what it raises ends that.
    """

    def __init__(self, vm: Guest, own: Optional[int] = None, host: Optional[int] = None, check: Check = lambda: None):
        """To be made some time before `watching` is entered, so that there is a value at its start."""
        self._vm, self._check, self._local = vm, check, not vm.is_remote
        self._own = own or len(os.sched_getaffinity(0))
        self._host = host or own or os.cpu_count() or self._own
        self._changed = threading.Condition()
        self._computing = 0
        self._stop = threading.Event()
        self._before = self._sample() if self._local else None
        self.allowed = self._own

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What runs inside waits for a core first."""
        self._take()
        try:
            yield
        finally:
            with self._changed:
                self._computing -= 1
                self._changed.notify()

    def _take(self) -> None:
        self._check()
        with self._changed:
            while not self._changed.wait_for(lambda: self._computing < self.allowed, CHECK_INTERVAL):
                self._check()
            self._computing += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this is entered a thread looks."""
        if self._local:
            threading.Thread(target=self._run, daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()  # not waited for: it may hang in a call to libvirt, and its result is no longer needed

    def _run(self) -> None:
        """Also after an error: libvirt may be back, and whether the domain is still there is for others to find out."""
        while True:
            before, self._before = self._before, self._sample()
            if before and self._before:
                self._leave((self._before[0] - before[0]) / (self._before[1] - before[1]))
            if self._stop.wait(LOOK_INTERVAL):
                return

    def _sample(self) -> Optional[tuple[float, float]]:
        """(CPU seconds of the guest's processors, when), None if they are not available."""
        with suppress(errors.NbdpullError):
            return self._vm.vcpu_seconds(), time.monotonic()
        return None

    def _leave(self, load: float) -> None:
        """load: cores that the guest's processors kept busy; less than none where some of them were taken away."""
        left = self._host - max(0, math.ceil(load - IDLE))
        with self._changed:
            self.allowed = max(1, min(self._own, left))
            self._changed.notify_all()
