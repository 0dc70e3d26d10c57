"""One disk on its way from its export to its files: extents in, records and frames out.

Owns: how the extents of a disk become items of work, and the counts of a disk. Must not know: other disks, libvirt, the
order of a run's steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Optional

import numpy

from ..core import extents, sizes
from ..core.errors import Check
from ..core.throttle import Throttle
from ..definitions.domain_xml import Disk
from ..format import writer
from ..format.manifest import DiskEntry
from ..repository.known_frames import KnownFrames
from ..repository.series import Series
from . import live_disk
from .live_disk import Known, Live
from .resume import Kept
from .run_record import UnderWay

BATCH_DATA = 1 << 20  # bytes of data read, digested and compressed as one item of work
BATCH_EXTENTS = 1 << 10

log = logging.getLogger("nbdpull.pull")


@dataclass(frozen=True)
class Storing:
    """How disks are stored: bytes of a frame and of a chunk file at most, zstd's level."""

    frame_size: int
    chunk_size: int
    level: int


class DiskCopy:
    """Pass what `batches` yields to `read` and `encode`, in any thread; the result to `add`, in order; then `close`.

    known: what is known of the disk before its export is asked; frames: those that need not be stored again; kept: what
    an interrupted run made of the disk.
    """

    def __init__(
        self,
        disk: Disk,
        live: Live,
        known: Known,
        series: Series,
        making: UnderWay,
        storing: Storing,
        throttle: Throttle,
        check: Check,
        frames: Optional[KnownFrames] = None,
        kept: Optional[Kept] = None,
    ) -> None:
        self.disk = disk
        self._point_id = making.point.id
        self._throttle = throttle
        self._frame_size = storing.frame_size
        self._encoder = writer.Encoder(storing.level, frames)
        self._stack = ExitStack()
        self._began = self._ended = time.monotonic()
        self._dirty = self._read = self._zero = self._stored = self._reached = self._deduped = 0
        if kept:
            self._count_kept(kept)
        with ExitStack() as opened:
            self._source = opened.enter_context(live_disk.opened(disk, live, known, series, check))
            self._writer = opened.enter_context(
                writer.DiskWriter(
                    series.store,
                    series.folder,
                    making.point.id,
                    disk.target,
                    disk.size,
                    storing.chunk_size,
                    frames.chunks if frames else (),
                    kept,
                    making.journal.sealed,
                )
            )
            self._stack = opened.pop_all()

    def _count_kept(self, kept: Kept) -> None:
        self._read, self._reached = kept.read_bytes, kept.reached
        for records in kept.records():
            self._dirty += extents.total(records)
            self._zero += extents.total(records, extents.ZERO)
            data = records[records["kind"] == extents.DATA]
            mine = numpy.isin(data["chunk"], kept.own)
            self._stored += int(data["stored"][mine].sum())
            self._deduped += int(data["length"][~mine].sum())

    def batches(self) -> Iterator[extents.Extents]:
        """Yield extents cut into frames, so many as make one item of work."""
        self._began = self._ended = time.monotonic()
        count = data = 0
        for found in self._source.extents(self._reached):
            count, data = count + len(found), data + extents.total(found, extents.DATA)
            self._dirty += extents.total(found)
            pieces = extents.cut(found, self._frame_size, only=found["kind"] == extents.DATA)
            yield from extents.batches(pieces, BATCH_DATA, BATCH_EXTENTS)
        log.info("%s: map read, extents: %d, data: %s", self.disk.target, count, sizes.shown(data))

    def read(self, batch: extents.Extents) -> Sequence[extents.Buffer]:
        """In a thread of the pipeline: the bytes of each data extent, valid until the thread's next call."""
        data = batch[batch["kind"] == extents.DATA]
        self._throttle.take(extents.total(data))
        with self._source.reading() as reader:
            return reader.read_batch(list(zip(data["offset"].tolist(), data["length"].tolist())))

    def encode(self, batch: extents.Extents, buffers: Sequence[extents.Buffer]) -> writer.Encoded:
        """In the same thread: digest and compress what was read."""
        return self._encoder.encode(batch, buffers)

    def add(self, encoded: writer.Encoded) -> None:
        """In order, in one thread: write an encoded batch."""
        self._writer.add(encoded)
        records = encoded.records
        self._read += encoded.read_bytes
        self._zero += extents.total(records, extents.ZERO)
        self._stored += encoded.size
        self._deduped += int(records["length"][encoded.old].sum())
        self._reached = int(extents.ends(records[-1:])[0])
        self._ended = time.monotonic()

    def progress(self) -> dict[str, Any]:
        return {"disk": self.disk.target, "position": self._reached, "size": self.disk.size,
                "read_bytes": self._read, "stored_bytes": self._stored}  # fmt: skip

    def close(self, mode: str, reason: str) -> DiskEntry:
        index, chunks = self._writer.close()
        stored = index.size + sum(chunk.size for chunk in chunks if chunk.path.startswith(self._point_id))
        read, seconds = sizes.shown(self._read), self._ended - self._began
        log.info("%s: done: %s read, %s stored, %.1f s", self.disk.target, read, sizes.shown(stored), seconds)
        return DiskEntry(
            name=self.disk.target,
            size=self.disk.size,
            mode=mode,
            reason=reason,
            source=self.disk.source,
            index=index,
            chunks=chunks,
            dirty_bytes=self._dirty - self._source.presumed,
            zero_bytes=self._zero,
            read_bytes=self._read,
            stored_bytes=stored,
            deduped_bytes=self._deduped,
        )

    def __enter__(self) -> DiskCopy:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
