"""One disk on its way from its image to its target: which pieces, which zeroes, and what of them is written.

Owns: how the pieces of a disk become items of work, the comparison before a write, what a damaged frame costs, and the
counts of a disk. Must not know: other disks, files, the order of a run's steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Optional, Union, cast

from ..core import errors, extents
from ..format import reader
from ..repository.image import Image, Piece, Row

if TYPE_CHECKING:
    from ..core.extents import Part, Range
    from .target import Rewritable, Target

BATCH_DATA = 4 << 20  # bytes of data decompressed and written as one item of work
BATCH_ZEROES = 64  # zero ranges in one item
ZERO_STEP = 128 << 20  # bytes zeroed in one call: a server without an efficient way must not seem to hang
COMPARED = 4096  # bytes: what differs is written in such blocks
READ_STEP = 1 << 20  # bytes read at once to compare with zeroes


@dataclass
class Batch:
    """One item of work: pieces with data, and ranges (offset, length) that must read as zero."""

    pieces: list[Piece] = field(default_factory=list)
    zeroes: list[Range] = field(default_factory=list)
    data: int = 0
    end: int = 0

    def add(self, piece: Optional[Piece], zeroes: list[Range]) -> None:
        self.zeroes += zeroes
        if piece is not None:
            self.pieces.append(piece)
            self.data += extents.total(piece.extents)
            zeroes = [(int(piece.extents["offset"][-1]), int(piece.extents["length"][-1]))]
        self.end = sum(zeroes[-1])

    @property
    def full(self) -> bool:
        return self.data >= BATCH_DATA or len(self.zeroes) >= BATCH_ZEROES


@dataclass
class Done:
    """What came of a Batch. parts: what a sequential target still has to be given; lost: [(offset, length, why)]."""

    batch: Batch
    written: int = 0
    parts: list[Part] = field(default_factory=list)
    lost: list[tuple[int, int, str]] = field(default_factory=list)


class DiskRestore:
    """Give `work` what `batches` yields, in any thread, and `add` what comes of it, in order."""

    def __init__(self, image: Image, target: Target, delta: bool = False, salvage: bool = False) -> None:
        self.disk = image.disk
        self.written = 0
        self.lost: list[tuple[int, int, str]] = []
        self._image, self._salvage = image, salvage
        self._compare = delta
        self._target: Target = Difference(cast("Rewritable", target)) if delta else target
        self._reached, self._started = 0, time.monotonic()

    def batches(self) -> Iterator[Batch]:
        """Yield a Batch after the other, ascending."""
        batch = Batch()
        for piece, zeroes in self._steps():
            zeroes = iter(zeroes)
            while some := list(islice(zeroes, BATCH_ZEROES)):
                batch.add(None, some)
                if batch.full:
                    yield batch
                    batch = Batch()
            if piece is not None:
                batch.add(piece, [])
            if batch.full:
                yield batch
                batch = Batch()
        if batch.end:
            yield batch

    def _steps(self) -> Iterator[tuple[Optional[Piece], Iterable[Range]]]:
        """Yield (piece or None, zero ranges before it or within its block)."""
        reached = 0
        for piece in self._image.pieces():
            if piece.sources:
                end = int(extents.ends(piece.extents[-1:])[0])
                yield piece, self._gaps(extents.gaps(piece.extents, reached, end))
                reached = end
            elif self._image.partial:  # else they are among the gaps, with what no record tells of
                yield None, _steps_of(zip(piece.extents["offset"].tolist(), piece.extents["length"].tolist()))
        # A partial image says nothing of a gap, but what is behind the end of its disk is none of it.
        rest = self._image.size if self._image.partial else reached
        if rest < self._target.size and not self._target.blank:
            yield None, _steps_of([(rest, self._target.size - rest)])

    def _gaps(self, gaps: list[Range]) -> Iterable[Range]:
        return [] if self._target.blank or self._image.partial else _steps_of(gaps)

    def work(self, batch: Batch) -> tuple[DiskRestore, Done]:
        """In a thread of the pipeline: decompress, check, and write."""
        done = Done(batch)
        for offset, length in batch.zeroes:
            done.written += cast("Rewritable", self._target).zero(offset, length)  # a blank one gets none
        for piece in batch.pieces:
            done.parts += self._parts(piece, done)
        if not self._target.sequential:
            done.written += self._target.write(done.parts)
            done.parts = []
        return self, done

    def _parts(self, piece: Piece, done: Done) -> list[Part]:
        piece = self._differing(piece)
        try:
            return list(zip(piece.extents["offset"].tolist(), self._image.read_piece(piece)))
        except errors.Damaged as error:
            if not self._salvage:
                raise
            return self._salvaged(piece, error, done)

    def _salvaged(self, piece: Piece, error: errors.Damaged, done: Done) -> list[Part]:
        """Extent by extent; what is lost reads as zero, as old data would pass for the point's."""
        if len(piece.sources) > 1:
            single = [Piece(piece.extents[i : i + 1], piece.sources[i : i + 1]) for i in range(len(piece.sources))]
            return [part for each in single for part in self._parts(each, done)]
        offset, length = int(piece.extents["offset"][0]), int(piece.extents["length"][0])
        done.lost.append((offset, length, str(error)))
        if not self._target.blank:
            done.written += cast("Rewritable", self._target).zero(offset, length)
        return []

    def _differing(self, piece: Piece) -> Piece:
        """The piece without the whole frames that the target already holds, as their digests tell."""
        if not self._compare:
            return piece
        keep = [not self._held(extent, record) for extent, (_, record) in zip(piece.extents, piece.sources)]
        return Piece(piece.extents[keep], [source for source, kept in zip(piece.sources, keep) if kept])

    def _held(self, extent: Row, record: Row) -> bool:
        if int(extent["length"]) != int(record["raw"]):
            return False
        return cast(Difference, self._target).holds(
            int(extent["offset"]), int(record["raw"]), record["digest"].tobytes()
        )

    def add(self, done: Done) -> None:
        """In order, in one thread."""
        if done.parts:
            done.written += self._target.write(done.parts)
        self.written += done.written
        self.lost += done.lost
        self._reached = max(self._reached, done.batch.end)

    def flush(self) -> None:
        self._target.flush()

    def progress(self, finished: bool = False) -> dict[str, Union[str, int]]:
        position = self._image.size if finished else min(self._reached, self._image.size)
        seconds = max(time.monotonic() - self._started, 1e-3)
        return {"disk": self.disk, "position": position, "size": self._image.size, "written_bytes": self.written,
                "bytes_per_second": int(position / seconds)}  # fmt: skip


