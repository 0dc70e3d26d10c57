"""Which reads serve the wanted ranges, and how much of the map to request next: only arithmetic.

Owns: what is read with its neighbours, what is checked in pieces, the window of a block status request. Must not know:
connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.extents import Range

    Piece = tuple[int, memoryview]  # (offset, bytes, or where they go)

# QEMU answers a block status request in the guest's I/O thread, so the length depends on the time that the last one
# took. The first is the shortest: it usually contains all that a client wants of a page of the map, and QEMU does not
# examine the image for the rest.
MIN_STATUS, MAX_STATUS = 16 << 20, 2 << 30  # bytes in one request
SLOW_STATUS, QUICK_STATUS = 0.02, 0.005  # seconds
BRIDGE = 16 << 10  # bytes: a gap between two ranges that is at most this long is read with them, and dropped


def next_window(window: int, seconds: float) -> int:
    """Return the bytes of the next request, if an answer for `window` bytes took this long."""
    if seconds > SLOW_STATUS:
        return max(window // 2, MIN_STATUS)
    return min(window * 2, MAX_STATUS) if seconds < QUICK_STATUS else window


def bridged(ranges: Iterable[Range]) -> list[tuple[int, int, list[Range]]]:
    """Join ascending ranges that are at most BRIDGE bytes apart: [(offset, length, ranges within), …]."""
    reads: list[tuple[int, int, list[Range]]] = []
    for offset, length in ranges:
        start, size, within = reads[-1] if reads else (0, 0, [])
        if within and offset - (start + size) <= BRIDGE:
            within.append((offset, length))
            reads[-1] = (start, offset + length - start, within)
        else:
            reads.append((offset, length, [(offset, length)]))
    return reads


def steps(length: int, most: int) -> Iterator[Range]:
    """Yield (start, length) of the pieces of `length` bytes, each at most `most` bytes."""
    for at in range(0, length, most):
        yield at, min(most, length - at)


def loads(pieces: Iterable[Piece], most_bytes: int, most: int) -> Iterator[list[Piece]]:
    """Group consecutive (offset, buffer) into lists, never empty, of at most `most` items and `most_bytes` bytes.

    A single item may be larger.
    """
    load: list[Piece] = []
    size = 0
    for piece in pieces:
        if load and (len(load) >= most or size + len(piece[1]) > most_bytes):
            yield load
            load, size = [], 0
        load.append(piece)
        size += len(piece[1])
    if load:
        yield load


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ascending [start, stop) ranges, with neighbours joined."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
