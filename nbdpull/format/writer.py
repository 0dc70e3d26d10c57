"""The writer of one disk: extents and bytes, in ascending order, to chunk files, index and directory. reader.py is its
mirror.

Owns: compression and digests on the way in, when a chunk file is full, and the records and the seek table at its end.
Must not know: where the bytes come from, other disks, how a manifest is published.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, Protocol, Union, cast

import numpy
import zstandard
from blake3 import blake3

from ..core import extents
from ..crypto.seal import PLAIN, Seal
from ..storage.base import Store, Writer
from . import layout, pages
from .directory import Directory
from .index_writer import Disk, IndexWriter
from .manifest import FileEntry

MAX_CHUNK_RECORDS = 1 << 17  # bounds the memory for the records at the end of a chunk file: 10 MiB
MAX_UNSEALED = 2  # chunk files that wait for their fsync
COSTLY_LEVEL = 13  # from this level zstd is slow even for incompressible data: 5 ms for 1 MiB, 120 ms at level 19
WORTH_WHILE = 0.97  # ratio at level 1 above which no other level gains much
ZERO_BLOCK = 1 << 16  # zeros inside data are found in blocks of this many bytes, QEMU's usual cluster


def least_chunk_size(sizes: Iterable[int]) -> int:
    """Return the smallest chunk size, in bytes, with which a manifest can list all chunk files of disks of these
    sizes."""
    return -(-sum(sizes) // layout.MAX_CHUNK_FILES)


def chunk_size(store: Store, wanted: int, least: int = 0) -> int:
    """Return the size of a chunk file in bytes. wanted: at most this, nor more than the size that the store prefers,
    if any; least: at least this."""
    return max(min(wanted, store.chunk_size or wanted), least)


class Known(Protocol):
    """A repository.known_frames.KnownFrames."""

    def find(self, records: layout.Records) -> tuple[extents.Mask, layout.Records]: ...


class Kept(Protocol):
    """A pulling.resume.Kept."""

    @property
    def files(self) -> list[FileEntry]: ...

    def pages(self) -> Iterable[pages.Page]: ...


@dataclass(frozen=True)
class Encoded:
    """Some consecutive extents, ready to be written.

    records: new ones have no place in a chunk file yet; frames: of records[new], in order; records[old] are references,
    whose chunk is a number in the directory in which they were found. levels: {zstd's level: bytes of data in frames
    that were compressed at it}. again: (a record, one of records[new]), if both show parts of one frame.
    """

    records: layout.Records
    frames: list[bytes]
    read_bytes: int
    new: extents.Indexes
    old: extents.Indexes
    levels: Mapping[int, int] = field(default_factory=dict)
    again: Sequence[tuple[int, int]] = ()

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


class Encoder:
    """Turns extents and their bytes into records and frames; may be used by several threads at once.

    known: its find(records) returns which of these data records refer to frames that an older point has, and references
    in place of these; None: every frame is stored. seal: of the store. level: of zstd, or a callable that returns it
    for each batch.
    """

    def __init__(self, level: Union[int, Callable[[], int]], known: Optional[Known] = None, seal: Seal = PLAIN) -> None:
        self._level = level
        self._known, self._seal = known, seal
        self._thread = threading.local()

    def encode(self, batch: extents.Extents, buffers: Sequence[extents.Buffer]) -> Encoded:
        """Return a batch of extents encoded. A data extent must be within one block of layout.MAX_FRAME bytes.

        buffers: the bytes of each data extent.
        """
        read_bytes = extents.total(batch, extents.DATA)
        batch, buffers = _zeros_found(batch, buffers)
        records = layout.zero_records(batch)
        data = numpy.flatnonzero(batch["kind"] == extents.DATA)
        records["kind"][data] = extents.DATA
        records["raw"][data] = batch["length"][data]
        digests = [blake3(buffer).digest() for buffer in buffers]
        records["digest"][data] = numpy.array(digests, "V32")
        old = self._refer_to_known(records, data)
        level = self._level if isinstance(self._level, int) else self._level()
        frames, levels = [], dict[int, int]()
        for buffer, digest, is_old in zip(buffers, digests, old):
            if not is_old:
                frame, at = self._compressed(buffer, level)
                frames.append(self._seal.frame(frame, digest))
                levels[at] = levels.get(at, 0) + len(buffer)
        records["stored"][data[~old]] = [len(frame) for frame in frames]
        return Encoded(records, frames, read_bytes, data[~old], data[old], levels)

    def _refer_to_known(self, records: layout.Records, data: extents.Indexes) -> extents.Mask:
        """Turn the records of frames that an older point has into references; return a mask of these in `data`."""
        if self._known is None or not len(data):
            return numpy.zeros(len(data), bool)
        old, references = self._known.find(records[data])
        records[data[old]] = references
        return old

    def _compressed(self, buffer: extents.Buffer, level: int) -> tuple[bytes, int]:
        """Return a frame, and the level at which it was compressed.

        Up to level 12 zstd itself is quick with incompressible data (0.4 to 1 ms for 1 MiB), and a probe here would
        cost as much as it saves. Above that level 1 is the probe; if it gains little, its result is kept.
        """
        if level >= COSTLY_LEVEL:
            quick = self._compressor(1).compress(buffer)
            if len(quick) > WORTH_WHILE * len(buffer):
                return quick, 1
        return self._compressor(level).compress(buffer), level

    def _compressor(self, level: int) -> zstandard.ZstdCompressor:
        mine: dict[Any, zstandard.ZstdCompressor] = vars(self._thread)
        if level not in mine:
            mine[level] = compressor(level)
        return mine[level]


def compressor(level: int) -> zstandard.ZstdCompressor:
    """Return a compressor of frames."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True)


