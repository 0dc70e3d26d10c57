"""How many threads read a store, for every verb that takes a number.

Owns: the default. Must not know: what they read.
"""

from __future__ import annotations

from typing import Optional

from ..storage.base import Store
from .options.threads import threads as more_than_cores

REMOTE = 8  # threads: each read of a small frame is a round trip


def threads(store: Store, wanted: Optional[int]) -> int:
    """Return as many threads as wanted; None: one more than the cores that are available to us, because one may wait
    for a disk, and at least REMOTE for a store behind a server."""
    if wanted is not None:
        return wanted
    return max(more_than_cores(1), REMOTE if store.is_remote else 1)
