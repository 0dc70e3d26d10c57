"""The bytes of a volume as pieces, read ahead of the client.

Each piece is valid until the next is taken. A read error ends them with an exception. Owns: how much is read at once,
and how much ahead. Must not know: HTTP, what is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Callable

from ...core import pipeline

PIECE = 1 << 20  # bytes that a thread reads at once: a frame of a point
AHEAD = 4 * PIECE
STEP = 768 << 10  # bytes read in two steps: what a live disk can have in flight, and what fits into a core's cache

ReadInto = Callable[[int, memoryview], None]
Filling = Callable[[int, memoryview], Generator[bool, None, None]]


def by_threads(read_into: ReadInto, begin: int, end: int, threads: int) -> Iterator[memoryview]:
    """Yield the pieces of a range, read by threads: for a volume whose bytes have to be computed. A short range is read
    without them."""
    if end - begin <= PIECE:
        view = memoryview(bytearray(end - begin))
        read_into(begin, view)
        yield view
        return
    free: list[bytearray] = []

    def read(at: int) -> tuple[memoryview, bytearray]:
        try:
            buffer = free.pop()
        except IndexError:  # a check beforehand would let another thread take the last one
            buffer = bytearray(PIECE)
        view = memoryview(buffer)[: end - at]
        read_into(at, view)
        return view, buffer

    read_ahead = pipeline.ordered(
        read, range(begin, end, PIECE), threads=threads, budget=AHEAD, weight=lambda at: PIECE
    )
    with closing(read_ahead):
        for view, buffer in read_ahead:
            yield view
            free.append(buffer)


def in_two_steps(filling: Filling, begin: int, end: int) -> Iterator[memoryview]:
    """Yield the pieces of a range, each requested before the client gets the one before it: for a volume whose bytes
    come from a server. filling: see Live in volume.py."""
    buffers = [memoryview(bytearray(min(STEP, end - begin))) for _ in range(2)]
    under_way: deque[tuple[memoryview, Generator[bool, None, None]]] = deque()

    def requested(at: int) -> bool:
        view = buffers[(at - begin) // STEP % 2][: end - at]
        under_way.append((view, filling(at, view)))
        return next(under_way[-1][1])

    try:
        is_ahead = False
        for at in range(begin, end, STEP):
            # Nothing is requested behind what was not: it would have the connections that this waits for.
            if is_ahead or (not under_way and requested(at)):
                is_ahead = at + STEP < end and requested(at + STEP)
            view, steps = under_way.popleft()
            next(steps, None)
            yield view
    finally:
        while under_way:
            under_way.popleft()[1].close()