def _zeros_found(
    batch: extents.Extents, buffers: Sequence[extents.Buffer]
) -> tuple[extents.Extents, Sequence[extents.Buffer]]:
    """Split data extents that contain blocks of zeros: such blocks become zero extents."""
    suspect = [_may_hold_zeros(memoryview(buffer)) for buffer in buffers]
    if not any(suspect):
        return batch, buffers
    data = zip(buffers, suspect)
    found: list[tuple[int, int, int]] = []
    kept: list[extents.Buffer] = []
    for offset, length, kind in batch.tolist():
        if kind != extents.DATA:
            found.append((offset, length, kind))
            continue
        buffer, look = next(data)
        for start, stop, is_zero in _runs(buffer) if look else [(0, length, False)]:
            found.append((offset + start, stop - start, extents.ZERO if is_zero else extents.DATA))
            if not is_zero:
                kept.append(memoryview(buffer)[start:stop])
    return extents.of(found), kept


def _may_hold_zeros(view: memoryview) -> bool:
    """Return False quickly if there is no zero block: one byte of each 4 KiB shows that, usually the first one."""
    return any(not any(view[start : start + ZERO_BLOCK : 4096]) for start in range(0, len(view), ZERO_BLOCK))


def _runs(buffer: extents.Buffer) -> list[tuple[int, int, bool]]:
    """Return [(start, stop, whether all bytes are zero), …] of a buffer, cut at multiples of ZERO_BLOCK."""
    zero = _zero_blocks(buffer)
    starts = [0, *(numpy.flatnonzero(zero[1:] != zero[:-1]) + 1).tolist()]
    stops = [*(start * ZERO_BLOCK for start in starts[1:]), len(buffer)]
    return [(start * ZERO_BLOCK, stop, bool(zero[start])) for start, stop in zip(starts, stops)]


