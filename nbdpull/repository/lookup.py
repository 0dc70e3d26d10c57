"""An image held open for random access: any byte of a disk as of a point, without a restore.

Owns: the map of the whole image in memory, 48 to 64 bytes for each run of data, and which clients read sequentially.
Must not know: who asks (NBD, a comparison), how frames are kept, libvirt.
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

SPAN = 1 << 32  # bytes of the disk that a part of the map is for
MAX_RUNS = 1 << 26  # of data in one image: a map of at most 4 GiB

# Of layout.RECORD, what tells one run from another; lengths have 32 bits, as no frame has more.
_COLUMNS = {"length": "u4", "position": "u8", "stored": "u4", "raw": "u4", "skip": "u4", "chunk": "u4", "digest": "V32"}
_ZEROS = memoryview(bytes(1 << 20))
RECENT = 8  # runs that are found again without a search: enough for as many clients that read sequentially
AHEAD = 8 << 20  # bytes of the disk within which frames are read ahead
LEAST_AHEAD = 128 << 10  # bytes of a frame: to read a smaller one takes no longer than to hand it to another thread


class RandomImage:
    """size: bytes; directory: of the disk. All methods may be called by several threads at once. Use as a context
    manager.

    Damaged where an index is not what was stored; frames are proved one by one, as they are read.
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
        """check() is called often while the map is made. ahead: how many frames threads of its own read before a
        client that reads sequentially asks for them, while at most as many threads read."""
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
        """How many runs of data the map holds."""
        return sum(len(window) for window in self._windows)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: Union[bytearray, memoryview]) -> None:
        """Fill a writable buffer from `offset` on; Damaged if a frame is not what was stored."""
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
        """Yield the windows of which a part is within [offset, stop); what is in none reads as zero."""
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
        """Yield (offset, length, digest of the whole frame or None where it shows but a part of it) of each run of
        data that begins in the range, ascending."""
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
    """The windows of an Image in which there is data."""
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
    """The runs of data of a part of the disk, in columns. Searched by 32-bit offsets within that."""

    def __init__(self, records: layout.Records) -> None:
        self.start, self.stop = int(records["offset"][0]), int(extents.ends(records[-1:])[0])
        self._starts = (records["offset"] - records["offset"][0]).astype("u4")
        self._columns = {name: _column(records[name], kind) for name, kind in _COLUMNS.items()}

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, number: int) -> Place:
        """One run, with the members of layout.RECORD."""
        values = {name: int(column[number]) if name != "digest" else column[number]
                  for name, column in self._columns.items()}  # fmt: skip
        return {"offset": self.start + int(self._starts[number]), **values}

    def starting(self, offset: int, stop: int) -> range:
        """Numbers of the runs that begin within [offset, stop)."""
        return range(self._first_from(offset), self._first_from(stop))

    def _first_from(self, offset: int) -> int:
        return int(self._starts.searchsorted(numpy.uint64(max(offset - self.start, 0))))

    def _touched(self, offset: int, stop: int) -> range:
        """Range of the runs of which a byte is within [offset, stop)."""
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
        """Extents of both kinds from `offset` on; to `stop`, or as far as `limit` runs of data reach."""
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
    """A contiguous copy; of values that are all the same, one."""
    if len(values) and kind != "V32" and (values == values[0]).all():
        return numpy.broadcast_to(values[0].astype(kind), len(values))
    return values.astype(kind)
