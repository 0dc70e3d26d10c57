"""A disk as of a point: the chain of its index files laid over each other, newest on top.

Owns: which frame of which point answers for a range. Streams by windows of the disk, so that memory does not grow with
the number of extents. Must not know: where the bytes go, libvirt, NBD.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy

from . import errors, extents, format, manifest, reader

WINDOW = 1 << 32  # bytes of disk resolved at a time; a multiple of format.MAX_FRAME


@dataclass(frozen=True)
class Piece:
    """What is to be found in one block of the disk: extents, and for each data extent (layer, record)."""

    extents: numpy.ndarray
    sources: list


class Image:
    """size: bytes. Use as a context manager; `read_piece` may be called by several threads at once.

    partial: the chain may begin with a point without a parent; then what is in no Piece is unchanged, not zero.
    """

    def __init__(self, series, point, disk, partial=False):
        self._links = series.chain(point, disk, partial)
        self.partial = self._links[0][1].mode != manifest.FULL
        self.size = self._links[-1][1].size
        self.disk = disk
        self._series = series
        self._stack = ExitStack()
        self._frames = [
            self._stack.enter_context(reader.FrameReader(series.store, series.folder, entry))
            for _, entry in self._links
        ]

    @property
    def indexes(self):
        """FileEntry of the index of each point of the chain."""
        return [entry.index for _, entry in self._links]

    @property
    def chunks(self):
        """FileEntry of every chunk file of the chain, each once."""
        return list({chunk.path: chunk for _, entry in self._links for chunk in entry.chunks}.values())

    @property
    def chunk_numbers(self):
        """For each layer, and each chunk number in its records, the place of that file in `chunks`."""
        place = {chunk.path: number for number, chunk in enumerate(self.chunks)}
        return [[place[chunk.path] for chunk in entry.chunks] for _, entry in self._links]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._stack.close()

    def resolved(self):
        """Yield (segments, layers) window by window: segments are extents.SEGMENT, sorted, and cover the window but
        for growth that nothing was written to; layers[segment.layer][segment.record] is its record."""
        layers = [_Layer(reader.records(self._series.store, self._series.folder, entry)) for _, entry in self._links]
        for start in range(0, self.size, WINDOW):
            stop = min(start + WINDOW, self.size)
            taken = [layer.take(stop) for layer in layers]
            result = numpy.empty(0, extents.SEGMENT)
            for number, records in reversed(list(enumerate(taken))):  # so that the large first layer is laid once
                result = extents.overlay(extents.clip(_segments(records, number), start, stop), result)
            if not self.partial:
                self._require_covered(result, start, min(stop, self._links[0][1].size))
            yield result, taken

    def _require_covered(self, segments, start, stop):
        missing = extents.gaps(extents.clip(segments, start, stop), start, stop) if stop > start else []
        if missing:
            offset, length = missing[0]
            raise errors.Damaged(f"disk {self.disk}: nothing in the chain tells bytes {offset} to {offset + length}")

    def flat(self):
        """Yield, window by window, the data records that one index of the whole image would have. `chunk` is a number
        in `chunks`. What is in no record reads as zero. A record may show a part of its frame."""
        numbers = [numpy.array(each, "u4") for each in self.chunk_numbers]
        for segments, layers in self.resolved():
            parts = [_shown(segments[segments["layer"] == n], layer, numbers[n]) for n, layer in enumerate(layers)]
            records = numpy.concatenate(parts)
            yield records[numpy.argsort(records["offset"], kind="stable")]

    def data(self):
        """Yield (extents of data in a window, where the window ends), ascending."""
        reached = 0
        for segments, layers in self.resolved():
            kinds = _kinds(segments, layers)
            reached = min(reached + WINDOW, self.size)
            yield extents.merged(_extents(segments[kinds == extents.DATA], extents.DATA)), reached

    def data_bytes(self, block):
        """Bytes of all blocks of `block` bytes that hold data, whole."""
        count = 0
        for found, _ in self.data():
            first, last = found["offset"] // block, (extents.ends(found) - 1) // block
            count += int((last - first + 1).sum()) - int((first[1:] == last[:-1]).sum())
        return count * block

    def head(self, length):
        """The first bytes of the disk; None where a partial image does not tell all of them."""
        segments, layers = next(self.resolved(), (numpy.empty(0, extents.SEGMENT), []))
        segments, length = extents.clip(segments, 0, length), min(length, self.size)
        if self.partial and extents.gaps(segments, 0, length):
            return None
        data = segments[_kinds(segments, layers) == extents.DATA]
        piece = Piece(_extents(data, extents.DATA), [(int(s["layer"]), layers[s["layer"]][s["record"]]) for s in data])
        found = bytearray(length)
        for offset, part in zip(piece.extents["offset"].tolist(), self.read_piece(piece)):
            found[offset : offset + len(part)] = part
        return bytes(found)

    def pieces(self):
        """Yield a Piece for each block of format.MAX_FRAME bytes with data, ascending, and after those of a window one
        Piece with its zero ranges. Every frame lies within one Piece. What is in no Piece reads as zero, too."""
        for segments, layers in self.resolved():
            kinds = _kinds(segments, layers)
            zero = segments[kinds == extents.ZERO]
            data = extents.cut(segments[kinds == extents.DATA], format.MAX_FRAME)
            for part in _blocks(data):
                sources = [(int(s["layer"]), layers[s["layer"]][s["record"]]) for s in part]
                yield Piece(_extents(part, extents.DATA), sources)
            if len(zero):
                yield Piece(extents.merged(_extents(zero, extents.ZERO)), [])

    def read_piece(self, piece):
        """Return the bytes of each data extent of a Piece; each frame is decompressed and checked once."""
        frames: dict[tuple, bytes] = {}
        parts = []
        for extent, (layer, record) in zip(piece.extents, piece.sources):
            key = (layer, int(record["chunk"]), int(record["position"]))
            if key not in frames:
                frames[key] = self._frames[layer].read(record)
            begin = int(record["skip"]) + int(extent["offset"]) - int(record["offset"])
            parts.append(memoryview(frames[key])[begin : begin + int(extent["length"])])
        return parts


class DataRanges:
    """Where an Image has data, asked for range by range, ascending: call it with (start, stop)."""

    def __init__(self, image):
        self._windows = image.data()
        self._known, self._reached = numpy.empty(0, extents.EXTENT), 0

    def __call__(self, start, stop):
        parts = [self._known[extents.ends(self._known) > start]]
        while self._reached < stop:
            found, self._reached = next(self._windows, (parts[0][:0], stop))
            parts.append(found)
        self._known = numpy.concatenate(parts)
        return self._known[self._known["offset"] < stop]


def _kinds(segments, layers):
    kinds = numpy.empty(len(segments), "u4")
    for number, records in enumerate(layers):
        mine = segments["layer"] == number
        kinds[mine] = records["kind"][segments["record"][mine]]
    return kinds


class _Layer:
    """The records of one index, taken window by window."""

    def __init__(self, batches):
        self._batches = batches
        self._held = numpy.empty(0, format.RECORD)
        self._more = True

    def take(self, stop):
        """Return the records that begin before `stop` and were not wholly before the last window."""
        parts = [self._held]
        while self._more and (not len(parts[-1]) or parts[-1]["offset"][-1] < stop):
            batch = next(self._batches, None)
            self._more = batch is not None
            parts += [batch] if self._more else []
        known = numpy.concatenate(parts)
        self._held = known[extents.ends(known) > stop]
        return known[known["offset"] < stop]


def _segments(records, layer):
    result = numpy.zeros(len(records), extents.SEGMENT)
    result["offset"], result["length"] = records["offset"], records["length"]
    result["layer"], result["record"] = layer, numpy.arange(len(records))
    return result


def _shown(segments, records, chunk_numbers):
    """The data records of one layer, cut to what the segments show of them."""
    segments = segments[records["kind"][segments["record"]] == extents.DATA]
    shown = records[segments["record"]]
    shown["skip"] += (segments["offset"] - shown["offset"]).astype("u4")
    shown["offset"], shown["length"] = segments["offset"], segments["length"]
    shown["chunk"] = chunk_numbers[shown["chunk"]]
    return shown


def _extents(segments, kind):
    result = numpy.empty(len(segments), extents.EXTENT)
    result["offset"], result["length"], result["kind"] = segments["offset"], segments["length"], kind
    return result


def _blocks(segments):
    """Split segments into runs that lie in the same block of format.MAX_FRAME bytes."""
    if not len(segments):
        return []
    block = segments["offset"] // format.MAX_FRAME
    return numpy.split(segments, numpy.flatnonzero(block[1:] != block[:-1]) + 1)
