"""What one verification saw of each point of a series, and the finding that is made of it.

Owns: the places of damages on record, at which a run looks again whatever part of the store it is to look at, and which
of these damages it has settled. Must not know: how anything is looked at (inspection.py does), or what is printed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Union, cast

import numpy

from ..core import errors
from ..format import findings
from ..format.layout import Document
from ..format.manifest import DiskEntry
from . import verdict
from .part import Part
from .series import Point, Series

if TYPE_CHECKING:
    from ..core.extents import Mask
    from ..format.layout import Records

MAX_PLACES = 1000  # that a finding tells of a point
MAX_ALL_PLACES = 50_000  # that it tells; with MAX_PROBLEM characters of each it is no larger than a reader takes
MAX_PROBLEM = 500


@dataclass(frozen=True)
class Damage:
    """One thing that is not as stored. point: its folder's name; disk, range (bytes) and path, relative to the series,
    where they are known."""

    point: str
    disk: Optional[str]
    problem: str
    offset: Optional[int] = None
    length: Optional[int] = None
    path: Optional[str] = None

    @property
    def place(self) -> dict[str, Any]:
        """The same for a finding."""
        told = {name: value for name, value in vars(self).items() if name != "point"}
        return {**told, "problem": self.problem[:MAX_PROBLEM]}


class Look:
    """One look at one point. damages: what is wrong with its own files; complete: whether it came to its end."""

    def __init__(self, point: Point, recorded: list[verdict.Recorded]) -> None:
        self.point = point
        self.damages: list[Damage] = []
        self.complete = False
        self._recorded = recorded
        places = [place for each in recorded for place in each.places or []]
        self._paths = {place.get("path") for place in places if place.get("offset") is None}
        self._offsets: dict[Optional[str], list[int]] = {}
        for place in places:
            if place.get("offset") is not None:
                self._offsets.setdefault(place.get("disk"), []).append(place["offset"])

    def found(
        self,
        disk: Optional[str],
        problem: Union[str, errors.NbdpullError],
        offset: Optional[int] = None,
        length: Optional[int] = None,
        path: Optional[str] = None,
    ) -> Damage:
        """Note a damage of the point's own files; return it."""
        self.damages.append(Damage(self.point.id, disk, str(problem), offset, length, path))
        return self.damages[-1]

    def is_wanted(self, path: str) -> bool:
        """Whether the digest of that file must be looked at in any case."""
        return path in self._paths

    def wanted(self, disk: DiskEntry, records: Records) -> Mask:
        """Which of the records of a DiskEntry have frames that must be looked at in any case: an array of booleans. Of
        a file that was damaged all, unless it still is: then its digest told it."""
        numbers = [n for n, chunk in enumerate(disk.chunks) if chunk.path in self._paths - self._damaged_files()]
        mask = numpy.isin(records["offset"], numpy.array(self._offsets.get(disk.name, []), "u8"))
        return mask | numpy.isin(records["chunk"], numbers)

    def entry(self, level: str, part: Part) -> Document:
        """What a finding tells of the point; all but the verdict."""
        places = self._places()
        told = {**findings.entry(self.point), "verdict": "", "damages": len(self.damages)}
        told.update({"places": places[:MAX_PLACES]} if places else {})
        told.update({"more": True} if len(places) > MAX_PLACES else {})
        if not self.complete:
            return {**told, "complete": False}
        settled = [each.finding for each in self._recorded if self._has_settled(each, level, part)]
        return {**told, **({"settles": settled} if settled else {})}

    def _places(self) -> list[dict[str, Any]]:
        """Of each damage; those within a file that is damaged as a whole are told by that."""
        whole = {damage.path: damage.place for damage in reversed(self.damages) if damage.offset is None}
        within = [damage.place for damage in self.damages if damage.offset is not None and damage.path not in whole]
        return [*reversed(whole.values()), *within]

    def _has_settled(self, recorded: verdict.Recorded, level: str, part: Part) -> bool:
        if recorded.places is None:
            return part.is_everything and (level == verdict.FRAMES or recorded.level == verdict.FILES)
        unread = {disk.name for disk in self.point.manifest.disks if disk.index.path in self._damaged_files()}
        return not any(place.get("offset") is not None and place.get("disk") in unread for place in recorded.places)

    def _damaged_files(self) -> set[Optional[str]]:
        return {damage.path for damage in self.damages if damage.offset is None}


class Evidence:
    """All that is known of the points of a Series: what is on record, and what one run sees. level, part: the run's."""

    def __init__(self, target: Series, level: str, part: Part) -> None:
        self.target = target
        self.points, self.refused = target.load()
        self._level, self._part = level, part
        self._findings = findings.load(target)
        self.unreadable = findings.left_out(target, self._findings)  # paths
        self._looks: list[Look] = []
        self.known = self._known([])

    def _known(self, more: list[Document]) -> verdict.Known:
        return verdict.Known(self.points, [*self._findings, *more], self.refused)

    def look(self, point: Point) -> Look:
        """Begin a Look at a point."""
        self._looks.append(Look(point, self.known.recorded(point)))
        return self._looks[-1]

    def conclude(self, left_out: Collection[str]) -> Optional[Document]:
        """Let `known` be what is known now; return the members of the finding to be kept, None where there is none.
        left_out: ids of points of which nothing is proved."""
        looks = [look for look in self._looks if look.point.id not in left_out and (look.complete or look.damages)]
        if not looks:
            return None
        entries = self._bounded([look.entry(self._level, self._part) for look in looks])
        finding = {**findings.now(), "level": self._level, **self._part.members, "points": entries}
        self.known = self._known([{**finding, "kind": findings.VERIFY, "id": ""}])
        for look, about in zip(looks, entries):
            about["verdict"] = self._word(look)
        return finding

    @staticmethod
    def _bounded(entries: list[Document]) -> list[Document]:
        """Without places where there would be too many, as of a store that lost everything."""
        left = MAX_ALL_PLACES
        for about in entries:
            left -= len(about.get("places", []))
            if left < 0 and about.pop("places", None):
                about["more"] = True
        return entries

    def _word(self, look: Look) -> str:
        """What the finding says of a point: nothing good of what it did not look at, or what others know to be bad."""
        known = cast(dict[str, Any], self.known.verdict(look.point))  # at least by this look
        word: str = known["verdict"]
        if word in (verdict.DAMAGED, verdict.BASE_DAMAGED):
            return word
        return verdict.OK if look.complete and self._part.is_everything else verdict.PARTIAL
