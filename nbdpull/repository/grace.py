"""How long the files of removed points are kept, and how long a run may rely on files, by the clock of the store.

In a store without locks only this time keeps writers apart: before a run removes files, it has waited at least GRACE
and MARGIN, while a pull that relies on them must commit within COUNTED_ON. Must not know: points, files.
"""

from __future__ import annotations

from ..storage.base import Store

GRACE = 24 * 3600.0  # seconds that a reader may take to finish
MARGIN = 2 * 3600.0  # seconds by which the clock of a store may be wrong, and that a single step of a run may take
COUNTED_ON = 20 * 3600.0  # seconds for which files that exist at the start of a run are sure to remain
MARKED = COUNTED_ON + MARGIN  # seconds after a sweep's mark in which another one may still remove what it found before


def of(store: Store) -> float:
    """Return the seconds after which files that nothing refers to any more are removed."""
    return GRACE if store.has_locks else GRACE + MARGIN