class Difference:
    """A target that is read first, and written to only where it differs."""

    sequential = blank = False

    def __init__(self, target: Rewritable) -> None:
        self._target, self.size = target, target.size

    def holds(self, offset: int, length: int, digest: bytes) -> bool:
        return reader.digest(self._target.read(offset, length)) == digest

    def write(self, parts: Sequence[Part]) -> int:
        changed = []
        for offset, buffer in parts:
            ranges = extents.differences(self._target.read(offset, len(buffer)), buffer, COMPARED)
            changed += [(offset + start, memoryview(buffer)[start:stop]) for start, stop in ranges]
        return self._target.write(changed)

    def flush(self) -> None:
        self._target.flush()

    def zero(self, offset: int, length: int) -> int:
        written = 0
        for start, size in self._target.allocated(offset, length):
            for at in range(start, start + size, READ_STEP):
                data = self._target.read(at, min(READ_STEP, start + size - at))
                for begin, end in extents.differences(data, bytes(len(data)), COMPARED):
                    written += self._target.zero(at + begin, end - begin)
        return written


def _steps_of(ranges: Iterable[Range]) -> Iterator[Range]:
    """Yield ranges cut so that none is longer than ZERO_STEP."""
    for offset, length in ranges:
        for at in range(offset, offset + length, ZERO_STEP):
            yield at, min(ZERO_STEP, offset + length - at)
