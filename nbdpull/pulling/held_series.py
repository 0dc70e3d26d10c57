"""A series that is held for one run, and where its new point comes.

Owns: that points which cannot be read are told of, and counted. Must not know: what a point is made of, which points
nothing may be written beside (repository/foreign.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..core import errors
from ..format import findings
from ..repository import crossing, foreign, half_points, immutable
from ..repository.points import Points
from ..repository.series import Point, Refused, Series


@dataclass(frozen=True)
class Held:
    """refused: points that cannot be read; sequence: of the point to be made; findings: names of those that are there:
    damages that are on record now are not built on."""

    series: Series
    points: Points
    refused: Refused
    sequence: int
    warnings: list[str]
    findings: frozenset[str] = frozenset()

    def told_later(self) -> list[str]:
        """Warnings of points that were looked at since."""
        return _warnings(self.points.refused)

    def found_since(self, made: Point) -> list[str]:
        """A warning where a verification has found damages of the point that was made, which is there whatever
        hinders."""
        try:
            return crossing.tell_of_findings(self.series, [made], self.findings)
        except errors.NbdpullError as error:
            return [f"it is not known whether a verification has found damages of point {made.id} meanwhile: {error}"]


@contextmanager
def holding(target: Series, doing: str = "pull") -> Iterator[Held]:
    """No other run writes to the series as long as the block lasts; Busy where one does. doing: the verb,
    for the message."""
    with half_points.writing(target, doing):
        with target.store.looking(target.folder):
            known = frozenset(findings.names(target))
            heads, refused = target.heads()
            sequence = half_points.next_sequence(target, heads, refused)
        yield Held(target, Points(target, heads), refused, sequence, _warnings(refused), known)


def _warnings(refused: Refused) -> list[str]:
    return [f"a point of the series is ignored: {error}" for error in refused.values()]


@contextmanager
def for_new_point(target: Series) -> Iterator[Held]:
    """The same of a series that gets a point. Foreign, Damaged where it, or the store, may be somebody else's."""
    with holding(target) as held:
        foreign.require_none(target, held.points, held.refused)
        forgotten = immutable.forgotten(target, held.points.newest)
        yield replace(held, warnings=[*held.warnings, *forgotten])
