"""The files of a series on which a copy into the series relies: it neither makes them again nor replaces any of them.

Owns: which files these are, according to points, removed points and findings. Must not know: what is copied, or how.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Optional

from ..core import errors
from ..core.errors import Check
from ..format import findings, moved
from ..format.manifest import FileEntry
from . import half_points, references, verdict
from .series import Point, Series


def is_there(target: Series, entry: FileEntry) -> bool:
    """Return whether a file with the name and size of the entry exists."""
    with suppress(errors.Damaged):
        return target.store.size(f"{target.folder}/{entry.path}") == entry.size
    return False


class Present:
    """Which files a series has, by name and size. With locks, what is there stays while the caller holds the series, so
    each file is looked for until it was seen: points share most of their files."""

    def __init__(self, target: Series) -> None:
        self._target = target
        self._seen: set[FileEntry] = set()

    def __call__(self, entry: FileEntry) -> bool:
        if entry in self._seen:
            return True
        found = is_there(self._target, entry)
        if found and self._target.store.has_locks:
            self._seen.add(entry)
        return found

    def forget(self) -> None:
        """Look for every file again: the caller may have removed some."""
        self._seen.clear()


class CountedOn:
    """The files of a series that its points vouch for: when a point was committed, its files were whole and durable.
    Files recorded as damaged are left out.

    A file is identified by path, size and digest, and no other file may replace it: the target's files are not
    entrusted to what the source says. Points are read only when needed: first the point in whose folder the file is,
    which made it, then the others from the newest to the oldest.
    """

    def __init__(self, target: Series, points: Sequence[Point]) -> None:
        self._target, self._bad = target, _on_record(target, points)
        self.present = Present(target)
        self._points = {point.id: point for point in points}
        self._unread = {**self._points}
        self._all_readable = True  # whether every point read so far could be read completely
        self._named: dict[str, FileEntry] = {}
        self._removed: Optional[dict[str, FileEntry]] = None
        self._refused: Optional[bool] = None

    @property
    def points(self) -> Collection[str]:
        """Ids of the points that vouch for the files."""
        return self._points

    def has(self, entry: FileEntry) -> bool:
        """Return whether the file exists with the right size, is not recorded as damaged, and a point refers to it."""
        return self.present(entry) and entry.path not in self._bad and self.includes(entry)

    def includes(self, entry: FileEntry) -> bool:
        """Return whether any point refers to exactly this file, even if the file is missing."""
        return self._known(entry.path) == entry

    def is_recorded(self, entry: FileEntry) -> bool:
        """Return whether the file is recorded as damaged."""
        return entry.path in self._bad

    def bad(self, entries: Iterable[FileEntry]) -> set[str]:
        """Return the paths of the files on which no new point may rely: recorded as damaged, missing, or of the wrong
        size."""
        with self._target.store.looking(self._target.folder):
            return {each.path for each in entries if each.path in self._bad or self._target.size_flaw(each)}

    def held_in(self, name: str) -> Optional[dict[str, FileEntry]]:
        """Return {path: file} of the files in the folder of an absent point to which existing points or other removed
        points refer; None if not every existing point can be read."""
        while self._unread:
            self._read(next(iter(self._unread)))
        if not self._all_readable or self._some_refused():
            return None
        found = {**_of_removed(self._target, but=name), **self._named}
        return {path: entry for path, entry in found.items() if path.startswith(f"{name}/")}

    def require(self, entries: Iterable[FileEntry]) -> None:
        """Raise Busy unless points refer to all of these files: otherwise the files that they were moved to may soon be
        removed."""
        for entry in entries:
            if not self.includes(entry):
                raise errors.Busy(
                    f"what {entry.path} was moved to may be removed at any moment; copy again a day after nbdpull "
                    "prune has removed it"
                )

    def forget_removed(self) -> None:
        """Stop relying on points that were removed meanwhile, which can happen in a store without locks."""
        left = {name: point for name, point in self._points.items() if self._is_there_yet(name)}
        if len(left) < len(self._points):
            self._points, self._unread, self._named, self._removed = left, {**left}, {}, None

    def _is_there_yet(self, name: str) -> bool:
        return self._target.store.has_locks or self._target.has_point(name)

    def add(self, point: Point, entries: Iterable[FileEntry]) -> None:
        """Rely on the files of a point that has just been committed."""
        self._points[point.id] = point
        self._named.update({entry.path: entry for entry in entries})

    def require_free(self, entry: FileEntry, check: Check) -> None:
        """Raise StoreError if making the file could harm another existing file to which points or removed points refer,
        or may refer if some of them cannot be read. Then the existing file may have to be read as a whole."""
        paths = [f"{self._target.folder}/{path}" for path in (entry.path, moved.path_of(entry.path))]
        if not any(map(self._target.store.holds, paths)):
            return
        known = self._known(entry.path) or self._known_to_removed(entry.path)
        if known is None and not self._may_be_needed(entry.path):
            return
        if known is None and is_there(self._target, entry) and not self._target.own_flaw(entry, check):
            return  # the file itself exists already
        if known != entry:
            raise errors.StoreError(
                f"its file {entry.path} differs from the one of that name in {self._target.store.root}, which is or "
                "may be needed there, and is kept: run nbdpull verify on both stores"
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
                for each in self._target.holding(entry):
                    self._named.setdefault(each.path, each)
        except errors.Damaged:
            self._all_readable = False

    def _known_to_removed(self, path: str) -> Optional[FileEntry]:
        if self._removed is None:
            self._removed = _of_removed(self._target)
        return self._removed.get(path)

    def _may_be_needed(self, path: str) -> bool:
        """Return whether a file that no known point refers to may be needed nevertheless."""
        return self._some_refused() or self._target.has_point(path.partition("/")[0])

    def _some_refused(self) -> bool:
        """Return whether some points cannot be read."""
        if self._refused is None:
            self._refused = bool(self._target.load()[1])
        return self._refused


def _of_removed(target: Series, but: str = "") -> dict[str, FileEntry]:
    """Return {path: file} of the files of the removed points that can be read: a removal can be undone. but: id of a
    point to leave out."""
    found: dict[str, FileEntry] = {}
    for name, point in half_points.removed_points(target).items():
        with suppress(errors.Damaged):
            entries = references.of_point(target, point) if name != but else []
            found.update({entry.path: entry for entry in entries})
    return found


def _on_record(target: Series, points: Sequence[Point]) -> set[str]:
    """Return the paths of the files that verifications recorded as damaged, or as possibly damaged."""
    known = verdict.Known(points, findings.load(target))
    found: set[str] = set()
    for point in points:
        for each in known.recorded(point):
            found |= {place["path"] for place in each.places or [] if place.get("path")}
            if each.places is None:
                with suppress(errors.Damaged):
                    found |= {entry.path for entry in references.of_point(target, point)}
    return found
