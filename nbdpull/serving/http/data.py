"""The bytes of a volume as pieces, read ahead.

Owns: how much is read at once, and how much ahead. Must not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from ...core import pipeline
from .volume import Volume

PIECE = 1 << 20  # bytes that a thread reads ahead at once: a frame of a point
NEXT = 768 << 10  # bytes read on demand: what a live disk can have in flight, and what fits into a core's cache
AHEAD = 4 * PIECE


def pieces(volume: Volume, begin: int, end: int) -> Iterator[memoryview]:
    """Yield pieces, each valid until the next is taken. A read error ends this with an exception."""
    if not volume.readers or end - begin <= PIECE:
        buffer = bytearray(min(NEXT, end - begin))
        for at in range(begin, end, NEXT):
            yield _read(volume, at, buffer, end)
        return
    yield from _read_ahead(volume, begin, end)


def _read_ahead(volume: Volume, begin: int, end: int) -> Iterator[memoryview]:
    free: list[bytearray] = []

    def read(at: int) -> tuple[memoryview, bytearray]:
        try:
            buffer = free.pop()
        except IndexError:  # a check beforehand would let another thread take the last one
            buffer = bytearray(PIECE)
        return _read(volume, at, buffer, end), buffer

    read_ahead = pipeline.ordered(
        read, range(begin, end, PIECE), threads=volume.readers, budget=AHEAD, weight=lambda at: PIECE
    )
    with closing(read_ahead):
        for view, buffer in read_ahead:
            yield view
            free.append(buffer)


def _read(volume: Volume, at: int, buffer: bytearray, end: int) -> memoryview:
    view = memoryview(buffer)[: end - at]
    volume.read_into(at, view)
    return view
