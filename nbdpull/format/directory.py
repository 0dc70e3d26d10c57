"""The directory of a disk at a point, open for reading: its windows, each assembled from its pages.

Owns: the check that every page is the one that was stored, and which parts of each page show. Must not know: points,
where the bytes go, how a directory is written (index_writer.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import numpy

from ..core import errors, extents
from ..core.errors import Check
from ..storage.base import Store
from . import layout, pages, reader, stack
from .manifest import DiskEntry, FileEntry

if TYPE_CHECKING:
    from ..core.extents import Extents, Segments
    from .pages import PageRefs

NOWHERE = (1 << 32) - 1  # number of a chunk file that a page names, but the directory does not list
_ABOUT = ("offset", "position", "stored", "raw", "records", "digest")  # fields of a PAGE that fit any directory
MAX_KEPT = 1 << 26  # bytes of pages that a PageReader keeps
HELD = 4  # assembled windows that a Directory keeps: those used last


class Window(NamedTuple):
    """A part of the disk, from start to stop.

    segments: extents.SEGMENT, sorted. The record of a segment is layers[segment.layer][segment.record]; its chunk is an
    index into the directory's files. Bytes in no segment read as zero if the disk is whole, else they did not change.
    """

    start: int
    stop: int
    segments: Segments
    layers: list[layout.Records]

    def flat(self) -> layout.Records:
        """Return what shows, as records."""
        return stack.shown(self.segments, self.layers)


def read_page(store: Store, series: str, path: str, ref: numpy.void, disk: str, stop: int) -> pages.Page:
    """Return the page that a PAGE refers to, from an index file, for a window that ends at `stop`. Damaged."""
    page = reader.page(store, f"{series}/{path}", ref, disk)
    flaw = pages.page_flaw(page, int(ref["offset"]), stop)
    if flaw:
        raise errors.Damaged(f"{store.path(series, path)}: the index holds {flaw}")
    return page


ReadPage = Callable[[Store, str, str, numpy.void, str, int], pages.Page]


class Directory:
    """The directory of one disk. May be used by several threads at once. Damaged if it is not what was stored.

    files: FileEntry of every index and chunk file; live, pages: see pages.Directory; bad, again: see SoundPart.
    """

    bad: frozenset[str] = frozenset()
    again: Extents = extents.of([])

    def __init__(self, store: Store, series: str, disk: DiskEntry, read: ReadPage = read_page) -> None:
        self._store, self._series, self._read_page = store, series, read
        self.disk, self.size, self.whole = disk.name, disk.size, disk.whole
        found = store.proved(lambda: _read(store, f"{series}/{disk.directory.path}", disk))
        self.files, self.live, self.pages = found.files, found.live, found.pages
        self._lock = threading.Lock()
        self._held: OrderedDict[int, Window] = OrderedDict()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {entry.path: number for number, entry in enumerate(self.files)}

    @property
    def chunks(self) -> list[FileEntry]:
        """The FileEntry of each chunk file."""
        return [entry for entry in self.files if layout.CHUNK_PATH.match(entry.path)]

    @property
    def indexes(self) -> list[FileEntry]:
        """The FileEntry of each index file."""
        return [entry for entry in self.files if layout.INDEX_PATH.match(entry.path)]

    def starts(self) -> list[int]:
        """Return the offsets of the windows that have pages, ascending."""
        return list(dict.fromkeys(self.pages["offset"].tolist()))

    def refs(self, start: int) -> PageRefs:
        """Return the PAGE of each page of a window, the oldest first."""
        first, last = (self.pages["offset"].searchsorted(numpy.uint64(start), side=side) for side in ("left", "right"))
        found: PageRefs = self.pages[first:last]
        return found

    def window(self, start: int) -> Window:
        """Return the window that begins at `start`. Damaged."""
        with self._lock:
            if start in self._held:
                self._held.move_to_end(start)
                return self._held[start]
        found = self._window(start)
        with self._lock:
            self._held[start] = found
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        return found

    def _window(self, start: int) -> Window:
        stop = layout.window_stop(start, self.size)
        layers = [*self._store.several(self.records, self.refs(start))]
        found = stack.segments(layers, start, stop)
        for number, records in enumerate(layers):
            lost = records["chunk"] == NOWHERE
            if lost.any() and lost[found["record"][found["layer"] == number]].any():
                raise errors.Damaged(f"the directory of disk {self.disk} lacks a chunk file that its pages point into")
        return Window(start, stop, found, layers)

    def can_stay(self, start: int) -> bool:
        """Return whether a new point may refer to the existing pages of a window."""
        return True

    def frames(self, start: int) -> layout.Records:
        """Return the records of a window that show whole frames, to which new records may refer."""
        return whole_frames(self.window(start).flat())

    def windows(self, check: Check = lambda: None) -> Iterator[Window]:
        """Yield all windows that have pages, ascending, without keeping any."""
        for start in self.starts():
            check()
            yield self._window(start)

    def prove(self, start: int) -> None:
        """Raise Damaged if the window that begins at `start` cannot be assembled. Faster than assembling it."""
        layers = [*self._store.several(self._page, self.refs(start))]
        for number, page in enumerate(layers):
            if not all(map(self._numbers.__contains__, page.names)):
                lost = numpy.array([name not in self._numbers for name in page.names], bool)
                records = page.records[(page.records["kind"] == extents.DATA) & lost[page.records["chunk"]]]
                above = [each.records for each in layers[number + 1 :]]
                if not (above and extents.covered(records, above).all()):
                    self._window(start)
                    return

    def named(self, start: int) -> set[str]:
        """Return the paths of the chunk files that the pages of a window name. Damaged."""
        return {name for page in self._store.several(self._page, self.refs(start)) for name in page.names}

    def records(self, ref: numpy.void) -> layout.Records:
        """Return the records of one page, with the chunk numbers of this directory. Damaged."""
        return renumbered(self._page(ref), self.number)

    def _page(self, ref: numpy.void) -> pages.Page:
        path, stop = self.files[int(ref["file"])].path, layout.window_stop(int(ref["offset"]), self.size)
        return self._read_page(self._store, self._series, path, ref, self.disk, stop)

    def number(self, path: str) -> int:
        """Return the number of a file by its path, NOWHERE if the directory does not list it."""
        return self._numbers.get(path, NOWHERE)


def whole_frames(records: layout.Records) -> layout.Records:
    """Return the data records that show a whole frame."""
    found: layout.Records = records[(records["kind"] == extents.DATA) & (records["length"] == records["raw"])]
    return found


class PageReader:
    """A ReadPage for readers of many points: it keeps the pages that were used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], pages.Page] = OrderedDict()
        self._size = 0

    def __call__(self, store: Store, series: str, path: str, ref: numpy.void, disk: str, stop: int) -> pages.Page:
        about = (ref[name].tobytes() for name in _ABOUT)
        key = store, series, path, disk, stop, *about
        with self._lock:
            page = self._kept.get(key)
        if page is None:
            page = read_page(store, series, path, ref, disk, stop)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = page
                self._size += _memory(page)
            self._kept.move_to_end(key)
            while self._size > MAX_KEPT and len(self._kept) > 1:
                self._size -= _memory(self._kept.popitem(last=False)[1])
        return page


