"""Every file and page of a series, each listed once, no matter how many points share it.

Owns: which point refers to which file. Must not know: whether anything except the directories is intact, or what is
done with the files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..core import errors
from ..format import layout
from ..format.directory import Directory
from ..format.ledger import Key
from ..format.manifest import FileEntry
from . import references
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.pages import PageRef


class Page(NamedTuple):
    """One page of the index file at `path`. ref: a record of type pages.PAGE; stop: the end of the page's window."""

    path: str
    disk: str
    ref: PageRef
    stop: int

    @property
    def key(self) -> tuple[str, bytes, int]:
        return self.path, self.ref["digest"].tobytes(), self.stop


class Catalog:
    """All files and pages that the points of a series refer to.

    of_point: {id of a point: keys of its files}; unread: ids of points that are not completely listed because a
    directory is damaged.
    """

    def __init__(self) -> None:
        self.entries: dict[Key, FileEntry] = {}
        self.by_path: dict[str, FileEntry] = {}
        self.disks: dict[str, str] = {}  # {path of a file: its disk}
        self.pages: dict[str, list[Page]] = {}  # by the path of their index file
        self.of_point: dict[str, list[Key]] = {}
        self.directories: dict[str, Point] = {}  # by the directories' paths
        self.unread: set[str] = set()
        self._known: set[tuple[str, bytes, int]] = set()

    def add(self, target: Series, point: Point) -> None:
        found: list[Directory] = []
        self.directories.update((disk.directory.path, point) for disk in point.manifest.disks)
        for disk in point.disks:
            try:
                found.append(target.directory(point, disk, partial=True))
                self._add_pages(found[-1])
                self.disks.update((entry.path, disk) for entry in found[-1].files)
            except errors.Damaged:
                self.unread.add(point.id)
        entries = references.by_directories(point, found)
        self.of_point[point.id] = [self._key(entry) for entry in entries]

    def _key(self, entry: FileEntry) -> Key:
        """Return the key of a file, as the same object for every point: the points are many."""
        key = entry.path, entry.sha256
        first = self.entries.setdefault(key, entry)
        self.by_path.setdefault(first.path, first)
        return first.path, first.sha256

    def _add_pages(self, disk: Directory) -> None:
        for ref, file, digest in zip(disk.pages, disk.pages["file"].tolist(), disk.pages["digest"].tolist()):
            start, index = int(ref["offset"]), disk.files[file].path
            stop = layout.window_stop(start, disk.size)
            if (index, digest, stop) not in self._known:
                self._known.add((index, digest, stop))
                self.pages.setdefault(index, []).append(Page(index, disk.disk, ref, stop))
