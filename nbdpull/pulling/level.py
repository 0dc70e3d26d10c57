"""At which level zstd compresses what comes next: one that was chosen, or one that follows who waits for whom.

Owns: the rule. Must not know: threads, compressors, what is compressed.

The measure is how busy those are that compress: if all of them work all the time, what was read waits for them, and a
faster level saves time; if half of the time is enough, something else is waited for (a disk, a network, a limit of the
rate), and a better level costs none. But for a processor that others use as well: those that compress then take longer
than their CPU time is, and no better level is chosen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, Optional

LEVELS = (-1, 1, 2, 3)  # each takes at most 1.5 times as long as the one before
FIRST = 1
WINDOW = 0.25  # seconds that are looked at together
BUSY, IDLE = 0.9, 0.5  # shares of the time of all that may compress: from here on faster, below that better
ALONE = 0.85  # of the time that compressing took was CPU time, at least, where nobody else wants the processors


class Level:
    """chosen: by the user, None: it follows. at_once: how many threads may compress now."""

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
        """Around what compresses, in any thread."""
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
    """The level after one at which those that compress were busy for a share of the time."""
    place = LEVELS.index(level) + (-1 if share > BUSY else 1 if share < IDLE and alone else 0)
    return LEVELS[min(max(place, 0), len(LEVELS) - 1)]
