"""The points of a series for callers that need only the newest few: each is decoded when it is first used.

A pull into a series of a thousand points would decode them all to find its base, which the last one names. Of the
others it must know that they are intact, to which domain they belong and which numbers are taken: their heads contain
that. Owns: that a point which a reader must refuse is treated as absent. Must not know: what the points are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from ..core import errors
from ..format.manifest import Head
from .series import Point, Refused, Series


class Points:
    """The points of a series, in order. series: None if there is no series yet; heads: from Series.heads."""

    def __init__(self, series: Optional[Series] = None, heads: Sequence[Head] = ()) -> None:
        self._series, self._heads = series, heads
        self._decoded: dict[str, Optional[Point]] = {}
        self.refused: Refused = {}  # of the points decoded so far: the manifest is intact, but not valid
        self.ids = frozenset(head.point for head in heads)

    def __len__(self) -> int:
        return len(self._heads)

    def newest_first(self) -> Iterator[Point]:
        return filter(None, (self.get(head.point) for head in reversed(self._heads)))

    @property
    def newest(self) -> Optional[Point]:
        return next(self.newest_first(), None)

    def get(self, point_id: str) -> Optional[Point]:
        """Return the point with that id; None if there is none, or if it is refused."""
        if self._series and point_id in self.ids and point_id not in self._decoded:
            self._decoded[point_id] = None
            try:
                self._decoded[point_id] = self._series.point_in(point_id)
            except (errors.Damaged, errors.FormatTooNew, errors.FormatTooOld) as error:
                self.refused[point_id] = error
        return self._decoded.get(point_id)

    def require_of(self, uuid: str) -> None:
        """Raise OtherDomain unless all points belong to the domain with this UUID."""
        others = (self.get(head.point) for head in self._heads if head.uuid != uuid)
        if self._series:
            self._series.require_of(filter(None, others), uuid)
