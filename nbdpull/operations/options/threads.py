"""The default number of threads, for every verb that takes one."""

from __future__ import annotations

import os


def threads() -> int:
    """Return two more than the number of cores available to us: some threads always wait for a disk."""
    return min(len(os.sched_getaffinity(0)) + 2, 16)