def _memory(page: pages.Page) -> int:
    return int(page.records.nbytes) + 128 * len(page.names)


def renumbered(page: pages.Page, number: Callable[[str], int]) -> layout.Records:
    """Return the records of a page with other numbers of chunk files: number(path) returns the number of each."""
    numbers = numpy.array([number(name) for name in page.names], "u4")
    records: layout.Records = page.records.copy()
    data = records["kind"] == extents.DATA
    records["chunk"][data] = numbers[records["chunk"][data]]
    return records


def _read(store: Store, path: str, disk: DiskEntry) -> pages.Directory:
    entry = disk.directory
    data = store.read(path, layout.MAX_DIRECTORY)
    if (len(data), hashlib.sha256(data).hexdigest()) != (entry.size, entry.sha256):
        raise errors.Damaged(f"{store.path(path)}: the file is damaged (it is not the one that the manifest names)")
    try:
        return pages.decode_directory(pages.decompressed(data, layout.MAX_DIRECTORY), disk.name, disk.size)
    except ValueError as error:
        raise errors.Damaged(f"{store.path(path)}: not the directory of a disk ({error})") from None


def same_pages(one: Optional[PageRefs], other: Optional[PageRefs]) -> bool:
    """Return whether two stacks have exactly the same pages, wherever these are stored."""
    if one is None or other is None or len(one) != len(other):
        return False
    return bool((one["digest"] == other["digest"]).all())
