"""What is known of each point by all that verifications found.

Owns: which damages are still on record, and since when all that a point refers to has been looked at. No verdict
flatters: a damage stays until a look at its place, and what nobody looked at is not well. Must not know: how anything
is verified, or what is printed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from ..core.choices import Level
from ..format import findings
from ..format.layout import Document
from .series import Point

OK, PARTIAL, DAMAGED = "ok", "partial", "damaged"
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
    """What is known of one point."""

    recorded: list[Recorded] = field(default_factory=list)
    covered: Covered = field(default_factory=lambda: {FILES: None, FRAMES: None})
    last: Optional[Document] = None  # the newest look at it


class Known:
    """Of the points of one series, by its findings."""

    def __init__(self, points: Collection[Point], found: Iterable[Document]) -> None:
        """points: every Point of the series that can be read; found: what findings.load gives."""
        looks = findings.by_point(found, points, findings.VERIFY)
        self._points = {name: _by_itself(each) for name, each in looks.items()}

    def recorded(self, point: Point) -> list[Recorded]:
        """Damages of the point that are on record: [Recorded, …]."""
        return self._points[point.id].recorded

    def last_look(self, point: Point) -> str:
        """When it was last looked at, in whatever part; "" for never."""
        when: str = (self._points[point.id].last or {"when": ""})["when"]
        return when

    def is_damaged(self, point: Point, disk: str) -> bool:
        """Whether that disk of the point cannot be restored."""
        return any(each.concerns(disk) for each in self.recorded(point))

    def verdict(self, point: Point) -> Optional[dict[str, Any]]:
        """A dict of plain values, which the manual documents; None where nothing is known."""
        known = self._points[point.id]
        if known.last is None:
            return None
        word, when, level = _word(known, known.last)
        return {
            "verdict": word,
            "when": when,
            "level": level,
            "damages": sum(each.count for each in known.recorded),
            "covered": known.covered,
            "last": known.last,
        }


def _word(known: _Point, last: Document) -> tuple[str, Optional[str], Optional[str]]:
    """(verdict, when that was found, at which level)"""
    covered = known.covered
    if known.recorded:
        return DAMAGED, known.recorded[-1].when, known.recorded[-1].level
    if covered[FILES] is not None:
        return OK, covered[FILES], FRAMES if covered[FRAMES] == covered[FILES] else FILES
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
