"""What is known of each point by all that verifications found: of itself, and of what it builds on.

Owns: which damages are still on record, since when all of a point has been looked at, and that a point is no better
than its chain. No verdict flatters: a damage stays until a look at its place, and what nobody looked at is not well.
Must not know: how anything is verified, or what is printed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Optional, cast

from ..core import errors
from ..core.choices import Level
from ..format import findings
from ..format.layout import Document
from ..format.manifest import INCREMENTAL, DiskEntry, ParentEntry
from .series import Point

OK, PARTIAL, DAMAGED, BASE_DAMAGED = "ok", "partial", "damaged", "base-damaged"
FILES, FRAMES = Level.WORDS

Covered = dict[str, Optional[str]]  # level: when the oldest of the looks was that together saw everything; None: never


@dataclass(frozen=True)
class Recorded:
    """Damages of a point that one finding tells of, and no later one settled. places: dicts with disk, path, offset,
    length and problem, of which any but the last may be None; None where the finding does not tell them all."""

    finding: str
    when: str
    level: str
    count: int
    places: Optional[list[dict[str, Any]]]

    def concerns(self, disk: str) -> bool:
        """Whether that disk cannot be restored for it. The domain's files concern all: a restore proves them, too."""
        return self.places is None or any(place.get("disk") in (None, disk) for place in self.places)


@dataclass
class _Point:
    """What is known of one point by itself."""

    recorded: list[Recorded] = field(default_factory=list)
    covered: Covered = field(default_factory=lambda: {FILES: None, FRAMES: None})
    last: Optional[Document] = None  # the newest look at it


@dataclass(frozen=True)
class _Disk:
    """What is known of a disk with its chain. damaged: ids of points."""

    damaged: frozenset[str]
    covered: Covered


class Known:
    """Of the points of one series, by its findings."""

    def __init__(
        self,
        points: Collection[Point],
        found: Iterable[Document],
        refused: Mapping[str, errors.NbdpullError] = MappingProxyType({}),
    ) -> None:
        """points, refused: what the series' load gives; found: what findings.load gives."""
        self._points = {point.id: point for point in points}
        # Of what a later nbdpull made nothing can be told, and so no damage.
        self._unproved = {name for name, error in refused.items() if isinstance(error, errors.FormatTooNew)}
        looks = findings.by_point(found, points, findings.VERIFY)
        self._own = {name: _by_itself(each) for name, each in looks.items()}
        self._disks: dict[tuple[str, str], _Disk] = {}
        for point in sorted(points, key=lambda point: point.manifest.sequence):  # parents first
            for entry in point.manifest.disks:
                self._disks[point.id, entry.name] = self._with_chain(point, entry)

    def _with_chain(self, point: Point, entry: DiskEntry) -> _Disk:
        own = self._own[point.id]
        damaged = frozenset({point.id} if any(each.concerns(entry.name) for each in own.recorded) else ())
        if entry.mode != INCREMENTAL or point.manifest.parent is None:
            return _Disk(damaged, own.covered)
        base = self._base(point, entry)
        return _Disk(damaged | base.damaged, _oldest(own.covered, base.covered))

    def _base(self, point: Point, entry: DiskEntry) -> _Disk:
        """What is known of what an incremental disk is laid over. One that is not there is as good as damaged."""
        wanted = cast(ParentEntry, point.manifest.parent)  # else it has no base
        parent = self._points.get(wanted.point)
        before = parent.manifest.disk(entry.name) if parent and parent.sha256 == wanted.sha256 else None
        known = self._disks.get((wanted.point, entry.name))
        if before and known and before.size <= entry.size:
            return known
        return _Disk(frozenset({wanted.point} - self._unproved), {FILES: None, FRAMES: None})

    def recorded(self, point: Point) -> list[Recorded]:
        """Damages of the point itself that are on record: [Recorded, …]."""
        return self._own[point.id].recorded

    def last_look(self, point: Point) -> str:
        """When it was last looked at, by itself and in whatever part; "" for never."""
        when: str = (self._own[point.id].last or {"when": ""})["when"]
        return when

    def damaged(self, point: Point, disk: str) -> frozenset[str]:
        """Ids of the points for whose damage that disk of the point cannot be restored."""
        return self._disks[point.id, disk].damaged

    def verdict(self, point: Point) -> Optional[dict[str, Any]]:
        """A dict of plain values, which the manual documents; None where nothing is known."""
        own, disks = self._own[point.id], [self._disks[point.id, disk.name] for disk in point.manifest.disks]
        damaged = frozenset({point.id} if own.recorded else ()).union(*(disk.damaged for disk in disks))
        if own.last is None and not damaged:
            return None
        covered = _oldest(own.covered, *(disk.covered for disk in disks))
        word, when, level = self._word(own, damaged, covered)
        return {
            "verdict": word,
            "when": when,
            "level": level,
            "damages": sum(each.count for each in own.recorded),
            "damaged": sorted(damaged),
            "covered": covered,
            "last": own.last,
        }

    def _word(self, own: _Point, damaged: frozenset[str], covered: Covered) -> tuple[str, Optional[str], Optional[str]]:
        """(verdict, when that was found, at which level)"""
        if own.recorded:
            return DAMAGED, own.recorded[-1].when, own.recorded[-1].level
        if damaged:  # of a base that is not there nobody needs to have found anything
            recorded = [each for name in damaged & set(self._own) for each in self._own[name].recorded]
            newest = max(recorded, key=lambda each: each.when, default=None)
            return BASE_DAMAGED, newest.when if newest else None, newest.level if newest else None
        if covered[FILES] is not None:
            return OK, covered[FILES], FRAMES if covered[FRAMES] == covered[FILES] else FILES
        last = cast(Document, own.last)  # else nothing would be known, and nobody asks
        return PARTIAL, last["when"], last["level"]


def _by_itself(found: list[tuple[Document, Document]]) -> _Point:
    """A _Point of [(finding, its entry about the point), …], oldest first."""
    settled = {name for _, about in found for name in about.get("settles", [])}
    point = _Point()
    shards: dict[tuple[str, int], dict[int, str]] = {}
    for finding, about in found:
        when, level = finding["when"], finding["level"]
        if about["damages"] and finding["id"] not in settled:
            places = None if about.get("more") else about.get("places")
            point.recorded.append(Recorded(finding["id"], when, level, about["damages"], places))
        if finding.get("sample") or not about.get("complete", True):
            continue
        for each in (FILES, FRAMES)[: 1 + (level == FRAMES)]:
            if finding.get("shard") is None:
                point.covered[each] = when
            else:
                number, count = finding["shard"]
                if 1 <= number <= count:  # who can write to the store can write anything
                    shards.setdefault((each, count), {})[number] = when
    if found:
        point.last = {name: found[-1][0].get(name) for name in ("when", "who", "level", "sample", "shard")}
    for (level, count), seen in shards.items():
        if len(seen) == count:
            point.covered[level] = max(point.covered[level] or "", min(seen.values()))
    return point


def _oldest(*covered: Covered) -> Covered:
    """What holds for all of them."""
    every = {level: [each[level] for each in covered] for level in (FILES, FRAMES)}
    return {
        level: None if None in times else min(time for time in times if time is not None)
        for level, times in every.items()
    }
