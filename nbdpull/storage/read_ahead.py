"""Ranges of files that are far away, read ahead where they are read one after the other.

A request costs the same time for 4 KiB as for 1 MiB, so who goes through a file in small steps gets larger and larger
blocks of it at once. Several threads do so side by side: blocks begin at multiples of their size, so that two that read
in one share it. Who reads here and there gets what was asked for. Owns: what is kept in memory, within a budget for all
files together. Must not know: how a range is fetched.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Callable, NamedTuple, Optional

BUDGET = 64 << 20  # bytes
BLOCKS = (256 << 10, 1 << 20), (4 << 20, 8 << 20)  # (bytes that were read nearby, bytes of a block from then on)
STREAMS = 8  # that go through one file
NEAR = 8 << 20  # bytes between two reads of those who go through a file

Fetch = Callable[[int, int], bytes]  # (start, stop)


class _Piece(NamedTuple):
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
        self._streams: dict[str, list[_Stream]] = {}  # of each file, the one that was last read by at the end

    def read(self, name: str, size: int, offset: int, length: int, fetch: Fetch) -> bytes:
        """`length` bytes of a file of that name and size, all of which it has."""
        with self._lock:
            block = self._block(name, offset, length)
            start, piece = self._find(name, offset)
            is_mine = piece is None
            if piece is None:
                start = offset - offset % block
                stop = offset + length if block == 1 else start + block
                piece = _Piece(min(size, stop), Future())
                self._keep(name, start, piece)
        if is_mine:
            try:
                piece.data.set_result(fetch(start, piece.stop))
            except BaseException as error:
                self._drop(name, start)
                piece.data.set_exception(error)
                raise
        found = piece.data.result()[offset - start : offset - start + length]
        if len(found) < length:
            found += self.read(name, size, piece.stop, length - len(found), fetch)
        return found

    def _find(self, name: str, offset: int) -> tuple[int, Optional[_Piece]]:
        """Where the piece that has an offset begins, and that; the offset where there is none."""
        for (other, start), piece in self._pieces.items():
            if other == name and start <= offset < piece.stop:
                self._pieces.move_to_end((name, start))
                return start, piece
        return offset, None

    def _block(self, name: str, offset: int, length: int) -> int:
        """Size of the block to be read at an offset; 1: just what is asked for."""
        streams = self._streams.setdefault(name, [])
        near = [each for each in streams if abs(offset - each.last) <= NEAR]
        before = min(near, key=lambda each: abs(offset - each.last), default=_Stream(offset, 0))
        stream = _Stream(offset, before.read + length)
        self._streams[name] = [*(each for each in streams if each is not before), stream][-STREAMS:]
        return max((size for least, size in BLOCKS if stream.read >= least), default=1)

    def _keep(self, name: str, start: int, piece: _Piece) -> None:
        if old := self._pieces.pop((name, start), None):
            self._used -= old.stop - start
        self._pieces[name, start] = piece
        self._used += piece.stop - start
        while self._used > self._budget and len(self._pieces) > 1:
            (_, first), oldest = self._pieces.popitem(last=False)
            self._used -= oldest.stop - first

    def _drop(self, name: str, start: int) -> None:
        with self._lock:
            if old := self._pieces.pop((name, start), None):
                self._used -= old.stop - start
