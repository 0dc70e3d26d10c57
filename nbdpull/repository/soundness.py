"""What can be relied on in a series: its sound points, and which of its points were last verified and drilled.

A point is sound if, according to all records, whole images of all its disks can be made. No data is read: a point that
was never verified may be damaged nevertheless. Owns: what sound means. Must not know: clocks, ages, what is wanted.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from ..core import errors
from ..format import findings, ledger
from ..storage.base import Store
from . import verdict
from .series import Point, Series


@dataclass(frozen=True)
class Proved:
    """A point that was verified or drilled. found: the result, such as `when` and `verdict`."""

    point: Point
    found: dict[str, Any]


@dataclass(frozen=True)
class Soundness:
    """The soundness of a series.

    points, sound: in the order of commits; refused: why points cannot be read; damaged: ids; verified: the newest sound
    point that was verified completely; drilled: the point of the last drill, whatever its result; drilled_well: ids of
    the points whose last drill succeeded; lost: a message for each finding that cannot be read: what seems sound may be
    damaged.
    """

    points: list[Point] = field(default_factory=list)
    refused: dict[str, errors.NbdpullError] = field(default_factory=dict)
    sound: list[Point] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    verified: Optional[Proved] = None
    drilled: Optional[Proved] = None
    drilled_well: frozenset[str] = frozenset()
    lost: list[str] = field(default_factory=list)


def damage(target: Series, point: Point) -> errors.NbdpullError:
    """Return the error for a point whose damage is recorded."""
    root = target.store.root
    return errors.Damaged(
        f"damage of it is recorded in {root}; once it is repaired, nbdpull verify {root} --point {point.id} clears "
        "the record"
    )


def damaged_copies(known: Soundness, target: Series, same: Iterable[Point], source: Store) -> list[str]:
    """Return warnings about points that `target` has like a series of `source`, but whose damage there is recorded.

    known: the soundness of `target`. A copy does not replace them.
    """
    found = [point.id for point in same if point.id in known.damaged]
    if not found:
        return []
    root = target.store.root
    how = f"nbdpull verify {shlex.quote(root)} --heal-from {shlex.quote(source.root)}"
    return [f"damage is recorded in {root} of points that a copy does not replace, {', '.join(found)}: {how}"]


def of_series(target: Series) -> Soundness:
    """Return the soundness of a series. StoreError if its folder cannot be read."""
    with target.store.looking(target.folder):
        points, refused = target.load()
        found = findings.load(target)
        recorded, lost = ledger.load(target), findings.left_out(target, found)
    known = verdict.Known(points, found, recorded)
    verdicts = {point.id: known.verdict(point) for point in points}
    damaged = [name for name, about in verdicts.items() if about and about["verdict"] == verdict.DAMAGED]
    sound = [point for point in points if point.id not in damaged and not point.manifest.partial]
    seen = [Proved(point, about) for point in sound if (about := verdicts[point.id]) and about["verdict"] == verdict.OK]
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
        lost=lost,
    )
