"""Chunk files and indexes of one disk, back to records and bytes. writer.py is its mirror.

Owns: decompression and digests on the way out. What is not exactly what was written is Damaged, never data.
Must not know: chains of points (image.py), where the bytes go.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional, Protocol

import numpy
import zstandard
from blake3 import blake3

from ..core import errors, extents
from ..storage.base import Reader, Store
from . import layout
from .manifest import DiskEntry, FileEntry

BATCH_RECORDS = 1 << 14  # 1.25 MiB of records at a time
MAX_CHUNK_RECORDS_SIZE = 1 << 26  # bytes; more in one chunk file is no work of ours
MAX_TAIL_SIZE = 1 << 26  # bytes of the seek table, or of the compressed records, in one chunk file
MAX_OPEN = 64  # chunk files of an image; a process may have a thousand
_MAX_WINDOW = 1 << 23  # bytes that a decompressor keeps of what it has made; zstd would take 16 times as much
_STEP = 4096  # bytes of an index decompressed at once, which make 128 MiB at the very most


def records(store: Store, series: str, disk: DiskEntry) -> Iterator[layout.Records]:
    """Yield the records of a DiskEntry in ascending order, as arrays; Damaged as soon as a reader must refuse them."""
    path = f"{series}/{disk.index.path}"
    reached, blocks = 0, numpy.empty(0, "u8")
    for batch in _index_batches(store, path):
        flaw = layout.records_flaw(batch, disk.size, len(disk.chunks))
        if not flaw and int(batch["offset"][0]) < reached:
            flaw = "records that overlap or are out of order"
        blocks = numpy.concatenate([blocks[-layout.MAX_BLOCK_RECORDS :], batch["offset"] // layout.MAX_FRAME])
        if not flaw and (blocks[layout.MAX_BLOCK_RECORDS :] == blocks[: -layout.MAX_BLOCK_RECORDS]).any():
            flaw = f"more than {layout.MAX_BLOCK_RECORDS} records in {layout.MAX_FRAME} bytes"
        if flaw:
            raise errors.Damaged(f"{store.path(path)}: the index holds {flaw}")
        reached = int(extents.ends(batch[-1:])[0])
        yield batch


def _index_batches(store: Store, path: str) -> Iterator[layout.Records]:
    size, held = BATCH_RECORDS * layout.RECORD.itemsize, bytearray()
    for part in _decompressed(store, path):
        held += part
        while len(held) >= size:
            yield numpy.frombuffer(bytes(held[:size]), layout.RECORD)
            del held[:size]
    if len(held) % layout.RECORD.itemsize:
        raise errors.Damaged(f"{store.path(path)}: the index ends inside a record")
    if held:
        yield numpy.frombuffer(bytes(held), layout.RECORD)


def _decompressed(store: Store, path: str) -> Iterator[bytes]:
    """Yield the bytes of a file that is one zstd frame, part by part."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
    start = 0
    try:
        with store.open_reader(path) as file:
            whole = _is_a_frame(file.read(0, min(_STEP, file.size)))
            while whole and start < file.size and not decompressor.eof:
                data = file.read(start, min(_STEP, file.size - start))
                start += len(data)
                yield decompressor.decompress(data)
            rest = file.size - start
    except zstandard.ZstdError as error:
        raise errors.Damaged(f"{store.path(path)}: the index cannot be decompressed") from error
    if not decompressor.eof or decompressor.unused_data or rest:
        raise errors.Damaged(f"{store.path(path)}: the index is not one whole frame")


def _is_a_frame(data: bytes) -> bool:
    """Whether bytes begin as a zstd frame of ours does; ZstdError where they begin as none."""
    about = zstandard.get_frame_parameters(data)
    return data[:4] == layout.FRAME_MAGIC and about.has_checksum and not about.dict_id


def chunk_records(store: Store, path: str, size: int) -> layout.Records:
    """The records that a chunk file of `size` bytes ends in, as a new array; Damaged if they are not intact."""
    try:
        table_size = layout.seek_table_size(_tail(store, path, size, layout.SEEK_FOOTER_SIZE))
        table = layout.parse_seek_table(_tail(store, path, size, table_size))
        frame = _tail(store, path, size - table_size, table[-1][0])
        return numpy.array(decompress_records(layout.parse_skippable(frame, layout.RECORDS_MAGIC)))
    except (ValueError, IndexError) as error:
        raise errors.Damaged(f"{store.path(path)}: the records of the chunk file cannot be read: {error}") from error


