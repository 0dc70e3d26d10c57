"""A disk as of a point: the chain of its index files laid over each other, newest on top.

Owns: which frame of which point answers for a range. Streams by windows of the disk, so that memory grows neither with
the number of extents nor with the size of the disk. Must not know: where the bytes go, libvirt, NBD.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy

from ..core import errors, extents
from ..core.errors import Check
from ..format import layout, manifest, reader
from ..format.manifest import FileEntry
from .series import Point, Series

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..core.extents import Buffer, Extents, Segments

HELD_BYTES = 32 << 20  # of decompressed frames that a Piece may need again

Row = numpy.void  # a record, or an extent


@dataclass(frozen=True)
class Piece:
    """What is to be found in one block of the disk: extents, and for each data extent (layer, record)."""

    extents: Extents
    sources: list[tuple[int, Row]]


class Window(NamedTuple):
    """A part of the disk, from start to stop, which are multiples of layout.MAX_FRAME but for the disk's end. segments
    are extents.SEGMENT, sorted, and cover it but for growth that nothing was written to; layers[segment.layer]
    [segment.record] is the record of one."""

    start: int
    stop: int
    segments: Segments
    layers: list[layout.Records]


class Image:
    """size: bytes. Use as a context manager; `read_piece` may be called by several threads at once.

    partial: the chain may begin with a point without a parent; then what is in no Piece is unchanged, not zero.
    check() is called often.
    """

    def __init__(
        self, series: Series, point: Point, disk: str, partial: bool = False, check: Check = lambda: None
    ) -> None:
        self._links = series.chain(point, disk, partial)
        self.partial = self._links[0][1].mode != manifest.FULL
        self.size = self._links[-1][1].size
        self.disk = disk
        self._series = series
        self._check = check
        self._files = reader.OpenFiles(series.store)
        frames = [reader.FrameReader(series.store, series.folder, entry, self._files) for _, entry in self._links]
        self._frames = frames

    @property
    def indexes(self) -> list[FileEntry]:
        """FileEntry of the index of each point of the chain."""
        return [entry.index for _, entry in self._links]

    @property
    def chunks(self) -> list[FileEntry]:
        """FileEntry of every chunk file of the chain, each once."""
        return list({chunk.path: chunk for _, entry in self._links for chunk in entry.chunks}.values())

    @property
    def chunk_numbers(self) -> list[list[int]]:
        """For each layer, and each chunk number in its records, the place of that file in `chunks`."""
        place = {chunk.path: number for number, chunk in enumerate(self.chunks)}
        return [[place[chunk.path] for chunk in entry.chunks] for _, entry in self._links]

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()

    def resolved(self) -> Iterator[Window]:
        """Yield Window after Window of the whole disk, each as large as can be with some records of each index."""
        layers = [_Layer(reader.records(self._series.store, self._series.folder, entry)) for _, entry in self._links]
        start = 0
        while start < self.size:
            self._check()
            stop = self.size
            for layer in layers:
                stop = layer.reach(start, stop)
            taken = [layer.take(stop) for layer in layers]
            result = numpy.empty(0, extents.SEGMENT)
            for number, records in reversed(list(enumerate(taken))):  # so that the large first layer is laid once
                result = extents.overlay(extents.clip(_segments(records, number), start, stop), result)
            if not self.partial:
                self._require_covered(result, start, min(stop, self._links[0][1].size))
            yield Window(start, stop, result, taken)
            start = stop

    def _require_covered(self, segments: Segments, start: int, stop: int) -> None:
        missing = extents.gaps(extents.clip(segments, start, stop), start, stop) if stop > start else []
        if missing:
            offset, length = missing[0]
            raise errors.Damaged(f"disk {self.disk}: nothing in the chain tells bytes {offset} to {offset + length}")

    def flat(self) -> Iterator[layout.Records]:
        """Yield, Window by Window, the data records that one index of the whole image would have. `chunk` is a number
        in `chunks`. What is in no record reads as zero. A record may show a part of its frame."""
        numbers = [numpy.array(each, "u4") for each in self.chunk_numbers]
        for _, _, segments, layers in self.resolved():
            parts = [_shown(segments[segments["layer"] == n], layer, numbers[n]) for n, layer in enumerate(layers)]
            records = numpy.concatenate(parts)
            yield records[numpy.argsort(records["offset"], kind="stable")]

    def data(self) -> Iterator[tuple[Extents, int]]:
        """Yield (extents of data in a Window, where that ends), ascending."""
        for _, stop, segments, layers in self.resolved():
            kinds = _kinds(segments, layers)
            yield extents.merged(_extents(segments[kinds == extents.DATA], extents.DATA)), stop

    def data_bytes(self, block: int) -> int:
        """Bytes of all blocks of `block` bytes that hold data, whole."""
        count = 0
        for found, _ in self.data():
            first, last = found["offset"] // block, (extents.ends(found) - 1) // block
            count += int((last - first + 1).sum()) - int((first[1:] == last[:-1]).sum())
        return count * block

    def head(self, length: int) -> Optional[bytes]:
        """The first bytes of the disk; None where a partial image does not tell all of them."""
        _, _, segments, layers = next(self.resolved(), Window(0, 0, numpy.empty(0, extents.SEGMENT), []))
        segments, length = extents.clip(segments, 0, length), min(length, self.size)
        if self.partial and extents.gaps(segments, 0, length):
            return None
        data = segments[_kinds(segments, layers) == extents.DATA]
        piece = Piece(_extents(data, extents.DATA), [(int(s["layer"]), layers[s["layer"]][s["record"]]) for s in data])
        found = bytearray(length)
        for offset, part in zip(piece.extents["offset"].tolist(), self.read_piece(piece)):
            found[offset : offset + len(part)] = part
        return bytes(found)

    def pieces(self) -> Iterator[Piece]:
        """Yield a Piece for each block of layout.MAX_FRAME bytes with data, ascending, and after those of a Window one
        Piece with its zero ranges. Every frame lies within one Piece. What is in no Piece reads as zero, too."""
        for _, _, segments, layers in self.resolved():
            kinds = _kinds(segments, layers)
            zero = segments[kinds == extents.ZERO]
            data = extents.cut(segments[kinds == extents.DATA], layout.MAX_FRAME)
            for part in extents.split(data, layout.MAX_FRAME):
                sources = [(int(s["layer"]), layers[s["layer"]][s["record"]]) for s in part]
                yield Piece(_extents(part, extents.DATA), sources)
            if len(zero):
                yield Piece(extents.merged(_extents(zero, extents.ZERO)), [])

    def read_piece(self, piece: Piece) -> list[Buffer]:
        """Return the bytes of each data extent of a Piece; each frame is decompressed and checked once, unless there is
        an absurd number of them."""
        frames: dict[tuple[int, int, int, bytes], bytes] = {}
        parts: list[Buffer] = []
        for extent, (layer, record) in zip(piece.extents, piece.sources):
            key = (layer, int(record["chunk"]), int(record["position"]), record["digest"].tobytes())
            if key not in frames:
                if sum(map(len, frames.values())) > HELD_BYTES:
                    frames.clear()
                frames[key] = self._frames[layer].read(record)
            begin, length = int(record["skip"]) + int(extent["offset"]) - int(record["offset"]), int(extent["length"])
            part = memoryview(frames[key])[begin : begin + length]
            parts.append(part if length == len(frames[key]) else bytes(part))  # a frame is not kept for a part of it
        return parts


class DataRanges:
    """Where an Image has data, asked for range by range, ascending: call it with (start, stop)."""

    def __init__(self, image: Image) -> None:
        self._windows = image.data()
        self._known, self._reached = numpy.empty(0, extents.EXTENT), 0

    def __call__(self, start: int, stop: int) -> Extents:
        parts = [self._known[extents.ends(self._known) > start]]
        while self._reached < stop:
            found, self._reached = next(self._windows, (parts[0][:0], stop))
            parts.append(found)
        self._known = numpy.concatenate(parts)
        return self._known[self._known["offset"] < stop]


def _kinds(segments: Segments, layers: list[layout.Records]) -> NDArray[numpy.uint32]:
    kinds = numpy.empty(len(segments), "u4")
    for number, records in enumerate(layers):
        mine = segments["layer"] == number
        kinds[mine] = records["kind"][segments["record"][mine]]
    return kinds


class _Layer:
    """The records of one index, taken window by window."""

    def __init__(self, batches: Iterator[layout.Records]) -> None:
        self._batches = batches
        self._held = [numpy.empty(0, layout.RECORD)]
        self._more = True
        self._last = -1  # where the last record begins that was drawn

    def reach(self, start: int, stop: int) -> int:
        """Draw records until all are held that begin before `stop`, or as many as are held at once. Return up to where
        they are, from `start` on: a multiple of layout.MAX_FRAME, or `stop`."""
        least = min(start - start % layout.MAX_FRAME + layout.MAX_FRAME, stop)
        while self._more and (self._last < least or (self._last < stop and self._count() < 2 * reader.BATCH_RECORDS)):
            batch = next(self._batches, None)
            if batch is None:
                self._more = False
            else:
                self._held.append(batch)
                self._last = int(batch["offset"][-1])
        return min(stop, self._last - self._last % layout.MAX_FRAME) if self._more else stop

    def _count(self) -> int:
        return sum(map(len, self._held))

    def take(self, stop: int) -> layout.Records:
        """Return the records held that begin before `stop` and were not wholly before the last window."""
        known = numpy.concatenate(self._held)
        self._held = [known[extents.ends(known) > stop]]
        return known[known["offset"] < stop]


def _segments(records: layout.Records, layer: int) -> Segments:
    result = numpy.zeros(len(records), extents.SEGMENT)
    result["offset"], result["length"] = records["offset"], records["length"]
    result["layer"], result["record"] = layer, numpy.arange(len(records))
    return result


def _shown(segments: Segments, records: layout.Records, chunk_numbers: NDArray[numpy.uint32]) -> layout.Records:
    """The data records of one layer, cut to what the segments show of them."""
    segments = segments[records["kind"][segments["record"]] == extents.DATA]
    shown: layout.Records = records[segments["record"]]
    shown["skip"] += (segments["offset"] - shown["offset"]).astype("u4")
    shown["offset"], shown["length"] = segments["offset"], segments["length"]
    shown["chunk"] = chunk_numbers[shown["chunk"]]
    return shown


def _extents(segments: Segments, kind: int) -> Extents:
    result = numpy.empty(len(segments), extents.EXTENT)
    result["offset"], result["length"], result["kind"] = segments["offset"], segments["length"], kind
    return result
