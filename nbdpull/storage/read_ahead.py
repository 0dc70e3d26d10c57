"""Ranges of remote files, read ahead where they are read sequentially.

A request takes as long for 4 KiB as for 1 MiB, so a sequential reader in small steps gets larger and larger blocks at
once. Several threads may read one file side by side: blocks end at multiples of their size, so two readers in one block
share it. Random reads fetch only what was requested. Owns: what is kept in memory, within one budget for all files.
Must not know: how a range is fetched.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from concurrent.futures import Future
from typing import Callable, NamedTuple, Optional

BUDGET = 64 << 20  # bytes
BLOCKS = (256 << 10, 1 << 20), (4 << 20, 8 << 20)  # (bytes read sequentially so far, bytes of a block from then on)
STREAMS = 8  # sequential readers of one file that are tracked
NEAR = 8 << 20  # bytes between two reads of one sequential reader, at most

Fetch = Callable[[int, int], bytes]  # (start, stop)


class _Piece(NamedTuple):
    """A range of a file. No piece lies within another piece of its file, so pieces sorted by start are also sorted by
    end."""

    stop: int
    data: Future[bytes]


class _Stream(NamedTuple):
    """A sequential reader of a file. last: offset of its last read; read: bytes that it has read so far."""

    last: int
    read: int


class ReadAhead:
    """The ranges in memory. Safe for several threads at once: a thread that needs a piece which another one is fetching
    waits for it."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget, self._used = budget, 0
        self._lock = threading.Lock()
        self._pieces: OrderedDict[tuple[str, int], _Piece] = OrderedDict()  # least recently used first
        self._starts: dict[str, list[int]] = {}  # of the pieces of each file, sorted
        self._streams: dict[str, list[_Stream]] = {}  # of each file, least recently active first

    def read(self, name: str, size: int, offset: int, length: int, fetch: Fetch, through: bool = False) -> bytes:
        """Return `length` bytes of a file of that name and size; the range must lie within the file. through: nearly
        all of the file will be read, so the largest blocks are used from the start."""
        with self._lock:
            block = BLOCKS[-1][1] if through else self._block(name, offset, length)
            start, piece = self._before(name, offset)
            is_mine = piece is None or piece.stop <= offset
            if piece is None or is_mine:
                begin = offset - offset % block
                start = max(begin, piece.stop) if piece else begin  # skip what is there already
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
        """Drop what is in memory of a file: it may have been replaced, or an answer may have been wrong."""
        with self._lock:
            for start in [*self._starts.get(name, [])]:
                self._forget(name, start)

    def _before(self, name: str, offset: int) -> tuple[int, Optional[_Piece]]:
        """Return (start, piece) for the last piece that starts at or before an offset, (offset, None) if there is none.
        If any piece contains the offset, it is this one."""
        starts = self._starts.get(name, [])
        at = bisect_right(starts, offset)
        if not at:
            return offset, None
        self._pieces.move_to_end((name, starts[at - 1]))
        return starts[at - 1], self._pieces[name, starts[at - 1]]

    def _block(self, name: str, offset: int, length: int) -> int:
        """Return the size of the block to fetch at an offset; 1: only what was requested."""
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
        """Forget a piece that could not be fetched."""
        with self._lock:
            if self._pieces.get((name, start)) is piece:
                self._forget(name, start)
