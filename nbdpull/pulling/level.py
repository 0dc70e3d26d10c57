"""The level at which zstd compresses the next data: chosen by the user, or adapted to how busy the compressors are.

Owns: the rule. Must not know: threads, compressors, what is compressed.

The measure is how busy the compressing threads are. If all of them work all the time, data waits for them, and a faster
level saves time. If they work for half of the time, the pull waits for something else (a disk, a network, a rate
limit), and a better level costs no time. There is one exception: if other processes use the processors, too,
compression takes longer than its CPU time, and no better level is chosen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, Optional

LEVELS = (-1, 1, 2, 3)  # each takes at most 1.5 times as long as the one before
FIRST = 1
WINDOW = 0.25  # seconds over which the load is averaged
BUSY, IDLE = 0.9, 0.5  # shares of the time of all compressing threads: above BUSY go faster, below IDLE better
ALONE = 0.85  # least share of CPU time in the time that compression takes, if no other process needs the processors


class Level:
    """The level to use now. chosen: by the user, None: adapt it; at_once: returns how many threads may compress now."""

    def __init__(
        self,
        chosen: Optional[int],
        at_once: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.now = FIRST if chosen is None else chosen
        self._follows, self._at_once, self._clock, self._cpu_clock = chosen is None, at_once, clock, cpu_clock
        self._lock = threading.Lock()
        self._began, self._busy, self._cpu = clock(), 0.0, 0.0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Measure the block, which compresses. Used in any thread."""
        began, cpu = self._clock(), self._cpu_clock()
        yield
        if self._follows:
            self._worked(began, self._clock(), self._cpu_clock() - cpu)

    def _worked(self, began: float, ended: float, cpu: float) -> None:
        with self._lock:
            self._busy += ended - began
            self._cpu += cpu
            passed = ended - self._began
            if passed >= WINDOW:
                share = self._busy / (passed * self._at_once())
                self.now = _next(self.now, share, self._cpu >= ALONE * self._busy)
                self._began, self._busy, self._cpu = ended, 0.0, 0.0


def _next(level: int, share: float, alone: bool) -> int:
    """Return the next level. share: of the time for which the threads were busy at this level; alone: no other process
    needed the processors."""
    place = LEVELS.index(level) + (-1 if share > BUSY else 1 if share < IDLE and alone else 0)
    return LEVELS[min(max(place, 0), len(LEVELS) - 1)]
