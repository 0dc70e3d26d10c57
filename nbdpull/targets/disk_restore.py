"""One disk on its way from its image to its target: which pieces, which zeroes, and which of them are written.

Owns: how the pieces of a disk become items of work, the comparison before a write, the consequences of a damaged frame,
and the counts of a disk. Must not know: other disks, files, the order of a run's steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Optional, Union, cast

from ..core import errors, extents
from ..format import reader
from ..repository.image import Image

if TYPE_CHECKING:
    from ..core.extents import Part, Range
    from ..format import layout
    from ..repository.image import Piece
    from .target import Rewritable, Target

BATCH_DATA = 4 << 20  # bytes of data decompressed and written as one item of work
BATCH_ZEROES = 64  # zero ranges in one item
ZERO_STEP = 128 << 20  # bytes zeroed in one call: a server that has no efficient way must not seem to hang
COMPARED = 4096  # bytes: differences are written in blocks of this size
READ_STEP = 1 << 20  # bytes read at once to compare with zeroes


Lost = tuple[int, int, str]  # offset, length, why


@dataclass(frozen=True)
class Batch:
    """One item of work: pieces with data, and ranges (offset, length) that must read as zero.

    data: bytes of data; end: where the last piece or range ends.
    """

    pieces: list[Piece]
    zeroes: list[Range]
    data: int
    end: int


@dataclass(frozen=True)
class Done:
    """The result of a Batch. written: bytes; parts: what is still to be written to a sequential target."""

    end: int
    written: int
    parts: list[Part]
    lost: list[Lost]


class _Read(NamedTuple):
    """The data of a piece, and what of it cannot be read."""

    parts: list[Part]
    lost: list[Lost]


class DiskRestore:
    """The restore of one disk.

    Pass what `batches` yields to `work`, in any thread, and each result to `add`, in order.
    """

    def __init__(self, image: Image, target: Target, delta: bool = False, salvage: bool = False) -> None:
        self.disk = image.disk
        self.written = 0
        self._image, self._salvage = image, salvage
        self._compare = delta
        self._target: Target = Difference(cast("Rewritable", target)) if delta else target
        self._reached, self._started = 0, time.monotonic()

    def batches(self) -> Iterator[Batch]:
        """Yield Batches, ascending."""
        pieces: list[Piece] = []
        zeroes: list[Range] = []
        data = end = 0
        for piece, some in self._portions():
            zeroes += some
            if piece is not None:
                pieces.append(piece)
                data += extents.total(piece)
            end = sum(some[-1]) if piece is None else int(extents.ends(piece[-1:])[0])
            if data >= BATCH_DATA or len(zeroes) >= BATCH_ZEROES:
                yield Batch(pieces, zeroes, data, end)
                pieces, zeroes, data, end = [], [], 0, 0
        if end:
            yield Batch(pieces, zeroes, data, end)

    def _portions(self) -> Iterator[tuple[Optional[Piece], list[Range]]]:
        """Yield a piece, or some zero ranges, at a time: there may be millions of them."""
        for piece, zeroes in self._steps():
            left = iter(zeroes)
            while some := list(islice(left, BATCH_ZEROES)):
                yield None, some
            if piece is not None:
                yield piece, []

    def _steps(self) -> Iterator[tuple[Optional[Piece], Iterable[Range]]]:
        """Yield (piece or None, zero ranges before it or within its block)."""
        reached = 0
        for piece in self._image.pieces():
            if piece["kind"][0] == extents.DATA:
                end = int(extents.ends(piece[-1:])[0])
                yield piece, self._gaps(piece, reached, end)
                reached = end
            elif self._image.partial:  # else they are part of the gaps, with what no record covers
                yield None, _steps_of(zip(piece["offset"].tolist(), piece["length"].tolist()))
        # A partial image does not define its gaps, but what follows the end of its disk is not one of them.
        rest = self._image.size if self._image.partial else reached
        if rest < self._target.size and not self._target.blank:
            yield None, _steps_of([(rest, self._target.size - rest)])

    def _gaps(self, piece: Piece, start: int, stop: int) -> Iterable[Range]:
        if self._target.blank or self._image.partial:
            return []
        return _steps_of(extents.gaps(piece, start, stop))

    def work(self, batch: Batch) -> Done:
        """Decompress, check, and write a batch. Runs in a thread of the pipeline."""
        parts, lost = _joined(map(self._read, batch.pieces))
        # A blank target needs none. Lost data reads as zero, as old data would be mistaken for the point's.
        zeroes = batch.zeroes + ([] if self._target.blank else [(offset, length) for offset, length, _ in lost])
        written = sum(cast("Rewritable", self._target).zero(*each) for each in zeroes)
        if self._target.sequential:
            return Done(batch.end, written, parts, lost)
        return Done(batch.end, written + self._target.write(parts), [], lost)

    def _read(self, piece: Piece) -> _Read:
        piece = self._differing(piece)
        try:
            return _Read(list(zip(piece["offset"].tolist(), self._image.read_piece(piece))), [])
        except errors.Damaged as error:
            if not self._salvage:
                raise
            return self._salvaged(piece, error)

    def _salvaged(self, piece: Piece, error: errors.Damaged) -> _Read:
        """Read a piece extent by extent, to find those that are lost."""
        if len(piece) == 1:
            return _Read([], [(int(piece["offset"][0]), int(piece["length"][0]), str(error))])
        return _joined(self._read(piece[number : number + 1]) for number in range(len(piece)))

    def _differing(self, piece: Piece) -> Piece:
        """Return the piece without the whole frames that the target already contains, according to their digests."""
        if not self._compare:
            return piece
        return piece[[not self._held(record) for record in piece]]

    def _held(self, record: layout.Record) -> bool:
        offset, length = int(record["offset"]), int(record["length"])
        if length != record["raw"]:
            return False
        return cast(Difference, self._target).holds(offset, length, bytes(record["digest"]))

    def add(self, done: Done) -> None:
        """Add a result to the counts, and write what is left of it. Call this in order, in one thread."""
        self.written += done.written + (self._target.write(done.parts) if done.parts else 0)
        self._reached = max(self._reached, done.end)

    def flush(self) -> None:
        self._target.flush()

    @property
    def seconds(self) -> float:
        """The time since the restore began."""
        return max(time.monotonic() - self._started, 1e-3)

    def progress(self, finished: bool = False) -> dict[str, Union[str, int]]:
        position = self._image.size if finished else min(self._reached, self._image.size)
        return {"disk": self.disk, "position": position, "size": self._image.size, "written_bytes": self.written,
                "bytes_per_second": int(position / self.seconds)}  # fmt: skip


class Difference:
    """A target that is read first, and written only where it differs."""

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


def _joined(read: Iterable[_Read]) -> _Read:
    found = list(read)
    return _Read([part for each in found for part in each.parts], [gone for each in found for gone in each.lost])


def _steps_of(ranges: Iterable[Range]) -> Iterator[Range]:
    """Cut ranges so that none is longer than ZERO_STEP."""
    for offset, length in ranges:
        for at in range(offset, offset + length, ZERO_STEP):
            yield at, min(ZERO_STEP, offset + length - at)
