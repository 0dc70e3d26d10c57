"""A backup in push form: a sink of the caller receives every byte that has to be taken over.

Owns: the order of the calls to a sink, and the threads that read ahead. Must not know: what a sink does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Protocol

from ..core import pipeline
from ..core.errors import Check, Report
from ..pulling.token import Token
from . import callers
from .disk import DATA, Disk, Extent
from .job import open_backup
from .options import Options

log = logging.getLogger("nbdpull.backup")

PIECE = 1 << 20  # bytes of data handed over at once, at most
EXTENTS = 256  # read at once by one thread, at most
AHEAD = 8  # pieces for each connection that may be read and not yet handed over


class DiskSink(Protocol):
    """Receives one disk: what has to be taken over, ascending and disjoint, from one thread.

    A range that no call covers is the same as in the previous backup; in a full backup there is no such range.
    """

    def data(self, offset: int, view: memoryview) -> None:
        """Receive bytes at an offset; the view is yours until you return."""

    def zero(self, offset: int, length: int) -> None:
        """Receive a range that reads as zero."""

    def close(self) -> None:
        """Receive the end of this disk."""


class Sink(Protocol):
    """Receives one backup. An exception from a sink ends the backup, and comes out of it unchanged."""

    def open(self, disk: Disk) -> DiskSink:
        """Called for each disk in turn, when the previous one is closed."""

    def commit(self, token: Token) -> None:
        """Make the disks durable, and the token with them. All disks are closed, and the job lasted until now.

        When you return, the previous backup is no longer a base.
        """

    def abort(self) -> None:
        """Forget what was handed over: the backup failed, perhaps in or after commit."""


class DiskResult(NamedTuple):
    """data_bytes, zero_bytes: handed over."""

    name: str
    size: int
    mode: str
    reason: str
    data_bytes: int
    zero_bytes: int


@dataclass(frozen=True)
class Result:
    """A committed backup; the fields are those of Job. seconds: how long it took."""

    token: Token
    id: str
    as_of: str
    consistency: str
    consistency_reason: str
    disks: Sequence[DiskResult]
    warnings: Sequence[str]
    seconds: float


def backup(options: Options, sink: Sink, report: Optional[Report] = None, check: Optional[Check] = None) -> Result:
    """Make one backup, and commit it when the sink has.

    report(event="progress", domain=…, disk=…, position=…, size=…, read_bytes=…) is called often, in the caller's
    thread; so is check(), from any thread: an exception from it ends the backup. NbdpullError, or what the sink raises:
    then nothing has changed.
    """
    callers.require_function("report", report)
    started = time.monotonic()
    with open_backup(options, check) as job:
        try:
            disks = [_handed_over(disk, sink, options, report, check) for disk in job.disks]
            job.finish()
            sink.commit(job.token)
            token = job.commit()
        except BaseException:
            if not job.committed:
                _abort(sink)
            raise
    facts = job.as_of, job.consistency, job.consistency_reason, disks, job.warnings
    return Result(token, job.id, *facts, round(time.monotonic() - started, 3))


def _abort(sink: Sink) -> None:
    """Abort the sink. What it raises must not hide the original error."""
    try:
        sink.abort()
    except Exception:
        log.exception("the sink could not abort a failed backup")


def _handed_over(
    disk: Disk, sink: Sink, options: Options, report: Optional[Report], check: Optional[Check]
) -> DiskResult:
    target, counts = sink.open(disk), {DATA: 0, "zero": 0}
    read = pipeline.ordered(
        lambda batch: (batch, _read(disk, batch)),
        _batches(disk),
        threads=options.connections,
        budget=options.connections * AHEAD * PIECE,
        weight=lambda batch: sum(each.length for each in batch if each.kind == DATA),
        check=check or (lambda: None),
    )
    with closing(read):  # at once if the sink fails: see copying
        for batch, data in read:
            for extent in batch:
                counts[extent.kind] += extent.length
                if extent.kind == DATA:
                    target.data(extent.offset, data[: extent.length])
                    data = data[extent.length :]
                else:
                    target.zero(extent.offset, extent.length)
            position = batch[-1].offset + batch[-1].length
            if report:
                report(event="progress", domain=options.domain, disk=disk.name, position=position, size=disk.size,
                       read_bytes=counts[DATA])  # fmt: skip
    target.close()
    return DiskResult(disk.name, disk.size, disk.mode, disk.reason, counts[DATA], counts["zero"])


def _batches(disk: Disk) -> Iterator[list[Extent]]:
    """Yield extents cut into pieces, as many as make one read."""
    batch: list[Extent] = []
    room = PIECE
    for extent in disk.extents():
        for piece in _pieces(extent):
            taken = piece.length if piece.kind == DATA else 0
            if batch and (taken > room or len(batch) == EXTENTS):
                yield batch
                batch, room = [], PIECE
            batch.append(piece)
            room -= taken
    if batch:
        yield batch


def _pieces(extent: Extent) -> Iterator[Extent]:
    if extent.kind != DATA:
        yield extent
        return
    stop = extent.offset + extent.length
    for offset in range(extent.offset, stop, PIECE):
        yield Extent(offset, min(PIECE, stop - offset), DATA)


def _read(disk: Disk, batch: Sequence[Extent]) -> Any:
    """Read the data of a batch, one extent after the other. Runs in a thread."""
    wanted = [(each.offset, each.length) for each in batch if each.kind == DATA]
    held, at, reads = memoryview(bytearray(sum(length for _, length in wanted))), 0, []
    for offset, length in wanted:
        reads.append((offset, held[at : at + length]))
        at += length
    disk.read_many(reads)
    return held.toreadonly()
