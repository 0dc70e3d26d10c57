"""One disk on its way from its export to its files: extents in, records and frames out.

Owns: how the extents of a disk become items of work, and the counts of a disk. Must not know: other disks, libvirt, the
order of a run's steps.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy

from ..core import errors, extents
from ..format import writer
from ..format.manifest import DiskEntry
from ..nbd import source
from ..repository.image import DataRanges, Image

BATCH_DATA = 1 << 20  # bytes of data read, digested and compressed as one item of work
BATCH_EXTENTS = 1 << 10


class DiskCopy:
    """Give `read` and `encode` what `batches` yields, in any thread; `add` what comes of it, in order; then `close`.

    where: (what source.Source connects to, the Job); known: the KnownFrames that need not be stored again, or None;
    check, dirty_from: see source.Source; parent: the Point that an incremental builds on, None where no whole image is
    there; kept: a resume.Kept, what a dead run made of the disk; sealed: see writer.DiskWriter.
    """

    def __init__(self, request, target, point_id, disk, where, known, throttle, check, dirty_from=None, parent=None,
                 kept=None, sealed=lambda *_: None):  # fmt: skip
        self.disk = disk
        self._point_id = point_id
        self._throttle = throttle
        self._frame_size = request.frame_size
        self._encoder = writer.Encoder(request.level, known)
        self._stack = ExitStack()
        self._dirty = self._read = self._zero = self._stored = self._reached = self._deduped = 0
        if kept:
            self._count_kept(kept)
        with ExitStack() as opened:
            held = None
            if parent:
                held = DataRanges(opened.enter_context(Image(target, parent, disk.target, check=check)))
            known_dirty = {"dirty_from": dirty_from, "held": held, "layered": disk.layered}
            self._source = opened.enter_context(_source(request, where, disk.target, check, known_dirty))
            if self._source.size != disk.size:
                raise errors.SourceError(f"disk {disk.target} is {disk.size} bytes, its export {self._source.size}")
            self._writer = opened.enter_context(
                writer.DiskWriter(
                    target.store,
                    target.folder,
                    point_id,
                    disk.target,
                    disk.size,
                    request.chunk_size,
                    known.chunks if known else (),
                    kept,
                    sealed,
                )
            )
            self._stack = opened.pop_all()

    def _count_kept(self, kept):
        self._read, self._reached = kept.read_bytes, kept.reached
        for records in kept.records():
            self._dirty += extents.total(records)
            self._zero += extents.total(records, extents.ZERO)
            data = records[records["kind"] == extents.DATA]
            mine = numpy.isin(data["chunk"], kept.own)
            self._stored += int(data["stored"][mine].sum())
            self._deduped += int(data["length"][~mine].sum())

    def batches(self):
        """Yield extents cut into frames, so many as make one item of work."""
        for found in self._source.extents(self._reached):
            self._dirty += extents.total(found)
            pieces = extents.cut(found, self._frame_size, only=found["kind"] == extents.DATA)
            yield from extents.batches(pieces, BATCH_DATA, BATCH_EXTENTS)

    def read(self, batch):
        """In a thread of the pipeline: the bytes of each data extent, valid until the thread's next call."""
        data = batch[batch["kind"] == extents.DATA]
        self._throttle.take(extents.total(data))
        with self._source.reading() as reader:
            return reader.read_batch(list(zip(data["offset"].tolist(), data["length"].tolist())))

    def encode(self, batch, buffers):
        """In the same thread: digest and compress what was read."""
        return self._encoder.encode(batch, buffers)

    def add(self, encoded):
        """In order, in one thread: write an encoded batch."""
        self._writer.add(encoded)
        records = encoded.records
        self._read += encoded.read_bytes
        self._zero += extents.total(records, extents.ZERO)
        self._stored += encoded.size
        self._deduped += int(records["length"][encoded.old].sum())
        self._reached = int(extents.ends(records[-1:])[0])

    def progress(self):
        return {"disk": self.disk.target, "position": self._reached, "size": self.disk.size,
                "read_bytes": self._read, "stored_bytes": self._stored}  # fmt: skip

    def close(self, mode, reason):
        index, chunks = self._writer.close()
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
            stored_bytes=index.size + sum(chunk.size for chunk in chunks if chunk.path.startswith(self._point_id)),
            deduped_bytes=self._deduped,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._stack.close()


def _reads_at_once(request):
    """How many reads each connection may have under way, where all of them together are bounded."""
    if request.max_in_flight is None:
        return source.MAX_BATCH_READS
    return min(max(request.max_in_flight // request.threads, 1), source.MAX_BATCH_READS)


def _connections(request, job):
    """For readers and for the map; where the server has not so many for all disks, they share."""
    wanted = min(request.threads, source.READERS) + 1
    return max(1, min(wanted, source.MAX_CONNECTIONS // len(job.exports)))


def _source(request, where, target, check, known_dirty):
    server, job = where
    export = job.exports[target]
    return source.Source(server, export.name, export.bitmap, _reads_at_once(request), request.stall_timeout, check,
                         job.require_alive, connections=_connections(request, job), **known_dirty)  # fmt: skip
