"""The copy of one disk from its source to its files: extents in, records and frames out.

Owns: how the extents of a disk are split into items of work, and the statistics of a disk. Must not know: other disks,
where the bytes come from, libvirt, the order of a run's steps.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

import numpy

from ..core import extents, sizes
from ..core.throttle import Throttle
from ..definitions.domain_xml import Disk
from ..format import index_writer, writer
from ..format.directory import Directory
from ..format.manifest import FULL, DiskEntry, FileEntry
from ..repository.known_frames import KnownFrames
from ..repository.new_point import Stored
from ..repository.series import Series
from .level import Level

if TYPE_CHECKING:  # a source that is not a libvirt domain must not need libvirt
    from .base import Decision
    from .resume import Kept

BATCH_DATA = 1 << 20  # bytes that are encoded and written together
READ_DATA = 2 << 20  # bytes that a thread reads at once: each read costs some hand-overs, and each thread has a buffer
BATCH_EXTENTS = 1 << 10

log = logging.getLogger("nbdpull.pull")


@dataclass(frozen=True)
class Storing:
    """How disks are stored. frame_size, chunk_size: maximum bytes of a frame and of a chunk file; level: of zstd."""

    frame_size: int
    chunk_size: int
    level: Level


Item = Sequence["extents.Extents"]  # an item of work: some batches


class Reader(Protocol):
    """A reader for one thread."""

    def read_batch(self, ranges: Sequence[tuple[int, int]]) -> Sequence[extents.Buffer]: ...


class Source(Protocol):
    """What a disk is read from, such as an nbd.source.Source.

    extents(start): yields arrays of extents in ascending order; presumed: as in nbd.source.Source, for the extents
    yielded so far.
    """

    presumed: int

    def extents(self, start: int = 0) -> Iterator[extents.Extents]: ...

    def reading(self) -> AbstractContextManager[Reader]: ...


class DiskCopy:
    """The copy of one disk: pass what `items` yields to `read` and `encode`, in any thread; pass the results to `add`,
    in order; then call `close`.

    base: directory of the disk's previous image, over which an incremental is laid; dedupe: do not store again what
    base has; kept: what an interrupted run made of the disk; sealed: see writer.DiskWriter; read_data: bytes of data
    that make one item of work.
    """

    def __init__(
        self,
        disk: Disk,
        source: Source,
        decision: Decision,
        series: Series,
        point_id: str,
        storing: Storing,
        throttle: Throttle,
        base: Optional[Directory] = None,
        dedupe: bool = True,
        kept: Optional[Kept] = None,
        sealed: Callable[[str, FileEntry, int], None] = lambda *_: None,
        read_data: int = READ_DATA,
    ) -> None:
        self.disk = disk
        self._source, self._batches_at_once = source, max(1, read_data // BATCH_DATA)
        self._mode, self._reason = mode, reason = decision
        self._throttle = throttle
        self._frame_size = storing.frame_size
        self._whole = mode == FULL or (base is not None and base.whole)
        if base is not None and base.whole != self._whole:
            base = None  # a range without a record means something different in each of them
        self._level = storing.level
        known = KnownFrames(base) if base and dedupe else None
        self._encoder = writer.Encoder(lambda: storing.level.now, known, series.store.seal)
        self._began = self._ended = time.monotonic()
        self._dirty = self._read = self._zero = self._stored = self._reached = self._deduped = 0
        self._levels: Counter[int] = Counter()
        if kept:
            self._count_kept(kept)
        written = index_writer.Disk(series.folder, point_id, disk.target, disk.size, self._whole)
        self._writer = writer.DiskWriter(series.store, written, storing.chunk_size, base, kept, sealed)

    def _count_kept(self, kept: Kept) -> None:
        self._read, self._reached = kept.read_bytes, kept.reached
        for names, records in kept.pages():
            self._dirty += extents.total(records)
            self._zero += extents.total(records, extents.ZERO)
            data = records[records["kind"] == extents.DATA]
            mine = numpy.isin(data["chunk"], [number for number, name in enumerate(names) if kept.is_own(name)])
            self._stored += int(data["stored"][mine].sum())
            self._deduped += int(data["length"][~mine].sum())

    def items(self) -> Iterator[Item]:
        """Yield items of work: lists of batches of extents, with the data cut into frames."""
        self._began = self._ended = time.monotonic()
        count = data = 0
        for found in self._source.extents(self._reached):
            count, data = count + len(found), data + extents.total(found, extents.DATA)
            self._dirty += extents.total(found)
            pieces = extents.cut(found, self._frame_size, only=found["kind"] == extents.DATA)
            batches = extents.batches(pieces, BATCH_DATA, BATCH_EXTENTS)
            for first in range(0, len(batches), self._batches_at_once):
                yield batches[first : first + self._batches_at_once]
        log.info("%s: map read, extents: %d, data: %s", self.disk.target, count, sizes.shown(data))

    def read(self, item: Item) -> Sequence[extents.Buffer]:
        """Return the bytes of each data extent, valid until the thread's next call. Called in a pipeline thread."""
        data = [batch[batch["kind"] == extents.DATA] for batch in item]
        self._throttle.take(sum(map(extents.total, data)))
        ranges = [pair for each in data for pair in zip(each["offset"].tolist(), each["length"].tolist())]
        with self._source.reading() as reader:
            return reader.read_batch(ranges)

    def encode(self, item: Item, buffers: Sequence[extents.Buffer]) -> list[writer.Encoded]:
        """Digest and compress the bytes that were read, batch by batch. Called in the same thread."""
        left = iter(buffers)
        counts = [int((batch["kind"] == extents.DATA).sum()) for batch in item]
        with self._level.computing():
            return [self._encoder.encode(batch, list(islice(left, count))) for batch, count in zip(item, counts)]

    def add(self, encoded: writer.Encoded) -> None:
        """Write an encoded batch. Called in order, in one thread."""
        self._writer.add(encoded)
        records = encoded.records
        self._read += encoded.read_bytes
        self._zero += extents.total(records, extents.ZERO)
        self._stored += encoded.size
        self._levels.update(encoded.levels)
        self._deduped += int(records["length"][encoded.old].sum())
        self._reached = int(extents.ends(records[-1:])[0])
        self._ended = time.monotonic()

    def progress(self) -> dict[str, Any]:
        return {"disk": self.disk.target, "position": self._reached, "size": self.disk.size,
                "read_bytes": self._read, "stored_bytes": self._stored}  # fmt: skip

    def close(self) -> Stored:
        directory, files = self._writer.close()
        stored = directory.size + sum(entry.size for entry in files)
        entry = DiskEntry(
            name=self.disk.target,
            size=self.disk.size,
            mode=self._mode,
            reason=self._reason,
            source=self.disk.source,
            whole=self._whole,
            directory=directory,
            dirty_bytes=self._dirty - self._source.presumed,
            zero_bytes=self._zero,
            read_bytes=self._read,
            stored_bytes=stored,
            deduped_bytes=self._deduped,
            levels={str(level): count for level, count in sorted(self._levels.items())},
        )
        return Stored(entry, files)

    def log_end(self, stored: Stored) -> None:
        """Log what `close` returned."""
        entry, seconds = stored.entry, self._ended - self._began
        read, size = sizes.shown(entry.read_bytes), sizes.shown(entry.stored_bytes)
        log.info("%s: done: %s read, %s stored, %.1f s", entry.name, read, size, seconds)

    def __enter__(self) -> DiskCopy:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.__exit__(*exc)
