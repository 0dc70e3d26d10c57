"""The bytes of a volume as pieces, read ahead.

Owns: how much is read at once, and how much ahead. Must not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from ...core import pipeline
from .volume import Volume

PIECE = 1 << 20  # bytes that a thread reads ahead at once: a frame of a point
NEXT = 768 << 10  # bytes that are read when they are wanted: what a live disk has under way, and a core's cache holds
AHEAD = 4 * PIECE


def pieces(volume: Volume, begin: int, end: int) -> Iterator[memoryview]:
    """Each is good until the next is taken. What cannot be read ends it by an exception."""
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
        except IndexError:  # asked beforehand, another thread could have taken the last
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
