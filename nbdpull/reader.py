"""Chunk files and indexes of one disk, back to records and bytes. writer.py is its mirror.

Owns: decompression and digests on the way out. What is not exactly what was written is Damaged, never data.
Must not know: chains of points (image.py), where the bytes go.
"""

from __future__ import annotations

import os
import threading

import numpy
import zstandard
from blake3 import blake3

from . import errors, extents, format

BATCH_RECORDS = 1 << 16  # 5 MiB of records at a time
MAX_CHUNK_RECORDS_SIZE = 1 << 26  # bytes; more in one chunk file is no work of ours
MAX_TAIL_SIZE = 1 << 26  # bytes of the seek table, or of the compressed records, in one chunk file


def records(store, series, disk):
    """Yield the records of a DiskEntry in ascending order, as arrays; Damaged as soon as a reader must refuse them."""
    path = f"{series}/{disk.index.path}"
    reached = 0
    for batch in _index_batches(store, path):
        flaw = format.records_flaw(batch, disk.size, len(disk.chunks))
        if not flaw and int(batch["offset"][0]) < reached:
            flaw = "records that overlap or are out of order"
        if flaw:
            raise errors.Damaged(f"{store.path(path)}: the index holds {flaw}")
        reached = int(extents.ends(batch[-1:])[0])
        yield batch


def _index_batches(store, path):
    descriptor, _ = store.open_read(path)
    with open(descriptor, "rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        while True:
            try:
                data = _read_full(stream, BATCH_RECORDS * format.RECORD.itemsize)
            except zstandard.ZstdError as error:
                raise errors.Damaged(f"{store.path(path)}: the index cannot be decompressed") from error
            except OSError as error:
                raise errors.Damaged(f"{store.path(path)}: cannot be read: {error.strerror}") from error
            if len(data) % format.RECORD.itemsize:
                raise errors.Damaged(f"{store.path(path)}: the index ends inside a record")
            if not data:
                return
            yield numpy.frombuffer(data, format.RECORD)


def _read_full(stream, size):
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def chunk_records(store, path, size):
    """The records that a chunk file of `size` bytes ends in, as a new array; Damaged if they are not intact."""
    try:
        table_size = format.seek_table_size(_tail(store, path, size, format.SEEK_FOOTER_SIZE))
        table = format.parse_seek_table(_tail(store, path, size, table_size))
        frame = _tail(store, path, size - table_size, table[-1][0])
        return numpy.array(decompress_records(format.parse_skippable(frame, format.RECORDS_MAGIC)))
    except (ValueError, IndexError) as error:
        raise errors.Damaged(f"{store.path(path)}: the records of the chunk file cannot be read: {error}") from error


def _tail(store, path, stop, length):
    """The last `length` bytes before `stop`; ValueError where there cannot be so many, or none has so many."""
    if not 0 <= length <= min(stop, MAX_TAIL_SIZE):
        raise ValueError("it has no sensible size")
    return store.read_range(path, stop - length, length)


def decompress_records(payload):
    """Return the records that a chunk file ends in; ValueError if they are not intact."""
    try:
        if not 0 <= zstandard.frame_content_size(payload) <= MAX_CHUNK_RECORDS_SIZE:
            raise ValueError("its records have no sensible size")
        data = zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise ValueError("its records cannot be decompressed") from error
    if len(data) % format.RECORD.itemsize:
        raise ValueError("it ends inside a record")
    return numpy.frombuffer(data, format.RECORD)


def digest(data):
    """The digest of bytes, as records have it."""
    return blake3(data).digest()


class FrameReader:
    """Reads frames from the chunk files of one disk; may be used by several threads at once."""

    def __init__(self, store, series, disk):
        self._paths = [f"{series}/{chunk.path}" for chunk in disk.chunks]
        self._store = store
        self._open: dict[int, tuple[int, int]] = {}  # descriptor and size
        self._lock = threading.Lock()
        self._thread = threading.local()

    def read(self, record):
        """Return the bytes of a data record's whole frame; Damaged unless they have its size and digest."""
        stored, position = int(record["stored"]), int(record["position"])
        descriptor, size = self._opened(int(record["chunk"]))
        if position + stored > size:
            raise self._damaged(record, "the file is cut short")
        try:
            data = os.pread(descriptor, stored, position)
        except OSError as error:
            raise self._damaged(record, f"cannot be read: {error.strerror}") from error
        raw = self._decompressed(data, int(record["raw"]))
        if raw is None or digest(raw) != record["digest"].tobytes():
            raise self._damaged(record, "a frame is not what was stored")
        return raw

    def _decompressed(self, data, size):
        """Return exactly `size` bytes, or None. The size that a damaged frame claims must never be allocated."""
        try:
            claimed = zstandard.frame_content_size(data)
            return self._decompressor().decompress(data) if claimed == size else None
        except zstandard.ZstdError:
            return None

    def _damaged(self, record, what):
        path = self._store.path(self._paths[int(record["chunk"])])
        offset, length = int(record["offset"]), int(record["length"])
        return errors.Damaged(f"{path}: {what} (bytes {offset} to {offset + length} of the disk)")

    def _opened(self, chunk):
        with self._lock:
            if chunk not in self._open:
                self._open[chunk] = self._store.open_read(self._paths[chunk])
            return self._open[chunk]

    def _decompressor(self):
        if not hasattr(self._thread, "decompressor"):
            self._thread.decompressor = zstandard.ZstdDecompressor()
        return self._thread.decompressor

    def close(self):
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