def _zero_blocks(buffer: extents.Buffer) -> extents.Mask:
    """Return which blocks of ZERO_BLOCK bytes are all zero; the last block may be short."""
    view = numpy.frombuffer(buffer, "u1")
    whole = len(view) // ZERO_BLOCK
    blocks = view[: whole * ZERO_BLOCK].view("u8").reshape(whole, ZERO_BLOCK // 8)
    maybe = cast("extents.Mask", ~blocks[:, ::512].any(axis=1))  # 8 bytes of each 4 KiB rule most blocks out
    maybe[maybe] = ~blocks[maybe].any(axis=1)
    rest = view[whole * ZERO_BLOCK :]
    return numpy.append(maybe, not rest.any()) if len(rest) else maybe


class DiskWriter:
    """Writes one disk of one point: `add` everything in ascending order, then `close`."""

    def __init__(
        self,
        store: Store,
        disk: Disk,
        chunk_size: int,
        base: Optional[Directory] = None,
        kept: Optional[Kept] = None,
        sealed: Callable[[str, FileEntry, int], None] = lambda *_: None,
    ) -> None:
        """base: the directory that references are from, and over which the records are laid; kept: the files that exist
        already; sealed(disk, entry, read_bytes): called in a thread for each chunk file once it is durable, for the
        journal."""
        self._store, self._disk, self._chunk_size = store, disk, chunk_size
        self._sealing = ThreadPoolExecutor(1)  # a full chunk file becomes durable while the next one is written
        self._sealed: list[Future[Writer]] = []
        self._on_sealed = sealed
        self._kept = {entry.path: entry for entry in kept.files} if kept else {}
        self._chunk: Optional[Chunk] = None
        self._index = IndexWriter(store, disk, base)
        for path, page in zip(self._kept, kept.pages() if kept else ()):
            self._index.add_chunk(path, page)

    def add(self, encoded: Encoded) -> None:
        if self._chunk is None:
            self._chunk = self._new_chunk()
        self._chunk.add(encoded)
        self._index.add(encoded.records)
        if self._chunk.file.size >= self._chunk_size or self._chunk.record_count >= MAX_CHUNK_RECORDS:
            self._end_chunk(self._chunk)

    def number(self, path: str) -> int:
        """Return the number of a file that references point into: one of the base, or one that was kept."""
        return self._index.number(path)

    def _new_chunk(self) -> Chunk:
        disk, number = self._disk, len(self._kept) + len(self._sealed)
        path = f"{disk.folder}/{layout.chunk_name(disk.name, number)}"
        file = self._store.create(f"{disk.series}/{path}")
        header = layout.chunk_header(disk.folder, disk.name, disk.size, number)
        return Chunk(file, self._index.number(path), header, self._store.seal)

    def _end_chunk(self, chunk: Chunk) -> None:
        self._chunk = None
        self._sealed.append(self._sealing.submit(self._seal, chunk, self._index.page(chunk.records())))
        for earlier in self._sealed[:-MAX_UNSEALED]:
            earlier.result()  # bounds the records in memory; a failed fsync ends the run early

    def _seal(self, chunk: Chunk, page: pages.Page) -> Writer:
        """Seal a chunk file and report it, in the only thread for this, so that files are reported in order."""
        file = chunk.seal(page)
        self._on_sealed(self._disk.name, self._entry(file), chunk.read_bytes)
        return file

    def close(self) -> tuple[FileEntry, list[FileEntry]]:
        """Seal everything; return FileEntry of the directory, and of the other files that were written, with paths
        relative to the series."""
        if self._chunk is not None:
            self._end_chunk(self._chunk)
        made = {**self._kept, **{entry.path: entry for entry in (self._entry(file.result()) for file in self._sealed)}}
        directory, index = self._index.close(made)
        return directory, [*index, *made.values()]

    def _entry(self, file: Writer) -> FileEntry:
        return FileEntry(file.path.partition("/")[2], file.size, file.sha256())

    def __enter__(self) -> DiskWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sealing.shutdown()
        self._index.abandon()
        if self._chunk is not None:
            self._chunk.file.close()


class Chunk:
    """A chunk file being written. number: of the file, for the records' field `chunk`; seal: of the store."""

    def __init__(self, file: Writer, number: int, header: bytes, seal: Seal) -> None:
        self.file, self.number, self._seal = file, number, seal
        self.record_count = self.read_bytes = 0
        self._records: list[layout.Records] = []
        self._sizes = [(len(header), 0)]
        file.write(header)

    def add(self, encoded: Encoded) -> None:
        """Append the frames, and enter the place of each in its record."""
        records, data = encoded.records, encoded.new
        stored = records["stored"][data].astype("u8")
        records["position"][data] = self.file.size + numpy.cumsum(stored) - stored
        records["chunk"][data] = self.number
        for record, first in encoded.again:
            for name in ("position", "stored", "chunk"):
                records[name][record] = records[name][first]
        self._records.append(records)
        self.record_count += len(records)
        self.read_bytes += encoded.read_bytes
        self._sizes += self._seal.shown(records[["stored", "raw"]][data].tolist())
        self.file.write(b"".join(encoded.frames))

    def records(self) -> layout.Records:
        return numpy.concatenate(self._records)

    def seal(self, page: pages.Page) -> Writer:
        """Append the records as a page and the seek table, make the file durable; return it."""
        data = self._seal.piece(pages.compressed(pages.encode_page(page)), layout.RECORDS_PIECE)
        records = layout.skippable(layout.RECORDS_MAGIC, data)
        self._sizes.append((len(records), 0))
        self.file.write(records + layout.seek_table(self._sizes))
        self.file.seal()
        return self.file
