"""An image opened for random access: any byte of a disk as of a point, without a restore.

Owns: the map of the whole image in memory, 48 to 64 bytes for each run of data, and the detection of clients that read
sequentially. Must not know: what reads the image (NBD, a comparison), how frames are cached, libvirt.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy

from ..core import errors, extents
from ..core.choices import CACHE_BYTES
from ..core.errors import Check
from ..format import layout, reader
from . import image
from .frame_cache import FrameCache, Place
from .series import Point, Series

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..core.extents import Extents

    Column = NDArray[Any]  # of one member of layout.RECORD

SPAN = 1 << 32  # bytes of the disk that one part of the map covers
MAX_RUNS = 1 << 26  # runs of data in one image: a map of at most 4 GiB

# The members of layout.RECORD that distinguish one run from another; lengths have 32 bits, as no frame is longer.
_COLUMNS = {"length": "u4", "position": "u8", "stored": "u4", "raw": "u4", "skip": "u4", "chunk": "u4", "digest": "V32"}
_ZEROS = memoryview(bytes(1 << 20))
RECENT = 8  # runs that are found again without a search: enough for 8 clients that read sequentially
AHEAD = 8 << 20  # bytes of the disk within which frames are read ahead
LEAST_AHEAD = 128 << 10  # bytes of a frame: reading a smaller one takes no longer than handing it to another thread


class RandomImage:
    """The image of a disk, in memory as a map. All methods may be called by several threads at once. Use as a context
    manager.

    size: bytes; directory: of the disk. Damaged if an index is damaged; frames are verified one by one when they are
    read.
    """

    def __init__(
        self,
        series: Series,
        point: Point,
        disk: str,
        cache_bytes: int = CACHE_BYTES,
        check: Check = lambda: None,
        ahead: int = 0,
    ) -> None:
        """Make the map. check() is called often meanwhile.

        ahead: how many frames the image's own threads read before a client that reads sequentially asks for them, as
        long as at most so many client threads read.
        """
        self.disk = disk
        with ExitStack() as stack:
            opened = stack.enter_context(image.Image(series, point, disk, check=check))
            self.size = opened.size
            self._windows = _windows(opened)
            self._starts = [window.start for window in self._windows]
            self.directory = opened.directory
            files = self.directory.files
            opened_files = reader.OpenFiles(series.store, again=True)
            stack.callback(opened_files.close)
            self._frames = reader.FrameReader(series.store, series.folder, files, opened_files)
            self._ahead = ahead
            self._cache = FrameCache(self._frames.read, cache_bytes, ahead)
            stack.callback(self._cache.close)
            self._recent: tuple[tuple[int, int, Place, int], ...] = ()  # (offset, end, run, thread), the latest first
            self._stack = stack.pop_all()

    @property
    def frames(self) -> int:
        """The number of runs of data in the map."""
        return sum(len(window) for window in self._windows)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: Union[bytearray, memoryview]) -> None:
        """Fill a writable buffer with the bytes from `offset` on; Damaged if a frame is damaged."""
        view = memoryview(buffer)
        stop = offset + len(view)
        for start, end, recent, _ in self._recent:
            if start <= offset and stop <= end:
                self._copy(recent, offset, stop, view)
                return
        self._require_within(offset, len(view))
        at = offset
        place: Optional[Place] = None
        for place, begin, end in self._shown(offset, stop):
            _clear(view[at - offset : begin - offset])
            self._copy(place, begin, end, view[begin - offset : end - offset])
            at = end
        _clear(view[at - offset :])
        if place is not None:
            self._went_to(offset, place)

    def _went_to(self, offset: int, place: Place) -> None:
        """Note the last run of a read. If a recent run led to it, the client reads sequentially: read the next frames
        ahead, unless other clients keep the processors busy. If two threads note a run at the same time, one may be
        forgotten."""
        recent, end = self._recent, place["offset"] + place["length"]
        self._recent = ((place["offset"], end, place, threading.get_ident()), *recent[: RECENT - 1])
        if not any(start <= offset <= stop for start, stop, _, _ in recent):
            return
        if len({thread for *_, thread in self._recent}) <= self._ahead:
            for run, _, _ in islice(self._shown(end, min(end + AHEAD, self.size)), self._ahead):
                if run["raw"] < LEAST_AHEAD or not self._cache.begin(run):
                    return

    def _copy(self, place: Place, begin: int, end: int, view: memoryview) -> None:
        skip = place["skip"] + begin - place["offset"]
        view[:] = memoryview(self._cache.get(place))[skip : skip + end - begin]

    def _require_within(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size:
            raise errors.UsageError(f"bytes {offset} to {offset + length} are outside the disk ({self.size} bytes)")

    def _shown(self, offset: int, stop: int) -> Iterator[tuple[Place, int, int]]:
        """Yield (place, begin, end) of each run of data within [offset, stop)."""
        for window in self._within(offset, stop):
            yield from window.shown(max(offset, window.start), min(stop, window.stop))

    def _within(self, offset: int, stop: int) -> Iterator[_Window]:
        """Yield the windows that overlap [offset, stop); bytes outside all windows read as zero."""
        for number in range(max(bisect_right(self._starts, offset) - 1, 0), len(self._windows)):
            if self._starts[number] >= stop:
                return
            if self._windows[number].stop > offset:
                yield self._windows[number]

    def extents(self, offset: int = 0, length: Optional[int] = None, limit: Optional[int] = None) -> Extents:
        """Return extents, merged, that cover [offset, offset + length) exactly; with `limit` perhaps fewer, from the
        beginning of the range. length None: to the end of the disk."""
        stop = self.size if length is None else offset + length
        self._require_within(offset, stop - offset)
        parts, at = [extents.of([])], offset
        for window in self._within(offset, stop):
            parts.append(_zeroes(at, window.start))
            at = max(at, window.start)
            while at < min(stop, window.stop):
                parts.append(window.extents(at, min(stop, window.stop), limit))
                at = int(extents.ends(parts[-1][-1:])[0])
                if limit is not None and sum(map(len, parts)) >= limit:
                    return extents.merged(numpy.concatenate(parts))
        return extents.merged(numpy.concatenate([*parts, _zeroes(at, stop)]))

    def records(self, offset: int = 0, length: Optional[int] = None) -> Iterator[tuple[int, int, Optional[bytes]]]:
        """Yield, in ascending order, (offset, length, digest) of each run of data that begins in the range. The digest
        is that of the whole frame, None if the run shows only a part of the frame."""
        stop = self.size if length is None else offset + length
        for window in self._within(offset, stop):
            for number in window.starting(offset, stop):
                place = window.place(number)
                whole = not place["skip"] and place["raw"] == place["length"]
                yield place["offset"], place["length"], place["digest"].tobytes() if whole else None

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> RandomImage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _clear(view: memoryview) -> None:
    for at in range(0, len(view), len(_ZEROS)):
        part = view[at : at + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]


def _zeroes(start: int, stop: int) -> Extents:
    return extents.of([(start, stop - start, extents.ZERO)] if start < stop else [])


def _windows(opened: image.Image) -> list[_Window]:
    """Return the windows of an Image that contain data."""
    found: list[_Window] = []
    count = 0
    for records in opened.flat():
        found += map(_Window, extents.split(records, SPAN))
        count += len(records)
        if count > MAX_RUNS:
            raise errors.StoreError(f"disk {opened.disk} has more than {MAX_RUNS} runs of data at this point, too many "
                                    "to be held for random access: restore it instead")  # fmt: skip
    return found


class _Window:
    """The runs of data of a part of the disk, in columns. Searches use 32-bit offsets from the start of the part."""

    def __init__(self, records: layout.Records) -> None:
        self.start, self.stop = int(records["offset"][0]), int(extents.ends(records[-1:])[0])
        self._starts = (records["offset"] - records["offset"][0]).astype("u4")
        self._columns = {name: _column(records[name], kind) for name, kind in _COLUMNS.items()}

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, number: int) -> Place:
        """Return one run, as a dict with the members of layout.RECORD."""
        values = {name: int(column[number]) if name != "digest" else column[number]
                  for name, column in self._columns.items()}  # fmt: skip
        return {"offset": self.start + int(self._starts[number]), **values}

    def starting(self, offset: int, stop: int) -> range:
        """Return the numbers of the runs that begin within [offset, stop)."""
        return range(self._first_from(offset), self._first_from(stop))

    def _first_from(self, offset: int) -> int:
        return int(self._starts.searchsorted(numpy.uint64(max(offset - self.start, 0))))

    def _touched(self, offset: int, stop: int) -> range:
        """Return the numbers of the runs that overlap [offset, stop)."""
        first = int(self._starts.searchsorted(numpy.uint64(offset - self.start), side="right"))
        if first and self._end(first - 1) > offset:
            first -= 1
        return range(first, self._first_from(stop))

    def _end(self, number: int) -> int:
        return self.start + int(self._starts[number]) + int(self._columns["length"][number])

    def shown(self, offset: int, stop: int) -> Iterator[tuple[Place, int, int]]:
        for number in self._touched(offset, stop):
            place = self.place(number)
            yield place, max(place["offset"], offset), min(place["offset"] + place["length"], stop)

    def extents(self, offset: int, stop: int, limit: Optional[int]) -> Extents:
        """Return extents of both kinds from `offset` to `stop`, or as far as `limit` runs of data reach."""
        touched = self._touched(offset, stop)
        if limit is not None and len(touched) > limit:
            stop = self.start + int(self._starts[touched[limit]])
            touched = touched[:limit]
        data = extents.clip(self._ranges(slice(touched.start, touched.stop)), offset, stop)
        return extents.merged(extents.filled(data, offset, stop, extents.ZERO))

    def _ranges(self, numbers: slice) -> Extents:
        starts = self._starts[numbers]
        result = numpy.empty(len(starts), extents.EXTENT)
        result["offset"], result["kind"] = starts + numpy.uint64(self.start), extents.DATA
        result["length"] = self._columns["length"][numbers]
        return result


def _column(values: Column, kind: str) -> Column:
    """Return a contiguous copy; if all values are equal, store only one."""
    if len(values) and kind != "V32" and (values == values[0]).all():
        return numpy.broadcast_to(values[0].astype(kind), len(values))
    return values.astype(kind)
