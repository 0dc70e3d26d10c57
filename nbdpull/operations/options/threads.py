"""The default number of threads for the verbs that read a guest's disks; operations/reading.py has that for stores."""

from __future__ import annotations

import os


def threads() -> int:
    """Return two more than the number of cores available to us: some threads always wait for QEMU."""
    return min(len(os.sched_getaffinity(0)) + 2, 16)
