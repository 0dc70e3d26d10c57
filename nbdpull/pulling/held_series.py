"""A series that is held for one run, and the number of its new point.

Owns: that points which cannot be read are reported, and counted. Must not know: what a point is made of, beside which
points nothing may be written (repository/foreign.py).
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
    """A series that no other run can write to.

    refused: points that cannot be read; sequence: number of the new point; findings: names of the findings that exist
    already: no new point builds on damage that they record.
    """

    series: Series
    points: Points
    refused: Refused
    sequence: int
    warnings: list[str]
    findings: frozenset[str] = frozenset()

    def late_warnings(self) -> list[str]:
        """Return warnings about unreadable points that were found since."""
        return _warnings(self.points.refused)

    def found_since(self, made: Point) -> list[str]:
        """Return a warning if a verification has found damage in the new point meanwhile. The point is committed, so an
        error here is only a warning, too."""
        try:
            return crossing.warn_of_findings(self.series, [made], self.findings)
        except errors.NbdpullError as error:
            return [f"it is not known whether a verification has found damage in point {made.id} meanwhile: {error}"]


@contextmanager
def holding(target: Series, doing: str = "pull") -> Iterator[Held]:
    """Hold the series inside the block: no other run can write to it. Busy if one does. doing: the verb, for the
    message."""
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
    """Hold a series to which a point is added. Foreign or Damaged if the series or the store may belong to somebody
    else."""
    with holding(target) as held:
        foreign.require_none(target, held.points, held.refused)
        forgotten = immutable.forgotten(target, held.points.newest)
        yield replace(held, warnings=[*held.warnings, *forgotten])
