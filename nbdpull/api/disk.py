"""A disk of a backup, for the program that reads it.

Owns: extents as values, and reads into the caller's memory. Must not know: how a job is started or ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Union

from ..core import errors, extents
from ..definitions.domain_xml import Disk as Facts
from . import callers

DATA, ZERO = "data", "zero"
BATCH = 1 << 20  # bytes requested at once on a connection

Buffer = Union[bytearray, memoryview]


class Extent(NamedTuple):
    """A range that may have changed. offset, length: in bytes; kind: "data", to be read, or "zero"."""

    offset: int
    length: int
    kind: str


class Disk:
    """A disk of an open backup.

    name: such as vda; size: bytes; mode: "full" or "incremental", how it is read; reason: for that mode, a code word.
    """

    def __init__(self, facts: Facts, mode: str, reason: str, source: Any) -> None:
        self.name, self.size, self.mode, self.reason = facts.target, facts.size, mode, reason
        self._source: Any = source

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield what has to be taken over from this backup, ascending, disjoint, from `start` on.

        In full mode that is the whole disk, in incremental mode what may have changed. What is in no extent is
        unchanged.
        """
        self._require_within(start, 0)
        with callers.unwrapped():
            for found in self._open.extents(start):
                for offset, length, kind in found.tolist():
                    yield Extent(offset, length, ZERO if kind == extents.ZERO else DATA)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a writable buffer with the bytes at offset; a large one over several connections.

        Any number of threads may read at once; a few of them do, see Options.connections. SourceError, JobLost.
        """
        view = _writable(buffer)
        self._require_within(offset, len(view))
        with callers.unwrapped():
            self._open.read_into(offset, view)

    def read_many(self, reads: Iterable[tuple[int, Buffer]]) -> None:
        """Fill several buffers with concurrent reads."""
        pieces = [piece for offset, buffer in reads for piece in self._pieces(offset, _writable(buffer))]
        pieces.sort(key=lambda piece: piece[0])
        with callers.unwrapped(), self._open.reading() as reader:
            batch: list[tuple[int, memoryview]] = []
            room = BATCH
            for offset, view in pieces:
                if batch and len(view) > room:
                    _read(reader, batch)
                    batch, room = [], BATCH
                batch.append((offset, view))
                room -= len(view)
            _read(reader, batch)

    def _pieces(self, offset: int, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        self._require_within(offset, len(view))
        for at in range(0, len(view), BATCH):
            yield offset + at, view[at : at + BATCH]

    def _require_within(self, offset: int, length: int) -> None:
        if type(offset) is not int or not 0 <= offset <= offset + length <= self.size:
            raise errors.UsageError(
                f"disk {self.name} has {self.size} bytes: {length} bytes cannot be read from byte {offset!r} on"
            )

    @property
    def _open(self) -> Any:
        if self._source is None:
            raise errors.UsageError(f"disk {self.name} cannot be read any more: its backup has ended")
        return self._source

    def _end(self) -> None:
        self._source = None


def _writable(buffer: Buffer) -> memoryview:
    try:
        view = memoryview(buffer).cast("B")
    except TypeError as error:
        raise errors.UsageError(f"a disk cannot be read into this buffer: {error}") from None
    if view.readonly:
        raise errors.UsageError("a disk cannot be read into a buffer that is read-only")
    return view


def _read(reader: Any, batch: list[tuple[int, memoryview]]) -> None:
    """Fill ascending buffers; ranges that overlap are read one after the other."""
    while batch:
        now: list[tuple[int, memoryview]] = []
        later: list[tuple[int, memoryview]] = []
        reached = 0
        for offset, view in batch:
            (now if offset >= reached else later).append((offset, view))
            if offset >= reached:
                reached = offset + len(view)
        found = reader.read_batch([(offset, len(view)) for offset, view in now if len(view)])
        for (_, view), data in zip([each for each in now if len(each[1])], found):
            view[:] = data
        batch = later
