"""A series that is held for one run, and where its new point comes.

Owns: that points which cannot be read are told of, and counted. Must not know: what a point is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..repository import half_points
from ..repository.series import Point, Series


@dataclass(frozen=True)
class Held:
    """points: in the order of commits; sequence: of the point to be made."""

    series: Series
    points: list[Point]
    sequence: int
    warnings: list[str]

    @property
    def ids(self) -> set[str]:
        """Of the points."""
        return {point.id for point in self.points}


@contextmanager
def holding(target: Series) -> Iterator[Held]:
    """No other run writes to the series as long as the block lasts; Busy where one does."""
    with half_points.writing(target):
        points, refused = target.load()
        warnings = [f"a point of the series is ignored: {error}" for error in refused.values()]
        yield Held(target, points, half_points.next_sequence(target, points, refused), warnings)
