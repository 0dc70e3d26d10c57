"""How long files of removed points stay, and what may count on them meanwhile: hours, by the clock of their store.

In a store without locks this time is what keeps writers apart: who removes has looked at least GRACE and MARGIN before
at what a pull counts on that is committed within COUNTED_ON. Must not know: points, files.
"""

from __future__ import annotations

from ..storage.base import Store

GRACE = 24 * 3600.0  # seconds that a reader may take to its end
MARGIN = 2 * 3600.0  # seconds by which the clock of a store may be wrong; and that a single step of a run may take
COUNTED_ON = 20 * 3600.0  # seconds in which what was there at the beginning is there at the end
MARKED = COUNTED_ON + MARGIN  # seconds after which nobody removes what he found before a sweep left its mark


def of(store: Store) -> float:
    """Seconds after which what nothing refers to any more goes."""
    return GRACE if store.has_locks else GRACE + MARGIN
