"""What one verification saw of each point of a series, and the finding that it makes from that.

Owns: the recorded places of damage, which a run checks again whatever part of the store it covers, and which of these
damages the run has settled. Must not know: how anything is checked (inspection.py does that), or what is printed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy

from ..core import errors, extents
from ..format import findings, layout, ledger, stack
from ..format.layout import Document
from ..format.ledger import NEVER, Key, Proof
from ..format.manifest import FileEntry
from . import outdated, references, verdict
from .part import Part
from .series import Point, Series

if TYPE_CHECKING:
    from ..core.extents import Mask
    from ..format.directory import Directory
    from ..format.layout import Records

MAX_PLACES = 1000  # in a finding, per point
MAX_ALL_PLACES = 50_000  # in a finding; with MAX_PROBLEM characters for each, a reader still accepts its size
MAX_PROBLEM = 500
MAX_SETTLED = 50  # in a finding, per point, of what others settle: more exist only where they cannot be removed


@dataclass(frozen=True)
class Damage:
    """One thing that is not as stored.

    point: name of the point's folder; disk, range (bytes) and path (relative to the series): None if unknown.
    """

    point: str
    disk: Optional[str]
    problem: str
    offset: Optional[int] = None
    length: Optional[int] = None
    path: Optional[str] = None

    @property
    def place(self) -> dict[str, Any]:
        """The damage as an entry of a finding's `places`."""
        values = {name: value for name, value in vars(self).items() if name != "point"}
        return {**values, "problem": self.problem[:MAX_PROBLEM]}


