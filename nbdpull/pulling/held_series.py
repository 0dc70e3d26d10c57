"""A series that is held for one run, and where its new point comes.

Owns: that points which cannot be read are told of, and counted. Must not know: what a point is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..repository import half_points
from ..repository.points import Points
from ..repository.series import Series


@dataclass(frozen=True)
class Held:
    """sequence: of the point to be made."""

    series: Series
    points: Points
    sequence: int
    warnings: list[str]


@contextmanager
def holding(target: Series, doing: str = "pull") -> Iterator[Held]:
    """No other run writes to the series as long as the block lasts; Busy where one does. doing: the verb,
    for the message."""
    with half_points.writing(target, doing):
        heads, refused = target.heads()
        warnings = [f"a point of the series is ignored: {error}" for error in refused.values()]
        yield Held(target, Points(target, heads), half_points.next_sequence(target, heads, refused), warnings)
