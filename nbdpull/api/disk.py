"""A disk of a backup, for the program that reads it.

Owns: extents as values, and reads into the caller's memory. Must not know: how a job is started or ended.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, Union

from ..core import errors, extents
from ..definitions.domain_xml import Disk as Facts
from . import callers

DATA, ZERO = "data", "zero"
BATCH = 1 << 20  # bytes requested at once on a connection

_NAME = re.compile(":[^:]*:")  # of a member, in the format of a buffer

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
        self._process = os.getpid()

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield what has to be taken over from this backup, ascending, disjoint, from `start` on.

        In full mode that is the whole disk, in incremental mode what may have changed. What is in no extent is
        unchanged.
        """
        self._require_within(start, 0)
        with self._read_from() as source:
            return self._yielded(source.extents(start))

    def _yielded(self, stream: Iterator[Any]) -> Iterator[Extent]:
        with self._read_from():
            for found in stream:
                for offset, length, kind in found.tolist():
                    if self._source is None:  # what remains was read in advance
                        raise self._ended()
                    yield Extent(offset, length, ZERO if kind == extents.ZERO else DATA)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill a writable buffer with the bytes at offset; a large one over several connections.

        Any number of threads may read at once; a few of them do, see Options.connections. SourceError, JobLost.
        """
        view = _writable(buffer)
        self._require_within(offset, len(view))
        with self._read_from() as source:
            source.read_into(offset, view)

    def _filling(self, offset: int, buffer: memoryview) -> Generator[bool, None, None]:
        """Do what `read_into` does in two steps: see Source.filling."""
        self._require_within(offset, len(buffer))
        with self._read_from() as source:
            steps = source.filling(offset, buffer)
            is_requested = next(steps)
        with closing(steps):
            yield is_requested
            with self._read_from():
                next(steps, None)

    def read_many(self, reads: Iterable[tuple[int, Buffer]]) -> None:
        """Fill several buffers with concurrent reads, each (offset, buffer)."""
        pieces = [piece for offset, buffer in _pairs(reads) for piece in self._pieces(offset, _writable(buffer))]
        pieces.sort(key=lambda piece: piece[0])
        with self._read_from() as source, source.reading() as reader:
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
        if type(offset) is not int:
            raise errors.UsageError(f"an offset on disk {self.name} is {offset!r}: give an int, in bytes")
        if not 0 <= offset <= offset + length <= self.size:
            raise errors.UsageError(
                f"disk {self.name} has {self.size} bytes: {length} bytes cannot be read from byte {offset} on"
            )

    @contextmanager
    def _read_from(self) -> Iterator[Any]:
        """Yield the source. What its end does to a read in another thread is that error, too."""
        try:
            with callers.unwrapped():
                yield self._open
        except errors.SourceError as error:
            if self._source is None:
                raise self._ended() from error
            raise

    @property
    def _open(self) -> Any:
        source = self._source
        if source is None:
            raise self._ended()
        if os.getpid() != self._process:  # it has the same connections, and would take answers that are not its own
            raise errors.UsageError(f"disk {self.name} can only be read by the process that opened the backup")
        return source

    def _ended(self) -> errors.UsageError:
        return errors.UsageError(f"disk {self.name} cannot be read any more: its backup has ended")

    def _end(self) -> None:
        self._source = None


def _pairs(reads: Iterable[Any]) -> Iterator[tuple[int, Buffer]]:
    if not isinstance(reads, Iterable):
        raise errors.UsageError(f"read_many was given {reads!r}: give pairs of an offset and a buffer")
    for each in reads:
        if not (isinstance(each, Sequence) and len(each) == 2):
            raise errors.UsageError(f"read_many was given {type(each).__name__} as a read: give an offset and a buffer")
        yield each[0], each[1]


def _writable(buffer: Buffer) -> memoryview:
    try:
        given = memoryview(buffer)
        view = given.cast("B")
    except (TypeError, ValueError, BufferError) as error:
        raise errors.UsageError(f"a disk cannot be read into this buffer: {error}") from None
    if view.readonly:
        raise errors.UsageError("a disk cannot be read into a buffer that is read-only")
    if "O" in _NAME.sub("", given.format):  # cast() allows it; Python would follow the disk's bytes
        raise errors.UsageError("a disk cannot be read into a buffer of Python objects")
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
