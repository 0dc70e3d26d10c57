"""What is known of each point by all that verifications found.

Owns: which damages are still on record, and since when all that a point refers to has been looked at. No verdict
flatters: a damage stays until a look at its place, and what nobody looked at is not well; a look that a wrong clock put
after now proves nothing, and its damages count all the same. Must not know: how anything is verified, or what is
printed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from ..core.choices import Level
from ..format import findings, ledger
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

    @property
    def is_told(self) -> bool:
        """Whether the finding tells of all of them."""
        return self.places is not None

    def files(self, disk: str) -> Optional[set[str]]:
        """Paths of the damaged files that may be that disk's; None where it does not tell them all: of a window whose
        pages are sound and lead nowhere, there is none to tell."""
        if self.places is None:
            return None
        found = [place.get("path") for place in self.places if place.get("disk") in (None, disk)]
        return None if None in found else {path for path in found if path is not None}


@dataclass
class _Point:
    """What is known of one point."""

    recorded: list[Recorded] = field(default_factory=list)
    covered: Covered = field(default_factory=lambda: {FILES: None, FRAMES: None})
    looked: str = ""  # when it was last looked at
    last: Optional[Document] = None  # that look; where all are after now, the newest


class Known:
    """Of the points of one series, by its findings."""

    def __init__(self, points: Collection[Point], found: Iterable[Document], ledgers: Iterable[Document] = ()) -> None:
        """points: every Point of the series that can be read; found: what findings.load gives; ledgers: what
        ledger.load gives, needed for the verdicts alone."""
        looks, now = findings.by_point(found, points, findings.VERIFY), findings.now()["when"]
        proved = ledger.by_point(ledgers, points)
        self._points = {name: _by_itself(each, proved[name], now) for name, each in looks.items()}

    def recorded(self, point: Point) -> list[Recorded]:
        """Damages of the point that are on record: [Recorded, …]."""
        return self._points[point.id].recorded

    def is_told(self, points: Iterable[Point]) -> bool:
        """Whether all damages of these points are told."""
        return all(each.is_told for point in points for each in self.recorded(point))

    def names(self, point: Point, paths: Collection[str]) -> bool:
        """Whether a damage of one of these files is on record for the point."""
        return any(place.get("path") in paths for each in self.recorded(point) for place in each.places or [])

    def last_look(self, point: Point) -> str:
        """When it was last looked at, in whatever part; "" for never."""
        return self._points[point.id].looked

    def covered(self, point: Point) -> Covered:
        """Since when all of it is proved."""
        return self._points[point.id].covered

    def damaged_files(self, point: Point, disk: str) -> Optional[frozenset[str]]:
        """Paths of the damaged files on record that may be that disk's; None where not all are told."""
        found = [each.files(disk) for each in self.recorded(point)]
        return None if None in found else frozenset(path for paths in found for path in paths or ())

    def verdict(self, point: Point) -> Optional[dict[str, Any]]:
        """A dict of plain values, which the manual documents; None where nothing is known."""
        known = self._points[point.id]
        word, when, level = _word(known)
        if word is None or known.last is None:
            return None
        return {
            "verdict": word,
            "when": when,
            "level": level,
            "damages": sum(each.count for each in known.recorded),
            "covered": known.covered,
            "last": known.last,
        }


def _word(known: _Point) -> tuple[Optional[str], Optional[str], Optional[str]]:
    """(verdict, when that was found, at which level)"""
    covered = known.covered
    if known.recorded:
        return DAMAGED, known.recorded[-1].when, known.recorded[-1].level
    if covered[FILES] is not None:
        return OK, covered[FILES], FRAMES if covered[FRAMES] == covered[FILES] else FILES
    return (PARTIAL, known.looked, known.last["level"]) if known.looked and known.last else (None, None, None)


def _by_itself(found: list[tuple[Document, Document]], proved: list[tuple[Document, Document]], now: str) -> _Point:
    """A _Point of [(finding, its entry about the point), …], oldest first. proved: the same of ledgers, which tell
    nothing of damages."""
    past = [each for each in found if each[0]["when"] <= now]
    covered = {level: _later(_by_runs(past, level), _by_files(proved, level, now)) for level in Level.WORDS}
    documents = sorted((each for each, _ in [*found, *proved]), key=lambda each: (each["when"] <= now, each["when"]))
    last = (
        {name: documents[-1].get(name) for name in ("when", "who", "level", "sample", "shard")} if documents else None
    )
    looked = max((each["when"] for each in documents if each["when"] <= now), default="")
    return _Point(_recorded(found), covered, looked, last)


def _recorded(found: list[tuple[Document, Document]]) -> list[Recorded]:
    settled = {name for _, about in found for name in about.get("settles", [])}
    return [
        Recorded(
            finding["id"],
            finding["when"],
            finding["level"],
            about["damages"],
            None if about.get("more") else about.get("places"),
        )
        for finding, about in found
        if about["damages"] and finding["id"] not in settled
    ]


def _by_runs(found: list[tuple[Document, Document]], level: str) -> Optional[str]:
    """When runs over the whole point, or one of each of n shards, last saw everything."""
    whole: Optional[str] = None
    shards: dict[int, dict[int, str]] = {}
    for finding, about in found:
        if finding.get("sample") or not about.get("complete", True) or level not in (finding["level"], FILES):
            continue
        if finding.get("shard") is None:
            whole = finding["when"]
        else:
            number, count = finding["shard"]
            if 1 <= number <= count:  # who can write to the store can write anything
                shards.setdefault(count, {})[number] = finding["when"]
    return _later(whole, *(min(seen.values()) for count, seen in shards.items() if len(seen) == count))


def _by_files(proved: list[tuple[Document, Document]], level: str, now: str) -> Optional[str]:
    """Since when all files are proved."""
    times = [about.get(level) for _, about in proved]
    return _later(*(when for when in times if when and when <= now))


def _later(*times: Optional[str]) -> Optional[str]:
    return max((each for each in times if each), default=None)
