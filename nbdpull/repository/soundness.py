"""What of a series can be counted on: its sound points, and which of its points were last proved.

A point is sound if whole images of all of its disks can be made by all that is on record. No data is looked at: what
nobody verified may be damaged all the same. Owns: what sound means. Must not know: clocks, ages, what is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from ..core import errors
from ..format import findings, ledger
from . import verdict
from .series import Point, Series


@dataclass(frozen=True)
class Proved:
    """A point that was verified or drilled. found: what that told, such as `when` and `verdict`."""

    point: Point
    found: dict[str, Any]


@dataclass(frozen=True)
class Soundness:
    """points, sound: in the order of commits. damaged: ids. refused: why points cannot be read. verified: the newest
    sound point all of which verifications have seen. drilled: the one of the last drill, whatever that came to.
    drilled_well: ids of those whose last drill was well. lost: paths of findings that cannot be read."""

    points: list[Point] = field(default_factory=list)
    refused: dict[str, errors.NbdpullError] = field(default_factory=dict)
    sound: list[Point] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    verified: Optional[Proved] = None
    drilled: Optional[Proved] = None
    drilled_well: frozenset[str] = frozenset()
    lost: list[str] = field(default_factory=list)


def damage(target: Series, point: Point) -> errors.NbdpullError:
    """The error of a point of which damage is on record."""
    root = target.store.root
    return errors.Damaged(
        f"damage of it is on record in {root}; if it is mended, nbdpull verify {root} --point {point.id} clears the "
        "record"
    )


def of_series(target: Series) -> Soundness:
    """StoreError where its folder cannot be read."""
    points, refused = target.load()
    found = findings.load(target)
    known = verdict.Known(points, found, ledger.load(target))
    verdicts = {point.id: known.verdict(point) for point in points}
    damaged = [name for name, told in verdicts.items() if told and told["verdict"] == verdict.DAMAGED]
    sound = [point for point in points if point.id not in damaged and not point.manifest.partial]
    seen = [Proved(point, told) for point in sound if (told := verdicts[point.id]) and told["verdict"] == verdict.OK]
    drills = findings.newest(found, points, findings.DRILL)
    drilled = [Proved(point, drills[point.id]) for point in points if drills[point.id]]
    return Soundness(
        points=points,
        refused=refused,
        sound=sound,
        damaged=damaged,
        verified=seen[-1] if seen else None,
        drilled=max(drilled, key=lambda each: str(each.found["when"]), default=None),
        drilled_well=frozenset(each.point.id for each in drilled if each.found["verdict"] == verdict.OK),
        lost=findings.left_out(target, found),
    )