class Look:
    """One check of one point.

    damages: all that was found in anything that the point refers to; ended: whether the check came to its end; unread:
    disks with a damaged directory, which hides what there is to check; seen: files of which every frame was checked, in
    a run over some files only.
    """

    def __init__(self, point: Point, recorded: list[verdict.Recorded]) -> None:
        self.point = point
        self._noted: dict[Damage, None] = {}  # in the order found
        self.ended = False
        self.unread: set[str] = set()
        self.seen: set[str] = set()
        self._recorded = recorded
        places = [place for each in recorded for place in each.places or []]
        self._paths = {place.get("path") for place in places if place.get("offset") is None}
        self._offsets: dict[Optional[str], list[int]] = {}
        for place in places:
            if place.get("offset") is not None:
                self._offsets.setdefault(place.get("disk"), []).append(place["offset"])

    @property
    def complete(self) -> bool:
        """Whether everything that the run was to check of the point was checked."""
        return self.ended and not self._blind() - {None}

    @property
    def damages(self) -> list[Damage]:
        return list(self._noted)

    @property
    def has_recorded(self) -> bool:
        """Whether damage of the point is recorded: then the whole point is checked anew."""
        return bool(self._recorded)

    def found(
        self,
        disk: Optional[str],
        problem: Union[str, errors.NbdpullError],
        offset: Optional[int] = None,
        length: Optional[int] = None,
        path: Optional[str] = None,
    ) -> Damage:
        """Note a damage, and return it."""
        damage = Damage(self.point.id, disk, str(problem), offset, length, path)
        self._noted[damage] = None
        return damage

    def is_wanted(self, path: str) -> bool:
        """Return whether the digest of the file must be checked in any case."""
        return path in self._paths

    def wanted(self, disk: Directory, records: Records) -> Mask:
        """Return which of the records of a disk have frames that must be checked in any case, as an array of booleans.

        If a file was recorded as damaged, these are all its frames, unless it is still damaged: its digest has shown
        that.
        """
        if not self._recorded:
            return numpy.zeros(len(records), bool)
        mended = self._paths - self._damaged_files()
        numbers = [n for n, entry in enumerate(disk.files) if entry.path in mended]
        mask = numpy.isin(records["offset"], numpy.array(self._offsets.get(disk.disk, []), "u8"))
        return mask | numpy.isin(records["chunk"], numbers)

    def entry(self, level: str, part: Part) -> Document:
        """Return the entry of the point in a finding, complete except for the verdict."""
        places = self._places()
        entry = {**findings.entry(self.point), "verdict": "", "damages": len(self.damages)}
        entry.update({"places": places[:MAX_PLACES]} if places else {})
        entry.update({"more": True} if len(places) > MAX_PLACES else {})
        if not self.complete or part.paths is not None:  # of some files, the ledger records it
            entry["complete"] = False
        settled = [each.finding for each in self._recorded if self.ended and self._has_settled(each, level, part)]
        return {**entry, **({"settles": settled} if settled else {})}

    @property
    def is_news(self) -> bool:
        """Whether the check saw anything other than what is recorded for the places that it covered."""
        recorded = [place for each in self._recorded for place in each.places or []]
        members, each = ("disk", "path", "offset", "length"), (self._looked_at(recorded), self._places(), recorded)
        looked, seen, known = ({tuple(map(place.get, members)) for place in places} for places in each)
        return not looked <= seen <= known

    def _places(self) -> list[dict[str, Any]]:
        """Return the place of each damage. A damaged file covers all damage within it."""
        whole = {damage.path: damage.place for damage in reversed(self.damages) if damage.offset is None}
        within = [damage.place for damage in self.damages if damage.offset is not None and damage.path not in whole]
        return [*reversed(whole.values()), *within]

    def _has_settled(self, recorded: verdict.Recorded, level: str, part: Part) -> bool:
        if recorded.places is None:
            is_deep = level == verdict.FRAMES or recorded.level == verdict.FILES
            return part.is_everything and is_deep and not self._blind() - {None}
        return len(self._looked_at(recorded.places)) == len(recorded.places)

    def _looked_at(self, places: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those of the recorded places that this check covered. What an unread directory names is unknown."""
        blind, own = self._blind(), {entry.path for entry in self.point.manifest.all_files()}

        def is_one(place: dict[str, Any]) -> bool:
            if place.get("offset") is not None:
                return place.get("disk") not in blind
            return not self.unread or place.get("path") in own or place.get("disk") not in {None, *self.unread}

        return [*filter(is_one, places)]

    def _blind(self) -> set[Optional[str]]:
        """Return the disks of which some window could not be read."""
        return {damage.disk for damage in self.damages if damage.path and not layout.CHUNK_PATH.match(damage.path)}

    def _damaged_files(self) -> set[Optional[str]]:
        return {damage.path for damage in self.damages if damage.offset is None}


class Evidence:
    """Everything known about the points of a Series: what is recorded, and what one run sees. level, part: those of the
    run."""

    def __init__(self, target: Series, level: str, part: Part) -> None:
        self.target = target
        self._level, self._part = level, part
        with target.store.looking(target.folder):
            self.points, self.refused = target.load()
            self._findings, self.ledgers = findings.load(target), ledger.load(target)
            self.unreadable = findings.left_out(target, self._findings)  # messages
        self._looks: list[Look] = []
        self.known = self._known([])

    def _known(self, more: list[Document]) -> verdict.Known:
        return verdict.Known(self.points, [*self._findings, *more], self.ledgers)

    def proved_by_runs(self, of_point: Mapping[str, Iterable[Key]]) -> dict[Key, Proof]:
        """Return what runs over whole points proved of the points' files. of_point: {id of a point: the files it refers
        to}."""
        proved: dict[Key, Proof] = {}

        def note(names: Iterable[str], level: str, when: str) -> None:
            for key in {key for name in names for key in of_point.get(name, ())}:
                proved[key] = proved.get(key, NEVER).with_one(level, when)

        for point in self.points:
            if when := self.known.covered(point)[verdict.FILES]:
                note([point.id], verdict.FILES, when)
        for when, names in self._runs_over_all():
            note(names, verdict.FRAMES, when)
        return proved

    def remove_outdated(self) -> None:
        """Remove findings that were outdated before the run began."""
        outdated.remove(self.target, self._findings)

    def _runs_over_all(self) -> Iterator[tuple[str, set[str]]]:
        """Yield (when, ids of points) of the last run that saw every frame of all points that existed then, if any. A
        run over fewer points did not see the frames that the others show of shared files."""
        looks, now = findings.by_point(self._findings, self.points, findings.VERIFY), findings.now()["when"]
        seen: dict[str, tuple[str, set[str]]] = {}
        for name, each in looks.items():
            for document, about in each:
                is_whole = about.get("complete", True) and not (document.get("sample") or document.get("shard"))
                if is_whole and document["level"] == verdict.FRAMES and document["when"] <= now:
                    seen.setdefault(document["id"], (document["when"], set()))[1].add(name)
        order = {point.id: point.manifest.sequence for point in self.points}
        whole = [
            (when, names)
            for when, names in seen.values()
            if names == {name for name in order if order[name] <= max(order[each] for each in names)}
        ]
        yield from sorted(whole)[-1:]

    def look(self, point: Point) -> Look:
        """Begin a Look at a point."""
        self._looks.append(Look(point, self.known.recorded(point)))
        return self._looks[-1]

    def conclude(self, left_out: Collection[str]) -> Optional[Document]:
        """Update `known` with what the run saw, and with `ledgers`; return the members of the finding to be stored,
        None if there is nothing to store. left_out: ids of points of which nothing is proved."""
        self._spread()
        looks = [look for look in self._looks if look.point.id not in left_out and (look.complete or look.damages)]
        if self._part.paths is not None:  # such runs are frequent
            looks = [look for look in looks if look.is_news]
        if not looks:
            self.known = self._known([])
            return None
        entries = self._bounded([self._entry(look) for look in looks])
        finding = {**findings.now(), "level": self._level, **self._part.members, "points": entries}
        self.known = self._known([{**finding, "kind": findings.VERIFY, "id": ""}])
        for look, about in zip(looks, entries):
            about["verdict"] = self._word(look)
        return finding

    def _entry(self, look: Look) -> Document:
        """Return the entry of a point. It also names what is settled already, so that the findings that did it are not
        needed any more: else a chain of them would remain as long as its first one reports damage of another point."""
        entry = look.entry(self._level, self._part)
        settles = [*dict.fromkeys([*entry.get("settles", []), *self.known.settled(look.point)[-MAX_SETTLED:]])]
        return {**entry, **({"settles": settles} if settles else {})}

    def _spread(self) -> None:
        """Note each damage for every point that refers to the damaged thing, whether the point was checked or not."""
        shared = self._shared()
        looks = {look.point.id: look for look in self._looks}
        for point in self.points if shared else []:
            for damage in self._also(point, looks.get(point.id), shared):
                if point.id not in looks:
                    looks[point.id] = self.look(point)
                looks[point.id].found(damage.disk, damage.problem, damage.offset, damage.length, damage.path)

    def _shared(self) -> list[Damage]:
        """Return the damage of files, and of places in files that are not damaged as a whole."""
        found = {(each.path, each.offset): each for look in self._looks for each in look.damages if each.path}
        found.update({(path, None): each for path, each in self._moved_with(list(found.values()))})
        return [each for path, at in found if at is None or (path, None) not in found for each in [found[path, at]]]

    def _moved_with(self, damages: list[Damage]) -> Iterator[tuple[str, Damage]]:
        """Yield (path, damage) of each other file whose frames were moved to a damaged file; it may belong to points
        that were not checked."""
        known = {damage.path: damage for damage in damages if damage.offset is None}
        if not known:
            return
        moved_to = {entry.path: new for entry in self._chunks() if (new := self._moved_to(entry)) is not None}
        blame = {each: damage for path, damage in known.items() if path for each in moved_to.get(path, [])}
        bad = {each: damage for each, damage in blame.items() if self.target.own_flaw(each)}
        for path, new in moved_to.items():
            for damage in {bad[each] for each in new if each in bad and path not in known}:
                yield path, replace(damage, path=path)

    def _chunks(self) -> Iterator[FileEntry]:
        """Yield each chunk file that the points name, once."""
        found: set[FileEntry] = set()
        for point in self.points:
            for disk in point.disks:
                with suppress(errors.Damaged):
                    found |= {*self.target.directory(point, disk, partial=True).chunks}
        yield from found

    def _moved_to(self, entry: FileEntry) -> Optional[list[FileEntry]]:
        """Return the files that hold the frames of this one now; None if it was not moved, or if that is unknown."""
        with suppress(errors.Damaged):
            held = self.target.holding(entry)
            return None if held == [entry] else held
        return None

    def _also(self, point: Point, look: Optional[Look], shared: list[Damage]) -> Iterator[Damage]:
        """Yield the damage that affects the point, too, and that no check of the point has noted or would have seen."""
        noted = {(each.path, each.offset) for each in look.damages} if look else set()
        sees_all = look is not None and look.complete and self._level == verdict.FRAMES and self._part.is_everything
        seen = look.seen if look else set()
        needs = Needs(self.target, point)
        for damage in shared:
            is_seen = damage.offset is not None and (sees_all or damage.path in seen)
            known = (damage.path, damage.offset) in noted or is_seen
            if not known and needs.includes(damage):
                yield damage

    @staticmethod
    def _bounded(entries: list[Document]) -> list[Document]:
        """Return the entries without places once there are too many, as in a store that lost everything."""
        left = MAX_ALL_PLACES
        for about in entries:
            left -= len(about.get("places", []))
            if left < 0 and about.pop("places", None):
                about["more"] = True
        return entries

    def _word(self, look: Look) -> str:
        """Return the verdict of the finding on a point: never a good one for what was not checked, or is recorded as
        damaged."""
        if self.known.recorded(look.point):
            return verdict.DAMAGED
        return verdict.OK if look.complete and self._part.is_everything else verdict.PARTIAL


class Needs:
    """What a point refers to, as far as its directories are intact. is_alone: whether all of it is the point's own."""

    def __init__(self, target: Series, point: Point) -> None:
        self._disks = {each.disk: each for each in references.readable(target, point)}
        self._paths = {entry.path for entry in references.by_directories(point, self._disks.values())}
        self.is_alone = all(path.startswith(f"{point.id}/") for path in self._paths)

    def includes(self, damage: Damage) -> bool:
        """Return whether the point needs the damaged file, or the damaged range of it."""
        disk, start, length = self._disks.get(damage.disk or ""), damage.offset, damage.length or 0
        if damage.path not in self._paths or disk is None or start is None:
            return damage.path in self._paths
        if not (0 <= start < disk.size and 0 <= length <= disk.size):  # a finding can be forged
            return True
        return _shows(disk, damage.path, start, length)


def _shows(disk: Directory, path: str, offset: int, length: int) -> bool:
    """Return whether a disk has a page in that index file there, or shows a frame of that chunk file there."""
    start, number = layout.window_start(offset), disk.number(path)
    if not layout.CHUNK_PATH.match(path):
        return bool((disk.refs(start)["file"] == number).any())
    try:
        data = stack.data_of(disk.window(start).flat())
    except errors.Damaged:
        return True
    return bool((extents.clip(data, offset, offset + length)["chunk"] == number).any())
