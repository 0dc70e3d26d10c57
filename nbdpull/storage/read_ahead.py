"""Ranges of files that are far away, read ahead where they are read one after the other.

A request costs the same time for 4 KiB as for 1 MiB, so a reader that goes through a file in small steps gets larger
and larger pieces of it at once. Who reads here and there gets what was asked for. Owns: what is kept in memory, within
a budget for all files together. Must not know: how a range is fetched.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Callable, NamedTuple

BUDGET = 64 << 20  # bytes
LEAST, MOST = 256 << 10, 8 << 20  # bytes of a piece that is read ahead
NEAR = 128 << 10  # bytes that may be left out between two reads of one reader

Fetch = Callable[[int, int], bytes]  # (start, stop)


class _Piece(NamedTuple):
    stop: int
    data: Future[bytes]


class ReadAhead:
    """May be used by several threads at once: who needs a piece that another one fetches waits for it."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget, self._used = budget, 0
        self._lock = threading.Lock()
        self._pieces: OrderedDict[tuple[str, int], _Piece] = OrderedDict()  # the one used last at the end

    def read(self, name: str, size: int, offset: int, length: int, fetch: Fetch) -> bytes:
        """`length` bytes of a file of that name and size, all of which it has."""
        with self._lock:
            start, stop, data = self._find(name, offset, offset + length)
            is_mine = data is None
            if data is None:
                start, stop = offset, min(size, max(offset + length, offset + self._step(name, offset)))
                data = Future()
                self._keep(name, start, _Piece(stop, data))
        if is_mine:
            try:
                data.set_result(fetch(start, stop))
            except BaseException as error:
                self._drop(name, start)
                data.set_exception(error)
                raise
        return data.result()[offset - start : offset - start + length]

    def _find(self, name: str, offset: int, stop: int) -> tuple[int, int, Future[bytes] | None]:
        for (other, start), piece in self._pieces.items():
            if other == name and start <= offset and stop <= piece.stop:
                self._pieces.move_to_end((name, start))
                return start, piece.stop, piece.data
        return offset, stop, None

    def _step(self, name: str, offset: int) -> int:
        """How much is to be read at an offset: twice as much as of the piece that ends just before it."""
        for (other, start), piece in self._pieces.items():
            if other == name and start < offset and -NEAR <= piece.stop - offset <= NEAR:
                return min(MOST, max(LEAST, 2 * (piece.stop - start)))
        return 0

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