def _tail(store: Store, path: str, stop: int, length: int) -> bytes:
    """The last `length` bytes before `stop`; ValueError where there cannot be so many, or none has so many."""
    if not 0 <= length <= min(stop, MAX_TAIL_SIZE):
        raise ValueError("it has no sensible size")
    return store.read_range(path, stop - length, length)


def decompress_records(payload: bytes) -> layout.Records:
    """Return the records that a chunk file ends in; ValueError if they are not intact."""
    try:
        if not 0 <= zstandard.frame_content_size(payload) <= MAX_CHUNK_RECORDS_SIZE:
            raise ValueError("its records have no sensible size")
        data = _decompressor().decompress(payload, allow_extra_data=False) if _is_a_frame(payload) else b"no records"
    except zstandard.ZstdError as error:
        raise ValueError("its records cannot be decompressed") from error
    if len(data) % layout.RECORD.itemsize:
        raise ValueError("it ends inside a record")
    return numpy.frombuffer(data, layout.RECORD)


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)


def digest(data: extents.Buffer) -> bytes:
    """The digest of bytes, as records have it."""
    return blake3(data).digest()


def digest_of(parts: Iterable[extents.Buffer]) -> bytes:
    """The same of bytes that come part by part."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


class OpenFiles:
    """Files of a store that are read from, at most MAX_OPEN of them open at once, or as many as are in use."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()

    @contextmanager
    def opened(self, path: str) -> Iterator[Reader]:
        """Give the Reader of a file; Damaged if it is not there."""
        with self._lock:
            file = self._open.pop(path, None) or _OpenFile(self._store.open_reader(path))
            self._open[path] = file
            file.users += 1
        try:
            yield file.reader
        finally:
            with self._lock:
                file.users -= 1
                self._close_some()

    def _close_some(self) -> None:
        """Those used longest ago, but for those in use."""
        if len(self._open) > MAX_OPEN:
            unused = [path for path, file in self._open.items() if not file.users]
            for path in unused[: len(self._open) - MAX_OPEN]:
                self._open.pop(path).reader.close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].reader.close()


@dataclass
class _OpenFile:
    reader: Reader
    users: int = 0


class Chunks(Protocol):
    """A DiskEntry, or what has as much of one."""

    @property
    def chunks(self) -> Sequence[FileEntry]: ...


class FrameReader:
    """Reads frames from the chunk files of one disk; may be used by several threads at once.

    files: the OpenFiles that it shares with others, who close them.
    """

    def __init__(self, store: Store, series: str, disk: Chunks, files: Optional[OpenFiles] = None) -> None:
        self._paths = [f"{series}/{chunk.path}" for chunk in disk.chunks]
        self._store = store
        self._files = files or OpenFiles(store)
        self._shared = files is not None
        self._thread = threading.local()

    def read(self, record: layout.Record) -> bytes:
        """Return the bytes of a data record's whole frame; Damaged unless they have its size and digest."""
        stored, position = int(record["stored"]), int(record["position"])
        path = self._paths[int(record["chunk"])]
        with self._files.opened(path) as file:
            try:
                data = file.read(position, stored)
            except errors.Damaged as error:
                raise _damaged(record, str(error)) from error
        raw = self._decompressed(data, int(record["raw"]))
        if raw is None or digest(raw) != record["digest"].tobytes():
            raise _damaged(record, f"{self._store.path(path)}: a frame is not what was stored")
        return raw

    def _decompressed(self, data: bytes, size: int) -> Optional[bytes]:
        """Return exactly `size` bytes, or None. The size that a damaged frame claims must never be allocated."""
        try:
            if zstandard.frame_content_size(data) != size or not _is_a_frame(data):
                return None
            return self._own_decompressor().decompress(data, allow_extra_data=False)
        except zstandard.ZstdError:
            return None

    def _own_decompressor(self) -> zstandard.ZstdDecompressor:
        if not hasattr(self._thread, "decompressor"):
            self._thread.decompressor = _decompressor()
        own: zstandard.ZstdDecompressor = self._thread.decompressor
        return own

    def close(self) -> None:
        if not self._shared:
            self._files.close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _damaged(record: layout.Record, what: str) -> errors.Damaged:
    offset, length = int(record["offset"]), int(record["length"])
    return errors.Damaged(f"{what} (bytes {offset} to {offset + length} of the disk)")
