"""A disk as of a point, according to its directory: what each piece of it contains.

Owns: how frames become pieces of an image, with memory that grows neither with the number of extents nor with the size
of the disk. Must not know: where the bytes go, libvirt, NBD.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, Optional

import numpy

from ..core import extents
from ..core.errors import Check
from ..format import layout, reader, stack
from ..format.directory import Directory, Window
from ..format.manifest import FileEntry
from .series import Point, Series

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..core.extents import Buffer, Extents, Segments

    Piece = layout.Records  # what one block of the disk shows: records of one kind, each cut to its part of the block

HELD_BYTES = 32 << 20  # of decompressed frames that a Piece may need again

_MEMBERS = layout.RECORD.names or ()
_LENGTH, _POSITION, _SKIP, _CHUNK, _DIGEST = map(_MEMBERS.index, ("length", "position", "skip", "chunk", "digest"))


class Image:
    """An image, as a context manager. size: bytes; directory: that of the disk.

    partial: accept a point that does not contain the whole disk; then what is in no Piece is unchanged, not zero.
    check() is called often. Several threads may call `read_piece` at once. NoSuchDisk, PartialPoint, Damaged.
    """

    def __init__(
        self, series: Series, point: Point, disk: str, partial: bool = False, check: Check = lambda: None
    ) -> None:
        self.directory = series.directory(point, disk, partial)
        self.partial = not self.directory.whole
        self.size = self.directory.size
        self.disk = disk
        self._check = check
        self._files = reader.OpenFiles(series.store)
        files, live = self.directory.files, self.directory.live.tolist()
        self._frames = reader.FrameReader(series.store, series.folder, files, self._files, live)

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()

    def unopened_chunks(self) -> Iterator[FileEntry]:
        """Open all chunk files, and yield each that does not have its size, is not there, or would be too many. The
        others stay open until they are read."""
        for number, entry in enumerate(self.directory.files):
            if layout.CHUNK_PATH.match(entry.path):
                self._check()
                if not self._frames.opens(number):
                    yield entry

    def windows(self) -> Iterator[Window]:
        """Yield each Window of the disk in which anything was ever written."""
        return self.directory.windows(self._check)

    def flat(self) -> Iterator[layout.Records]:
        """Yield, Window by Window, the data records that a single page would have. `chunk` is a number in the
        directory's files. What is in no record reads as zero. A record may show a part of its frame."""
        for window in self.windows():
            yield stack.data_of(window.flat())

    def data(self) -> Iterator[tuple[Extents, int]]:
        """Yield (extents of data in a Window, end of the Window), ascending."""
        return _data(self.windows())

    def data_bytes(self, block: int) -> int:
        """Return the size of all blocks of `block` bytes that contain data, each counted whole."""
        count = 0
        for found, _ in self.data():
            first, last = found["offset"] // block, (extents.ends(found) - 1) // block
            count += int((last - first + 1).sum()) - int((first[1:] == last[:-1]).sum())
        return count * block

    def head(self, length: int) -> Optional[bytes]:
        """Return the first bytes of the disk; None if a partial image does not contain all of them."""
        length = min(length, self.size)
        records = extents.clip(
            next(self.windows(), Window(0, 0, numpy.empty(0, extents.SEGMENT), [])).flat(), 0, length
        )
        if self.partial and extents.gaps(records, 0, length):
            return None
        piece, found = stack.data_of(records), bytearray(length)
        for offset, part in zip(piece["offset"].tolist(), self.read_piece(piece)):
            found[offset : offset + len(part)] = part
        return bytes(found)

    def pieces(self) -> Iterator[Piece]:
        """Yield a Piece for each block of layout.MAX_FRAME bytes with data, ascending, and after those of a Window one
        Piece with its zero ranges. Every frame lies within one Piece. What is in no Piece reads as zero, too."""
        for window in self.windows():
            records = window.flat()
            yield from extents.split(stack.data_of(records), layout.MAX_FRAME)
            zero = records[records["kind"] == extents.ZERO]
            if len(zero):
                yield extents.merged(zero)

    def read_piece(self, piece: Piece) -> list[Buffer]:
        """Return the bytes of each record of a Piece with data. Each frame is decompressed and checked once, unless
        there is an absurd number of them."""
        rows = piece.tolist()  # numpy's own rows are slower to read
        keys = [(row[_CHUNK], row[_POSITION], row[_DIGEST]) for row in rows]
        shown: defaultdict[Hashable, int] = defaultdict(int)
        for key, row in zip(keys, rows):
            shown[key] += row[_LENGTH]
        frames: dict[Hashable, bytes] = {}
        parts: list[Buffer] = []
        held = 0
        for key, row in zip(keys, rows):
            frame = frames.get(key)
            if frame is None:
                if held > HELD_BYTES:
                    frames.clear()
                    held = 0
                frame = frames[key] = self._frames.read(dict(zip(_MEMBERS, row)))
                held += len(frame)
            begin = row[_SKIP]
            part = memoryview(frame)[begin : begin + row[_LENGTH]]
            # Copied, so that not a whole frame is kept for the smaller part of it.
            parts.append(part if 2 * shown[key] >= len(frame) else bytes(part))
        return parts


class DataRanges:
    """The ranges in which a disk has data according to its Directory. Call it with (start, stop), in ascending
    order."""

    def __init__(self, directory: Directory, check: Check = lambda: None) -> None:
        self._windows = _data(directory.windows(check))
        self._known, self._reached = numpy.empty(0, extents.EXTENT), 0

    def __call__(self, start: int, stop: int) -> Extents:
        parts = [self._known[extents.ends(self._known) > start]]
        while self._reached < stop:
            found, self._reached = next(self._windows, (parts[0][:0], stop))
            parts.append(found)
        self._known = numpy.concatenate(parts)
        return self._known[self._known["offset"] < stop]


def _data(windows: Iterable[Window]) -> Iterator[tuple[Extents, int]]:
    """Yield (extents of data in a Window, end of the Window) of each Window."""
    for _, stop, segments, layers in windows:
        kinds = _kinds(segments, layers)
        yield extents.merged(_extents(segments[kinds == extents.DATA], extents.DATA)), stop


def _kinds(segments: Segments, layers: list[layout.Records]) -> NDArray[numpy.uint32]:
    kinds = numpy.empty(len(segments), "u4")
    for number, records in enumerate(layers):
        mine = segments["layer"] == number
        kinds[mine] = records["kind"][segments["record"][mine]]
    return kinds


def _extents(segments: Segments, kind: int) -> Extents:
    result = numpy.empty(len(segments), extents.EXTENT)
    result["offset"], result["length"], result["kind"] = segments["offset"], segments["length"], kind
    return result
