"""A copy of a point that takes longer than files of a point that is not there stay in a store without locks.

Its directories look like those of removed points, and may be removed a day after they were set apart. So a long copy
sets them apart again; but only as long as no sweep may have begun there: a copy that cannot succeed must not keep what
nobody needs. Owns: how often. Must not know: what is copied, which directories these are.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from . import half_points, lock_free
from .series import Series

EVERY = 3600.0  # seconds


class LongCopy:
    """point: id of the point that is copied."""

    def __init__(self, target: Series, point: str) -> None:
        self._target, self._point, self._since = target, point, time.monotonic()

    def go_on(self, names: Collection[str]) -> None:
        """Set directories apart again if it is time for that. For a call before each part of the copy. Busy if it can
        no longer succeed."""
        if self._target.store.has_locks or time.monotonic() - self._since < EVERY:
            return
        for name in names:
            lock_free.require_set_apart(self._target, name, self._point)
        for name in names:
            half_points.renew(self._target, name)
        self._since = time.monotonic()
