"""The default number of threads for the verbs that read a guest's disks; operations/reading.py has that for stores."""

from __future__ import annotations

import os

MOST = 16


def threads(waiting: int = 2) -> int:
    """Return this many more than the number of cores available to us, at most MOST. Some threads always wait: two for
    QEMU."""
    return min(len(os.sched_getaffinity(0)) + waiting, MOST)
