"""The verdict on each point, from all that verifications found.

Owns: which recorded damage still counts, and since when everything that a point refers to has been checked. No verdict
is better than the evidence: damage counts until its place is checked again, and what was not checked is not ok. A
verification dated in the future by a wrong clock proves nothing, but the damage that it found counts. Must not know:
how anything is verified, or what is printed.
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

Covered = dict[str, Optional[str]]  # {level: time of the oldest of the checks that together covered all; None: never}


@dataclass(frozen=True)
class Recorded:
    """Damage of a point that one finding records, and no later one settles.

    places: dicts with disk, path, offset, length and problem, any of which but the last may be None; None if the
    finding does not list all places.
    """

    finding: str
    when: str
    level: str
    count: int
    places: Optional[list[dict[str, Any]]]

    @property
    def lists_all(self) -> bool:
        """Whether the finding lists all places."""
        return self.places is not None

    def files(self, disk: str) -> Optional[set[str]]:
        """Return the paths of the damaged files that may belong to a disk; None if not all are known: a window whose
        pages are intact but lead nowhere has no path."""
        if self.places is None:
            return None
        found = [place.get("path") for place in self.places if place.get("disk") in (None, disk)]
        return None if None in found else {path for path in found if path is not None}


@dataclass
class _Point:
    """What is known of one point."""

    recorded: list[Recorded] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)  # ids of findings whose damage of the point later ones settle
    covered: Covered = field(default_factory=lambda: {FILES: None, FRAMES: None})
    looked: str = ""  # when the point was last checked
    last: Optional[Document] = None  # that check; if all are dated in the future, the newest


class Known:
    """What the findings of a series record about its points."""

    def __init__(self, points: Collection[Point], found: Iterable[Document], ledgers: Iterable[Document] = ()) -> None:
        """points: every Point of the series that can be read; found: from findings.load; ledgers: from ledger.load,
        needed only for the verdicts."""
        looks, now = findings.by_point(found, points, findings.VERIFY), findings.now()["when"]
        proved = ledger.by_point(ledgers, points)
        self._points = {name: _by_itself(each, proved[name], now) for name, each in looks.items()}

    def recorded(self, point: Point) -> list[Recorded]:
        """Return the recorded damage of the point: [Recorded, …]."""
        return self._points[point.id].recorded

    def settled(self, point: Point) -> list[str]:
        """Return the ids of the existing findings that report damage of the point which others settle."""
        return self._points[point.id].settled

    def lists_all(self, points: Iterable[Point]) -> bool:
        """Return whether all places of the recorded damage of these points are known."""
        return all(each.lists_all for point in points for each in self.recorded(point))

    def names(self, point: Point, paths: Collection[str]) -> bool:
        """Return whether damage of one of these files is recorded for the point."""
        return any(place.get("path") in paths for each in self.recorded(point) for place in each.places or [])

    def last_look(self, point: Point) -> str:
        """Return when any part of the point was last checked; "" for never."""
        return self._points[point.id].looked

    def covered(self, point: Point) -> Covered:
        """Return since when everything of the point is proved, by level."""
        return self._points[point.id].covered

    def damaged_files(self, point: Point, disk: str) -> Optional[frozenset[str]]:
        """Return the paths of the files recorded as damaged that may belong to a disk; None if not all are known."""
        found = [each.files(disk) for each in self.recorded(point)]
        return None if None in found else frozenset(path for paths in found for path in paths or ())

    def verdict(self, point: Point) -> Optional[dict[str, Any]]:
        """Return the verdict as a dict of plain values, which the manual documents; None if nothing is known."""
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
    """Return (verdict, when it was found, at which level); all None if nothing is known."""
    covered = known.covered
    if known.recorded:
        return DAMAGED, known.recorded[-1].when, known.recorded[-1].level
    if covered[FILES] is not None:
        return OK, covered[FILES], FRAMES if covered[FRAMES] == covered[FILES] else FILES
    return (PARTIAL, known.looked, known.last["level"]) if known.looked and known.last else (None, None, None)


def _by_itself(found: list[tuple[Document, Document]], proved: list[tuple[Document, Document]], now: str) -> _Point:
    """Return the _Point of [(finding, its entry about the point), …], oldest first. proved: the same of ledgers, which
    record no damage."""
    past = [each for each in found if each[0]["when"] <= now]
    covered = {level: _later(_by_runs(past, level), _by_files(proved, level, now)) for level in Level.WORDS}
    documents = sorted((each for each, _ in [*found, *proved]), key=lambda each: (each["when"] <= now, each["when"]))
    last = (
        {name: documents[-1].get(name) for name in ("when", "who", "level", "sample", "shard")} if documents else None
    )
    looked = max((each["when"] for each in documents if each["when"] <= now), default="")
    names = {name for _, about in found for name in about.get("settles", [])}
    settled = [each["id"] for each, about in found if about["damages"] and each["id"] in names]
    return _Point(_recorded(found, settled), settled, covered, looked, last)


def _recorded(found: list[tuple[Document, Document]], settled: Collection[str]) -> list[Recorded]:
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
    """Return when runs over the whole point, or over each of n shards, last covered everything."""
    whole: Optional[str] = None
    shards: dict[int, dict[int, str]] = {}
    for finding, about in found:
        if level not in proved_levels(finding, about):
            continue
        if finding.get("shard") is None:
            whole = finding["when"]
        else:
            number, count = finding["shard"]
            if 1 <= number <= count:  # anybody who can write to the store can write any number
                shards.setdefault(count, {})[number] = finding["when"]
    return _later(whole, *(min(seen.values()) for count, seen in shards.items() if len(seen) == count))


def proved_levels(finding: Document, about: Document) -> tuple[str, ...]:
    """Return the levels at which a finding proves all of the point that its entry is about, or of its shard of it."""
    if finding.get("sample") or not about.get("complete", True):
        return ()
    return (FILES, FRAMES) if finding["level"] == FRAMES else (FILES,)


def _by_files(proved: list[tuple[Document, Document]], level: str, now: str) -> Optional[str]:
    """Return since when all files are proved."""
    times = [about.get(level) for _, about in proved]
    return _later(*(when for when in times if when and when <= now))


def _later(*times: Optional[str]) -> Optional[str]:
    return max((each for each in times if each), default=None)
