"""The files of a series that its points answer for, as a copy into it needs to know: it makes none of these again, and
puts nothing in the place of one.

Owns: which files those are, by what points, removed ones too, and findings tell. Must not know: what is copied, or how.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Optional

from ..core import errors
from ..format import findings, moved
from ..format.manifest import FileEntry
from . import half_points, references, verdict
from .series import Point, Series


def is_there(target: Series, entry: FileEntry) -> bool:
    """Whether a file of its size has its name."""
    with suppress(errors.Damaged):
        return target.store.size(f"{target.folder}/{entry.path}") == entry.size
    return False


class CountedOn:
    """The files of a series that its points answer for: when a point was committed, they were whole and durable. Not
    those that are on record as damaged.

    They are known by path, size and digest, and no other file may take the place of one: what the source says is not
    to be trusted with what the target has. Points are read only where it is asked for: first the one in whose folder
    the file is, which made it, then the newest first.
    """

    def __init__(self, target: Series, points: Sequence[Point]) -> None:
        self._target, self._bad = target, _on_record(target, points)
        self._points = {point.id: point for point in points}
        self._unread = {**self._points}
        self._is_told = True  # by all that were read
        self._named: dict[str, FileEntry] = {}
        self._removed: Optional[dict[str, FileEntry]] = None
        self._refused: Optional[bool] = None

    @property
    def points(self) -> Collection[str]:
        """Ids of those that answer."""
        return self._points

    def has(self, entry: FileEntry) -> bool:
        return is_there(self._target, entry) and entry.path not in self._bad and self.includes(entry)

    def includes(self, entry: FileEntry) -> bool:
        """Whether any point refers to the very file, be it there or not."""
        return self._known(entry.path) == entry

    def bad(self, entries: Iterable[FileEntry]) -> set[str]:
        """Paths of those that no new point may count on: on record as damaged, or not there with their size."""
        with self._target.store.looking(self._target.folder):
            return {each.path for each in entries if each.path in self._bad or self._target.size_flaw(each)}

    def held_in(self, name: str) -> Optional[dict[str, FileEntry]]:
        """By their paths, files in the folder of a point that is not there, to which points or other removed ones
        refer; None where not all of these can be read."""
        while self._unread:
            self._read(next(iter(self._unread)))
        if not self._is_told or self._some_refused():
            return None
        found: dict[str, FileEntry] = {}
        for gone, point in half_points.removed_points(self._target).items():
            with suppress(errors.Damaged):
                entries = references.of_point(self._target, point) if gone != name else []
                found.update({entry.path: entry for entry in entries})
        return {path: entry for path, entry in {**found, **self._named}.items() if path.startswith(f"{name}/")}

    def require(self, entries: Iterable[FileEntry]) -> None:
        """Busy unless points refer to all of these files: else what was made of them may be about to go."""
        for entry in entries:
            if not self.includes(entry):
                raise errors.Busy(f"what {entry.path} was moved to may be removed any moment: copy again")

    def forget_removed(self) -> None:
        """Without locks, points may have been removed since: those answer for nothing any more."""
        left = {name: point for name, point in self._points.items() if self._is_there_yet(name)}
        if len(left) < len(self._points):
            self._points, self._unread, self._named, self._removed = left, {**left}, {}, None

    def _is_there_yet(self, name: str) -> bool:
        return self._target.store.has_locks or self._target.has_point(name)

    def add(self, point: Point, entries: Iterable[FileEntry]) -> None:
        """Of a point that was committed by now."""
        self._points[point.id] = point
        self._named.update({entry.path: entry for entry in entries})

    def require_free(self, entry: FileEntry) -> None:
        """StoreError where making the file could harm another that is there: one that points, or removed ones, refer
        to; or may, where not all can be read."""
        paths = [f"{self._target.folder}/{path}" for path in (entry.path, moved.path_of(entry.path))]
        if not any(map(self._target.store.holds, paths)):
            return
        known = self._known(entry.path) or self._of_removed().get(entry.path)
        if known is None and not self._may_be_needed(entry.path):
            return
        if known is None and is_there(self._target, entry) and not self._target.own_flaw(entry):
            return  # it is the one: nothing is to be made
        if known != entry:
            raise errors.StoreError(
                f"it refers to {entry.path} as another file than the one of that name in {self._target.store.root}, "
                "which is needed there, or may be: it stays; nbdpull verify of both stores tells more"
            )

    def _known(self, path: str) -> Optional[FileEntry]:
        self._read(path.partition("/")[0])
        while path not in self._named and self._unread:
            self._read(next(reversed(self._unread)))
        return self._named.get(path)

    def _read(self, name: str) -> None:
        point = self._unread.pop(name, None)
        try:
            for entry in references.of_point(self._target, point) if point else []:
                self._named.setdefault(entry.path, entry)
                for each in self._target.standing(entry):
                    self._named.setdefault(each.path, each)
        except errors.Damaged:
            self._is_told = False

    def _of_removed(self) -> dict[str, FileEntry]:
        """What removed points refer to, as far as they can be read: a removal can be taken back."""
        if self._removed is None:
            self._removed = {}
            for point in half_points.removed_points(self._target).values():
                with suppress(errors.Damaged):
                    self._removed.update({each.path: each for each in references.of_point(self._target, point)})
        return self._removed

    def _may_be_needed(self, path: str) -> bool:
        """Of a file that nothing is known to refer to."""
        return self._some_refused() or self._target.has_point(path.partition("/")[0])

    def _some_refused(self) -> bool:
        """Whether there are points that cannot be read."""
        if self._refused is None:
            self._refused = bool(self._target.load()[1])
        return self._refused


def _on_record(target: Series, points: Sequence[Point]) -> set[str]:
    """Paths of files that are damaged, or may be, by what verifications found."""
    known = verdict.Known(points, findings.load(target))
    found: set[str] = set()
    for point in points:
        for each in known.recorded(point):
            found |= {place["path"] for place in each.places or [] if place.get("path")}
            if each.places is None:
                with suppress(errors.Damaged):
                    found |= {entry.path for entry in references.of_point(target, point)}
    return found
