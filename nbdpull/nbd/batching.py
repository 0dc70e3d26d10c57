"""Which reads serve the ranges that are wanted, and how much of the map is asked for next: figures alone.

Owns: what is read with its neighbours, what is looked at in pieces, the window of a block status request. Must not
know: connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..core.extents import Range

    Piece = tuple[int, memoryview]  # (offset, bytes, or where they go)

# QEMU answers a block status request in the guest's I/O thread, so that its length follows the time that one took. The
# first is the shortest: who wants a page of the map has it from there mostly, and QEMU asked no image for the rest.
MIN_STATUS, MAX_STATUS = 16 << 20, 2 << 30  # bytes asked for in one request
SLOW_STATUS, QUICK_STATUS = 0.02, 0.005  # seconds
BRIDGE = 16 << 10  # bytes: what lies between two ranges is read with them, and dropped, where it is no more than this


def next_window(window: int, seconds: float) -> int:
    """Bytes to ask for, where an answer for `window` of them took so long."""
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
    """Yield (where it begins, length) of the pieces of something so long, of at most so many bytes each."""
    for at in range(0, length, most):
        yield at, min(most, length - at)


def loads(pieces: Iterable[Piece], most_bytes: int, most: int) -> Iterator[list[Piece]]:
    """Group consecutive (offset, buffer) into lists, never empty ones, of at most so many of them, and of so many bytes
    where one alone has no more."""
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
    """Ascending [start, stop) ranges, neighbours made one."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
