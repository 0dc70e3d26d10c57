"""Pure algebra of byte ranges, on numpy arrays so that millions of them cost milliseconds and little memory.

Owns: the extent (offset, length, kind) and every comparison of two lists of ranges. What is in no extent is unchanged.

    status     runs of (length, flags) as a server reports them, from some offset on
    extents    sorted, disjoint (offset, length, kind); kind is DATA or ZERO
    segments   sorted, disjoint (offset, length, layer, record): which layer of a chain answers for a range

Must not know: files, NBD, libvirt, bytes of our format. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Callable, Optional, Union

import numpy

if TYPE_CHECKING:  # for annotations only: numpy before 1.21 has no NDArray
    from numpy.typing import NDArray

    Ranges = NDArray[numpy.void]  # of any dtype with offset and length
    Extents = NDArray[numpy.void]  # of EXTENT
    Segments = NDArray[numpy.void]  # of SEGMENT
    Numbers = NDArray[numpy.uint64]  # such as offsets and lengths
    Mask = NDArray[numpy.bool_]
    Indexes = NDArray[numpy.int64]
    Buffer = Union[bytes, bytearray, memoryview]

    Range = tuple[int, int]  # (offset, length)
    Part = tuple[int, Buffer]  # (offset, bytes)

DATA = 0
ZERO = 1
CLEAN = 2  # data that did not change; in no index
MAX_WAITING = 1 << 16  # extents
_END = 1 << 63

EXTENT = numpy.dtype([("offset", "<u8"), ("length", "<u8"), ("kind", "<u4")])
SEGMENT = numpy.dtype([("offset", "<u8"), ("length", "<u8"), ("layer", "<u4"), ("record", "<u4")])


def of(triples: Iterable[tuple[int, int, int]]) -> Extents:
    """Return an extent array of [(offset, length, kind), …]."""
    return numpy.array(list(triples), dtype=EXTENT)


def ends(ranges: Ranges) -> Numbers:
    result: Numbers = ranges["offset"] + ranges["length"]
    return result


def total(ranges: Ranges, kind: Optional[int] = None) -> int:
    """Return the sum of the lengths in bytes, of one kind or of all."""
    lengths = ranges["length"] if kind is None else ranges["length"][ranges["kind"] == kind]
    return int(lengths.sum())


def combine_status(
    start: int, limit: int, *contexts: tuple[Numbers, Numbers]
) -> tuple[Numbers, Numbers, list[Numbers], int]:
    """Cut several status replies for the same request at every boundary of any of them.

    start, limit: bytes; contexts: one (lengths, flags) pair of arrays each, all starting at `start`. Each may cover a
    different length, so the result covers only what all of them do, and never more than [start, limit).

    Return (offsets, lengths, [flags of context 0, flags of context 1, …], end):

        context 0   |-----1-----|----0----|..1..
        context 1   |--0--|-------3-------|
        result      |-1,0-|-1,3-|---0,3---|        end ──▶ here the next request starts
    """
    context_ends = [start + numpy.cumsum(lengths, dtype=numpy.uint64) for lengths, _ in contexts]
    end = min([limit] + [int(e[-1]) if len(e) else start for e in context_ends])
    if end <= start:
        nothing = numpy.empty(0, "u8")
        return nothing, nothing, [nothing for _ in contexts], start
    inner = [e[(start < e) & (e < end)] for e in context_ends]  # a server may report empty runs, too
    cuts = distinct([*inner, numpy.array([end], "u8")])
    offsets = numpy.concatenate([numpy.array([start], "u8"), cuts[:-1]])
    flags = [f[numpy.searchsorted(e, offsets, side="right")] for e, (_, f) in zip(context_ends, contexts)]
    return offsets, cuts - offsets, flags, end


def merged(extents: Extents) -> Extents:
    """Join neighbours that touch and are of one kind."""
    if len(extents) < 2:
        return extents
    breaks = (ends(extents)[:-1] != extents["offset"][1:]) | (extents["kind"][:-1] != extents["kind"][1:])
    return _joined(extents, breaks)


def _joined(ranges: Ranges, breaks: Mask) -> Ranges:
    """Join neighbours, except where `breaks` is true for the border between two."""
    first = numpy.flatnonzero(numpy.concatenate([[True], breaks]))
    result = ranges[first]
    result["length"] = numpy.add.reduceat(ranges["length"], first)
    return result


def merged_stream(batches: Iterable[Extents]) -> Iterator[Extents]:
    """Join neighbours in a stream of extent arrays, even across arrays; yield arrays, never empty ones."""
    held = None
    for batch in batches:
        if not len(batch):
            continue
        batch = merged(batch if held is None else numpy.concatenate([held, batch]))
        held = batch[-1:]
        if len(batch) > 1:
            yield batch[:-1]
    if held is not None:
        yield held


def with_edge(
    batches: Iterable[Extents], length: int, note: Callable[[Extents], None] = lambda edge: None
) -> Iterator[Extents]:
    """Drop CLEAN ranges from a stream of merged extent arrays, except near the end of the last one.

    What is CLEAN within `length` bytes before that end becomes DATA, which note() receives. Yields arrays in ascending
    order. What follows a CLEAN range is held back until the next one, or the end. If too much is held back, that range
    counts as the last.
    """
    held, first = of([]), 0  # first: the first byte that may be among the last `length`
    for batch in batches:
        held = numpy.concatenate([held, batch])
        clean = ends(held[held["kind"] == CLEAN])
        if len(clean):
            first = max(int(clean[-1]) - length, 0)
            passed = int((ends(held) <= first).sum())
            before, held = held[:passed], held[passed:]
            yield before[before["kind"] != CLEAN]
        if not len(clean) or len(held) > MAX_WAITING:
            yield _edge(held, first, note)
            held = of([])
    yield _edge(held, first, note)


def _edge(extents: Extents, first: int, note: Callable[[Extents], None]) -> Extents:
    """Return CLEAN ranges from byte `first` on as DATA, and all others."""
    clean = extents["kind"] == CLEAN
    edge = clip(extents[clean], first, _END)
    edge["kind"] = DATA
    note(edge)
    result = numpy.concatenate([extents[~clean], edge])
    return result[numpy.argsort(result["offset"], kind="stable")]


def cut(ranges: Ranges, size: int, only: Union[Mask, bool] = True) -> Ranges:
    """Cut ranges so that none crosses a multiple of `size` bytes. All other fields are kept.

    only: which ranges to cut, as a boolean array; the others remain whole.
    """
    first = ranges["offset"] // size
    pieces = numpy.where(only, (ends(ranges) - 1) // size - first + 1, 1).astype(numpy.int64)
    if len(ranges) == pieces.sum():
        return ranges
    result = numpy.repeat(ranges, pieces)
    nth = numpy.arange(len(result)) - numpy.repeat(numpy.cumsum(pieces) - pieces, pieces)
    block = (numpy.repeat(first, pieces) + nth.astype(numpy.uint64)) * numpy.uint64(size)
    stop = numpy.repeat(ends(ranges), pieces)
    stop = numpy.where(numpy.repeat(pieces > 1, pieces), numpy.minimum(stop, block + numpy.uint64(size)), stop)
    result["offset"] = numpy.maximum(result["offset"], block)
    result["length"] = stop - result["offset"]
    return result


def split(ranges: Ranges, size: int) -> list[Ranges]:
    """Split ranges into arrays, never empty, of those that start in the same multiple of `size` bytes."""
    if not len(ranges):
        return []
    block = ranges["offset"] // size
    return numpy.split(ranges, numpy.flatnonzero(block[1:] != block[:-1]) + 1)


def batches(extents: Extents, data_bytes: int, count: int) -> list[Extents]:
    """Split into consecutive arrays of at most `count` extents and about `data_bytes` of data."""
    if not len(extents):
        return []
    data = numpy.cumsum(numpy.where(extents["kind"] == DATA, extents["length"], 0))
    group, nth = (data - 1) // data_bytes, numpy.arange(len(extents)) // count
    return numpy.split(extents, numpy.flatnonzero((group[1:] != group[:-1]) | (nth[1:] != nth[:-1])) + 1)


def clip(ranges: Ranges, start: int, stop: int) -> Ranges:
    """Return the parts within [start, stop). All other fields are kept."""
    result: Ranges
    if start >= stop:
        result = ranges[:0].copy()
        return result
    result = ranges[(ends(ranges) > start) & (ranges["offset"] < stop)].copy()
    stops = numpy.minimum(ends(result), numpy.uint64(stop))
    result["offset"] = numpy.maximum(result["offset"], numpy.uint64(start))
    result["length"] = stops - result["offset"]
    return result


def flaw(ranges: Ranges, size: int) -> Optional[str]:
    """Return why this is not a sorted, disjoint list within [0, size), as a text; None if it is."""
    stops = ends(ranges)
    if (ranges["length"] == 0).any():
        return "an empty range"
    if (stops < ranges["offset"]).any() or (stops > size).any():
        return f"a range past the end of {size} bytes"
    if (ranges["offset"][1:] < stops[:-1]).any():
        return "ranges that overlap or are out of order"
    return None


def gaps(ranges: Ranges, start: int, stop: int) -> list[Range]:
    """Return the parts of [start, stop) that the sorted, disjoint ranges omit: list of (offset, length)."""
    edges = numpy.concatenate([[start], ends(ranges)]).astype("u8")
    nexts = numpy.concatenate([ranges["offset"], [stop]]).astype("u8")
    holes = numpy.flatnonzero(nexts > edges)
    return [(int(edges[i]), int(nexts[i] - edges[i])) for i in holes]


def filled(extents: Extents, start: int, stop: int, kind: int) -> Extents:
    """Return the extents, and what they omit of [start, stop) as extents of that kind."""
    left_out = of((*gap, kind) for gap in gaps(clip(extents, start, stop), start, stop))
    both = numpy.concatenate([extents, left_out])
    result: Extents = both[numpy.argsort(both["offset"], kind="stable")]
    return result


def intersect(ranges: Ranges, others: Ranges) -> Ranges:
    """Return the parts of `ranges` that lie in `others`, with their other fields. Both sorted and disjoint."""
    if not len(ranges) or not len(others):
        none: Ranges = ranges[:0].copy()
        return none
    pieces, inside = _cut_at_edges(ranges, others)
    return pieces[inside]


def covered(ranges: Ranges, others: Sequence[Ranges]) -> Mask:
    """Return which ranges lie entirely in the union of some arrays of others. All sorted and disjoint."""
    offsets = numpy.concatenate([each["offset"] for each in others])
    order = numpy.argsort(offsets, kind="stable")
    offsets, reach = offsets[order], numpy.maximum.accumulate(numpy.concatenate([*map(ends, others)])[order])
    last = numpy.concatenate([numpy.flatnonzero(offsets[1:] > reach[:-1]), [len(offsets) - 1]])  # of each run
    first = numpy.searchsorted(offsets, ranges["offset"], side="right").astype(numpy.int64) - 1
    stops = reach[last[numpy.searchsorted(last, numpy.maximum(first, 0))]]
    mask: Mask = (first >= 0) & (ends(ranges) <= stops)
    return mask


def without(ranges: Ranges, others: Ranges) -> Ranges:
    """Return the parts of `ranges` that do not lie in `others`, with their other fields. Both sorted and disjoint."""
    if not len(ranges) or not len(others):
        return ranges
    pieces, inside = _cut_at_edges(ranges, others)
    return pieces[~inside]


def _cut_at_edges(ranges: Ranges, others: Ranges) -> tuple[Ranges, Mask]:
    """Return (`ranges`, cut where one of `others` begins or ends; which of these pieces lie in `others`)."""
    edges = distinct([ranges["offset"], ends(ranges), others["offset"], ends(others)])
    offsets, lengths = edges[:-1], numpy.diff(edges)
    mine = answering(ranges, offsets)
    held = mine >= 0
    pieces: Ranges = ranges[mine[held]]
    pieces["offset"], pieces["length"] = offsets[held], lengths[held]
    return pieces, answering(others, pieces["offset"]) >= 0


def meeting(ranges: Ranges, start: int, stop: int) -> Ranges:
    """Return those of sorted, disjoint ranges that have a byte within [start, stop), whole. Not copied."""
    first = int(numpy.searchsorted(ranges["offset"], numpy.uint64(start), side="right"))
    if first and int(ends(ranges[first - 1 : first])[0]) > start:
        first -= 1
    found: Ranges = ranges[first : int(numpy.searchsorted(ranges["offset"], numpy.uint64(stop)))]
    return found


def overlay(lower: Segments, upper: Segments) -> Segments:
    """Lay segments over segments: where both have one, upper wins. Both sorted and disjoint, and so is the result."""
    if not len(lower) or not len(upper):
        return upper if len(upper) else lower
    edges = distinct([lower["offset"], ends(lower), upper["offset"], ends(upper)])
    offsets, lengths = edges[:-1], numpy.diff(edges)
    above, below = answering(upper, offsets), answering(lower, offsets)
    known = (above >= 0) | (below >= 0)
    result = numpy.concatenate([lower, upper])[numpy.where(above >= 0, above + len(lower), below)[known]]
    result["offset"], result["length"] = offsets[known], lengths[known]
    return _rejoined(result)


def distinct(arrays: Sequence[Numbers]) -> Numbers:
    """Return all values, ascending, each once. numpy.unique does the same, but loads numpy.ma for it: 20 ms."""
    values = numpy.sort(numpy.concatenate(arrays))
    first: Mask = numpy.concatenate([[True], values[1:] != values[:-1]])
    return values[first]


def answering(ranges: Ranges, offsets: Numbers) -> Indexes:
    """Return the index of the range that contains each offset, -1 if none does."""
    if not len(ranges):
        return numpy.full(len(offsets), -1, numpy.int64)
    nearest = numpy.searchsorted(ranges["offset"], offsets, side="right").astype(numpy.int64) - 1
    held = (nearest >= 0) & (offsets < ends(ranges)[nearest])
    return numpy.where(held, nearest, -1)


def _rejoined(segments: Segments) -> Segments:
    """Undo cuts that overlay made inside one record."""
    same = (
        (ends(segments)[:-1] == segments["offset"][1:])
        & (segments["layer"][:-1] == segments["layer"][1:])
        & (segments["record"][:-1] == segments["record"][1:])
    )
    return _joined(segments, ~same)


def in_blocks(extents: Extents, size: int) -> Extents:
    """Move borders of gapless extents, except the first and the last, to multiples of `size` bytes.

    A block of which a part is data becomes data.
    """
    if not len(extents):
        return extents
    start, stop = int(extents["offset"][0]), int(ends(extents)[-1])
    zero, block = extents[extents["kind"] == ZERO], numpy.uint64(size)
    first, last = zero["offset"], ends(zero)
    first = numpy.where(first == start, first, -(-first.astype("i8") // size) * size).astype("u8")
    last = numpy.where(last == stop, last, last // block * block)
    kept = first < last
    zero = zero[kept]
    zero["offset"], zero["length"] = first[kept], (last - first)[kept]
    return merged(filled(zero, start, stop, DATA))


def differences(old: Buffer, new: Buffer, block: int) -> list[tuple[int, int]]:
    """Return [(start, stop), …] of the blocks of `block` bytes in which two buffers of equal length differ, joined."""
    whole = len(new) // block * block
    left, right = (numpy.frombuffer(each, "u1") for each in (old, new))
    differ = (left[:whole] != right[:whole]).reshape(-1, block).any(axis=1)
    if whole < len(new):
        differ = numpy.append(differ, (left[whole:] != right[whole:]).any())
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[False], differ, [False]]).astype("i1")))
    return [(int(a) * block, min(int(b) * block, len(new))) for a, b in zip(edges[::2], edges[1::2])]
