"""A series that is held for one run, and where its new point comes.

Owns: that points which cannot be read are told of, and counted. Must not know: what a point is made of, which points
nothing may be written beside (repository/foreign.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..repository import foreign, half_points, immutable
from ..repository.points import Points
from ..repository.series import Refused, Series


@dataclass(frozen=True)
class Held:
    """refused: points that cannot be read; sequence: of the point to be made."""

    series: Series
    points: Points
    refused: Refused
    sequence: int
    warnings: list[str]

    def told_later(self) -> list[str]:
        """Warnings of points that were looked at since."""
        return _warnings(self.points.refused)


@contextmanager
def holding(target: Series, doing: str = "pull") -> Iterator[Held]:
    """No other run writes to the series as long as the block lasts; Busy where one does. doing: the verb,
    for the message."""
    with half_points.writing(target, doing):
        heads, refused = target.heads()
        sequence = half_points.next_sequence(target, heads, refused)
        yield Held(target, Points(target, heads), refused, sequence, _warnings(refused))


def _warnings(refused: Refused) -> list[str]:
    return [f"a point of the series is ignored: {error}" for error in refused.values()]


@contextmanager
def for_new_point(target: Series) -> Iterator[Held]:
    """The same of a series that gets a point. Foreign, Damaged where it, or the store, may be somebody else's."""
    with holding(target) as held:
        foreign.require_none(target, held.points, held.refused)
        forgotten = immutable.forgotten(target, held.points.newest)
        yield replace(held, warnings=[*held.warnings, *forgotten])
