"""The processor time that a guest leaves free: while it works, the threads of a pull are in the background, and only
some of them may compress at once.

Owns: the thread that measures the load of the guest's processors, and the rules. Must not know: libvirt, what is
computed.

On a host with two cores, beside a writing guest with one processor, this halved the time that the guest's writes waited
(docs/performance.md).
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
from ..core.background import Background
from ..core.errors import Check

LOOK_INTERVAL = 0.5  # seconds
CHECK_INTERVAL = 0.2  # seconds between checks of the stop flag during a wait for a core
IDLE = 0.25  # cores: a guest that uses at most this much of its last core needs no core of its own for it


class Guest(Protocol):
    """The part of a Domain that is used here."""

    @property
    def is_remote(self) -> bool: ...

    def vcpu_seconds(self) -> float: ...


class Cores:
    """Hands out the right to compute. allowed: how many threads may compute at once.

    own: cores that this process may use; host: all cores. A guest on another host leaves all of them free. check() is
    called during a wait for a core, and its exception ends the wait.
    """

    def __init__(self, vm: Guest, own: Optional[int] = None, host: Optional[int] = None, check: Check = lambda: None):
        """Create it some time before `watching`, so that a value is available at once."""
        self._vm, self._check, self._local = vm, check, not vm.is_remote
        self._own = own or len(os.sched_getaffinity(0))
        self._host = host or own or os.cpu_count() or self._own
        self._changed = threading.Condition()
        self._computing = 0
        self._background, self._works = Background(), False
        self._stop = threading.Event()
        self._before = self._sample() if self._local else None
        self.allowed = self._own

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Wait for a core, and hold it inside the block. While the guest works, this thread is in the background, also
        after the block."""
        self._background.join()
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
        """Keep a thread measuring inside the block. While the guest works, this thread is in the background there."""
        if self._local:
            self._background.join()
            threading.Thread(target=self._run, daemon=True).start()
        try:
            yield
        finally:
            self._background.close()
            self._stop.set()  # no wait: it may hang in a call to libvirt, and its result is no longer needed

    def _run(self) -> None:
        """Continue after an error: libvirt may come back, and others check whether the domain still exists."""
        while True:
            before, self._before = self._before, self._sample()
            if before and self._before:
                self._leave((self._before[0] - before[0]) / (self._before[1] - before[1]))
            self._background.look(self._works)
            if self._stop.wait(LOOK_INTERVAL):
                return

    def _sample(self) -> Optional[tuple[float, float]]:
        """Return (CPU seconds of the guest's processors, time of the sample), None if unavailable."""
        with suppress(errors.NbdpullError):
            return self._vm.vcpu_seconds(), time.monotonic()
        return None

    def _leave(self, load: float) -> None:
        """Adjust `allowed`. load: cores that the guest's processors kept busy; negative if some were removed."""
        self._works = load > IDLE
        left = self._host - max(0, math.ceil(load - IDLE))
        with self._changed:
            self.allowed = max(1, min(self._own, left))
            self._changed.notify_all()
