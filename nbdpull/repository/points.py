"""The points of a series for who needs to look at the newest few: each is decoded when it is asked for.

A pull of a series of a thousand would decode them all to find its base, which the last one tells. Of the others it has
to know that they are intact, whose they are and which numbers are taken: their heads tell. Owns: that a point which a
reader must refuse is as if it were not there. Must not know: what the points are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

from ..core import errors
from ..format.manifest import Head
from .series import Point, Refused, Series


class Points:
    """Of a series; heads: what Series.heads gives. None where there is no series yet."""

    def __init__(self, series: Optional[Series] = None, heads: Sequence[Head] = ()) -> None:
        self._series, self._heads = series, heads
        self._decoded: dict[str, Optional[Point]] = {}
        self.refused: Refused = {}  # of those that were looked at: intact, and no manifest of a point all the same
        self.ids = frozenset(head.point for head in heads)

    def __len__(self) -> int:
        return len(self._heads)

    def newest_first(self) -> Iterator[Point]:
        return filter(None, (self.get(head.point) for head in reversed(self._heads)))

    @property
    def newest(self) -> Optional[Point]:
        return next(self.newest_first(), None)

    def get(self, point_id: str) -> Optional[Point]:
        """The one of that id; None where there is none."""
        if self._series and point_id in self.ids and point_id not in self._decoded:
            self._decoded[point_id] = None
            try:
                self._decoded[point_id] = self._series.point_in(point_id)
            except (errors.Damaged, errors.FormatTooNew, errors.FormatTooOld) as error:
                self.refused[point_id] = error
        return self._decoded.get(point_id)

    def require_of(self, uuid: str) -> None:
        """OtherDomain unless all are of the domain with this uuid."""
        others = (self.get(head.point) for head in self._heads if head.uuid != uuid)
        if self._series:
            self._series.require_of(filter(None, others), uuid)
