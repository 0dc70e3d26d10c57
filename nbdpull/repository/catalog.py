"""Every file and page of a series, once, however many points share it.

Owns: which point refers to which file. Must not know: what is sound but the directories, what is done with the files.
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
    """One page of the index at path. ref: pages.PAGE; stop: the end of its window."""

    path: str
    disk: str
    ref: PageRef
    stop: int

    @property
    def key(self) -> tuple[str, bytes, int]:
        return self.path, self.ref["digest"].tobytes(), self.stop


class Catalog:
    """Every file that the points of a series refer to, and every page. of_point: the files of each, by its id; unread:
    ids of those of which not all is known, as a directory is not sound."""

    def __init__(self) -> None:
        self.entries: dict[Key, FileEntry] = {}
        self.by_path: dict[str, FileEntry] = {}
        self.disks: dict[str, str] = {}  # by the paths of their files
        self.pages: dict[str, list[Page]] = {}  # by the path of their index
        self.of_point: dict[str, list[Key]] = {}
        self.directories: dict[str, Point] = {}  # by their paths
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
        """The same object for each point: there are many of them."""
        key = entry.path, entry.sha256
        first = self.entries.setdefault(key, entry)
        self.by_path.setdefault(first.path, first)
        return first.path, first.sha256

    def _add_pages(self, disk: Directory) -> None:
        for ref, file, digest in zip(disk.pages, disk.pages["file"].tolist(), disk.pages["digest"].tolist()):
            start, index = int(ref["offset"]), disk.files[file].path
            stop = min(start + layout.WINDOW, disk.size)
            if (index, digest, stop) not in self._known:
                self._known.add((index, digest, stop))
                self.pages.setdefault(index, []).append(Page(index, disk.disk, ref, stop))
