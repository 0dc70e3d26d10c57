"""Ranges of files that are far away, read ahead where they are read one after the other.

A request costs the same time for 4 KiB as for 1 MiB, so who goes through a file in small steps gets larger and larger
blocks of it at once. Several threads do so side by side: blocks end at multiples of their size, so that two that read
in one share it. Who reads here and there gets what was asked for. Owns: what is kept in memory, within a budget for all
files together. Must not know: how a range is fetched.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from concurrent.futures import Future
from typing import Callable, NamedTuple, Optional

BUDGET = 64 << 20  # bytes
BLOCKS = (256 << 10, 1 << 20), (4 << 20, 8 << 20)  # (bytes that were read nearby, bytes of a block from then on)
STREAMS = 8  # that go through one file
NEAR = 8 << 20  # bytes between two reads of those who go through a file

Fetch = Callable[[int, int], bytes]  # (start, stop)


class _Piece(NamedTuple):
    """None lies within another one of its file: so in the order of their beginnings, they are in that of their ends."""

    stop: int
    data: Future[bytes]


class _Stream(NamedTuple):
    """Somebody who goes through a file. read: bytes until now."""

    last: int
    read: int


class ReadAhead:
    """May be used by several threads at once: who needs a piece that another one fetches waits for it."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget, self._used = budget, 0
        self._lock = threading.Lock()
        self._pieces: OrderedDict[tuple[str, int], _Piece] = OrderedDict()  # the one used last at the end
        self._starts: dict[str, list[int]] = {}  # of the pieces of each file, sorted
        self._streams: dict[str, list[_Stream]] = {}  # of each file, the one that was last read by at the end

    def read(self, name: str, size: int, offset: int, length: int, fetch: Fetch, through: bool = False) -> bytes:
        """`length` bytes of a file of that name and size, all of which it has. through: nearly all of it will be read,
        so there is nothing to find out."""
        with self._lock:
            block = BLOCKS[-1][1] if through else self._block(name, offset, length)
            start, piece = self._before(name, offset)
            is_mine = piece is None or piece.stop <= offset
            if piece is None or is_mine:
                begin = offset - offset % block
                start = max(begin, piece.stop) if piece else begin  # what is there already is not asked for again
                stop = offset + length if block == 1 else begin + block
                piece = _Piece(min(size, stop), Future())
                self._keep(name, start, piece)
        if is_mine:
            try:
                piece.data.set_result(fetch(start, piece.stop))
            except BaseException as error:
                self._drop(name, start, piece)
                piece.data.set_exception(error)
                raise
        found = piece.data.result()[offset - start : offset - start + length]
        if len(found) < length:
            found += self.read(name, size, piece.stop, length - len(found), fetch, through)
        return found

    def forget(self, name: str) -> None:
        """Have a file be fetched again: it may be another one now, or what was answered may have been wrong."""
        with self._lock:
            for start in [*self._starts.get(name, [])]:
                self._forget(name, start)

    def _before(self, name: str, offset: int) -> tuple[int, Optional[_Piece]]:
        """The last piece that begins at an offset or before: where that is, and the piece. If any has the offset, it is
        this one."""
        starts = self._starts.get(name, [])
        at = bisect_right(starts, offset)
        if not at:
            return offset, None
        self._pieces.move_to_end((name, starts[at - 1]))
        return starts[at - 1], self._pieces[name, starts[at - 1]]

    def _block(self, name: str, offset: int, length: int) -> int:
        """Size of the block to be read at an offset; 1: just what is asked for."""
        streams = self._streams.setdefault(name, [])
        near = [each for each in streams if abs(offset - each.last) <= NEAR]
        before = min(near, key=lambda each: abs(offset - each.last), default=_Stream(offset, 0))
        stream = _Stream(offset, before.read + length)
        self._streams[name] = [*(each for each in streams if each is not before), stream][-STREAMS:]
        return max((size for least, size in BLOCKS if stream.read >= least), default=1)

    def _keep(self, name: str, start: int, piece: _Piece) -> None:
        starts = self._starts.get(name, [])
        for within in starts[bisect_left(starts, start) : bisect_left(starts, piece.stop)]:
            if self._pieces[name, within].stop <= piece.stop:
                self._forget(name, within)
        self._pieces[name, start] = piece
        insort(self._starts.setdefault(name, []), start)
        self._used += piece.stop - start
        while self._used > self._budget and len(self._pieces) > 1:
            self._forget(*next(iter(self._pieces)))

    def _forget(self, name: str, start: int) -> None:
        self._used -= self._pieces.pop((name, start)).stop - start
        starts = self._starts[name]
        del starts[bisect_left(starts, start)]
        if not starts:
            del self._starts[name]

    def _drop(self, name: str, start: int, piece: _Piece) -> None:
        """What could not be fetched."""
        with self._lock:
            if self._pieces.get((name, start)) is piece:
                self._forget(name, start)
