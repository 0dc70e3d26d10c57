"""Threads in the background: they take only the processor time that others leave, as long as that is enough.

Owns: the scheduling class of the threads, and the rule when they leave the background. Must not know: what the threads
do, for whom they leave time.

Linux runs a thread that wakes up, such as a guest's processor, at once in place of one in SCHED_IDLE. No nice value
does that: a thread that computes continues for some milliseconds. But beside a program that keeps a processor busy, a
thread in SCHED_IDLE gets next to nothing, whatever that program's nice value. And if it holds Python's lock then, all
other threads wait.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Callable, Optional

USUAL, BACKGROUND = os.SCHED_OTHER, os.SCHED_IDLE
ENOUGH = 0.1  # of the time in which the threads want a processor: if they get less, they starve
LEAST_WAIT = 0.1  # seconds of waiting that show anything
PAUSE = 10.0  # seconds outside the background after the threads starved; doubled each time

Times = tuple[float, float]  # seconds that a thread ran, seconds that it waited for a processor


class Background:
    """Threads that are in the background together, or not. inside: whether they are.

    Threads that already have another scheduling class than the usual one keep it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._pause = clock, PAUSE
        self._outside_until = self._looked = clock()
        self._lock = threading.Lock()
        self._threads: dict[int, Times] = {}
        self._possible: Optional[bool] = None
        self._closed = self.inside = False

    def join(self) -> None:
        """Put the calling thread where the others are."""
        thread = threading.get_native_id()
        with self._lock:
            if thread in self._threads or os.sched_getscheduler(0) != USUAL:
                return
            self._threads[thread] = _times(thread) or (0.0, 0.0)
            if self.inside:
                _put(thread, BACKGROUND)

    def look(self, wanted: bool) -> None:
        """Put the threads in the background if that is wanted, and outside if it is not, or if they starve there. To be
        called a few times a second."""
        with self._lock:
            if self._closed or not self._is_possible(wanted):
                return
            if self.inside and _starve(*self._passed()):
                self._outside_until = self._clock() + self._pause
                self._pause *= 2
            inside = wanted and self._clock() >= self._outside_until
            if inside and not self.inside:
                self._passed()  # what was before does not count
            self._put_all(inside)

    def close(self) -> None:
        """Put all threads outside, for good."""
        with self._lock:
            self._closed = True
            self._put_all(False)

    def _put_all(self, inside: bool) -> None:
        if inside != self.inside:
            for thread in self._threads:
                _put(thread, BACKGROUND if inside else USUAL)
        self.inside = inside

    def _passed(self) -> Times:
        """Return the times of all threads together since the last call."""
        ran = waited = 0.0
        before, self._looked = self._looked, self._clock()
        for thread, last in self._threads.items():
            now = self._threads[thread] = _times(thread) or last
            ran, waited = ran + now[0] - last[0], waited + now[1] - last[1]
            if now == last and _is_ready(thread):  # the kernel counts a wait only once it has ended
                waited += self._looked - before
        return ran, waited

    def _is_possible(self, wanted: bool) -> bool:
        if wanted and self._possible is None:
            self._possible = _can_return()
        return bool(self._possible)


def _starve(ran: float, waited: float) -> bool:
    return waited > LEAST_WAIT and ran < ENOUGH * (ran + waited)


def _put(thread: int, policy: int) -> None:
    if _times(thread) is None:
        return  # it has ended, and its number may be that of another program's thread
    with suppress(ProcessLookupError):
        os.sched_setscheduler(thread, policy, os.sched_param(0))


def _times(thread: int) -> Optional[Times]:
    """Return the times of a thread of this process; None if it has ended, or if this kernel does not count them."""
    try:
        with open(f"/proc/self/task/{thread}/schedstat") as file:
            ran, waited, _ = map(int, file.read().split())
    except (OSError, ValueError):
        return None
    return ran / 1e9, waited / 1e9


def _is_ready(thread: int) -> bool:
    """Return whether a thread of this process runs, or waits for a processor."""
    try:
        with open(f"/proc/self/task/{thread}/stat") as file:
            return file.read().rpartition(") ")[2].startswith("R")
    except OSError:
        return False


def _can_return() -> bool:
    """Return whether a thread that was put in the background could leave it: without root's rights, Linux allows that
    only within the limit of nice values (RLIMIT_NICE)."""
    possible = []

    def attempt() -> None:
        with suppress(OSError):
            for policy in (BACKGROUND, USUAL):
                os.sched_setscheduler(0, policy, os.sched_param(0))
            possible.append(_times(threading.get_native_id()) is not None)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return possible == [True]
