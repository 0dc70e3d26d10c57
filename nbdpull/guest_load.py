"""The cores that a guest leaves: how many threads of a pull may compress at once while it works.

Owns: the thread that looks at what the guest's processors do, and the rule. Must not know: libvirt, what is computed.

On a host of two cores, beside a guest that kept one busy, a pull that compressed in every thread was no faster for it,
and the guest's writes waited longer (docs/performance.md).
"""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import contextmanager, suppress

from . import errors

LOOK_INTERVAL = 0.5  # seconds
IDLE = 0.25  # cores: a guest that uses no more of its last one than this needs none of its own


def host_cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Cores:
    """Hands out the right to compute; a guest of another host leaves all of them. allowed: how many may at once."""

    def __init__(self, vm, cores=None):
        """To be made some time before `watching` is entered, so that there is something to tell at its begin."""
        self._vm, self._cores = vm, cores or host_cores()
        self._changed = threading.Condition()
        self._computing = 0
        self._stop = threading.Event()
        self._before = self._sample()
        self.allowed = self._cores

    @contextmanager
    def computing(self):
        """What runs inside waits for a core first."""
        with self._changed:
            self._changed.wait_for(lambda: self._computing < self.allowed)
            self._computing += 1
        try:
            yield
        finally:
            with self._changed:
                self._computing -= 1
                self._changed.notify()

    @contextmanager
    def watching(self):
        """While this is entered a thread looks."""
        threading.Thread(target=self._run, daemon=True).start()
        try:
            yield
        finally:
            self._stop.set()  # not waited for: it may hang in a call to libvirt, and has nothing to tell any more

    def _run(self):
        while self._before and (now := self._sample()):
            self._leave((now[0] - self._before[0]) / (now[1] - self._before[1]))
            self._before = now
            if self._stop.wait(LOOK_INTERVAL):
                break

    def _sample(self):
        """(CPU seconds of the guest's processors, when), None where they cannot be told, or are of another host."""
        with suppress(errors.NbdpullError):  # whether the domain is still there is for others to find out
            return None if self._vm.is_remote else (self._vm.vcpu_seconds(), time.monotonic())
        return None

    def _leave(self, load):
        """load: cores that the guest's processors kept busy."""
        with self._changed:
            self.allowed = max(1, self._cores - math.ceil(load - IDLE))
            self._changed.notify_all()
