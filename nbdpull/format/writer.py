"""Extents and bytes of one disk in ascending order, to chunk files and an index. reader.py is its mirror.

Owns: compression and digests on the way in, when a chunk file is full, and how records, seek table and index follow.
Must not know: where the bytes come from, other disks, manifests' publishing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol, Union, cast

import numpy
import zstandard
from blake3 import blake3

from ..core import errors, extents
from ..storage.base import Store, Writer
from . import layout
from .manifest import FileEntry

MAX_CHUNK_RECORDS = 1 << 17  # bounds the memory of the records that a chunk file ends in: 10 MiB
MAX_UNSEALED = 2  # chunk files that wait for their fsync
COSTLY_LEVEL = 13  # from here on zstd is slow even where nothing can be gained: 5 ms for 1 MiB, 120 ms at level 19
WORTH_WHILE = 0.97  # what level 1 makes no smaller than this, no level does by much
ZERO_BLOCK = 1 << 16  # zeros inside data are found by blocks of this many bytes, QEMU's usual cluster


class Known(Protocol):
    """A repository.known_frames.KnownFrames."""

    def find(self, records: layout.Records) -> tuple[extents.Mask, layout.Records]: ...


class Kept(Protocol):
    """A pulling.resume.Kept."""

    @property
    def chunks(self) -> list[FileEntry]: ...

    @property
    def own(self) -> list[int]: ...

    def records(self) -> Iterable[layout.Records]: ...


@dataclass(frozen=True)
class Encoded:
    """Some consecutive extents, ready to be written.

    records: without a place in a chunk file yet; frames: those of records[new], in order; records[old] are references,
    their chunk is the number of an older chunk file in KnownFrames.
    """

    records: layout.Records
    frames: list[bytes]
    read_bytes: int
    new: extents.Indexes
    old: extents.Indexes

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


class Encoder:
    """Turns extents and their bytes into records and frames; may be used by several threads at once.

    known: object whose find(extents, digests) gives, for each data extent, whether an older point has that very frame
    for that very range, and the records to refer to it with; None: every frame is stored.
    """

    def __init__(self, level: int, known: Optional[Known] = None) -> None:
        self._level = level
        self._known = known
        self._thread = threading.local()

    def encode(self, batch: extents.Extents, buffers: Sequence[extents.Buffer]) -> Encoded:
        """batch: extents, data ones within one layout.MAX_FRAME block; buffers: the bytes of each data extent."""
        read_bytes = extents.total(batch, extents.DATA)
        batch, buffers = _zeros_found(batch, buffers)
        records = layout.zero_records(batch)
        data = numpy.flatnonzero(batch["kind"] == extents.DATA)
        records["kind"][data] = extents.DATA
        records["raw"][data] = batch["length"][data]
        records["digest"][data] = numpy.array([blake3(buffer).digest() for buffer in buffers], "V32")
        old = self._refer_to_known(records, data)
        frames = [self._compressed(buffer) for buffer, is_old in zip(buffers, old) if not is_old]
        records["stored"][data[~old]] = [len(frame) for frame in frames]
        return Encoded(records, frames, read_bytes, data[~old], data[old])

    def _refer_to_known(self, records: layout.Records, data: extents.Indexes) -> extents.Mask:
        """Turn the records of frames that an older point has into references; return which of `data` they are."""
        if self._known is None or not len(data):
            return numpy.zeros(len(data), bool)
        old, references = self._known.find(records[data])
        records[data[old]] = references
        return old

    def _compressed(self, buffer: extents.Buffer) -> bytes:
        """One frame. Up to level 12 zstd itself passes quickly over what cannot be compressed (0.4 to 1 ms for 1 MiB),
        and a probe of ours would cost as much as it saves. Above it level 1 is the probe, and good enough if it fails.
        """
        if self._level >= COSTLY_LEVEL:
            quick = self._compressor(1).compress(buffer)
            if len(quick) > WORTH_WHILE * len(buffer):
                return quick
        return self._compressor(self._level).compress(buffer)

    def _compressor(self, level: int) -> zstandard.ZstdCompressor:
        mine: dict[Any, zstandard.ZstdCompressor] = vars(self._thread)
        if level not in mine:
            mine[level] = zstandard.ZstdCompressor(level=level, write_checksum=True)
        return mine[level]


def _zeros_found(
    batch: extents.Extents, buffers: Sequence[extents.Buffer]
) -> tuple[extents.Extents, Sequence[extents.Buffer]]:
    """Split data extents where whole blocks of them are zero: such blocks become zero extents."""
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
    """A quick no for what is no zero block: a byte in each 4 KiB tells, as a rule at the first look."""
    return any(not any(view[start : start + ZERO_BLOCK : 4096]) for start in range(0, len(view), ZERO_BLOCK))


def _runs(buffer: extents.Buffer) -> list[tuple[int, int, bool]]:
    """[(start, stop, whether it is zero), …] of a buffer, cut at multiples of ZERO_BLOCK."""
    zero = _zero_blocks(buffer)
    starts = [0, *(numpy.flatnonzero(zero[1:] != zero[:-1]) + 1).tolist()]
    stops = [*(start * ZERO_BLOCK for start in starts[1:]), len(buffer)]
    return [(start * ZERO_BLOCK, stop, bool(zero[start])) for start, stop in zip(starts, stops)]


def _zero_blocks(buffer: extents.Buffer) -> extents.Mask:
    """Which blocks of ZERO_BLOCK bytes are all zero, the last one perhaps short."""
    view = numpy.frombuffer(buffer, "u1")
    whole = len(view) // ZERO_BLOCK
    blocks = view[: whole * ZERO_BLOCK].view("u8").reshape(whole, ZERO_BLOCK // 8)
    maybe = cast("extents.Mask", ~blocks[:, ::512].any(axis=1))  # one look at each 4 KiB rules most blocks out
    maybe[maybe] = ~blocks[maybe].any(axis=1)
    rest = view[whole * ZERO_BLOCK :]
    return numpy.append(maybe, not rest.any()) if len(rest) else maybe


class DiskWriter:
    """Writes one disk of one point. Give `add` everything in ascending order, then `close`."""

    def __init__(
        self,
        store: Store,
        series: str,
        point: str,
        disk: str,
        size: int,
        chunk_size: int,
        old_chunks: Sequence[FileEntry] = (),
        kept: Optional[Kept] = None,
        sealed: Callable[[str, list[FileEntry], int], None] = lambda *_: None,
    ) -> None:
        """old_chunks: FileEntry of the chunk files that references may name, by the number that they use; kept: a
        resume.Kept, what is there already; sealed(disk, entries, read_bytes): told of each chunk file that is durable,
        in a thread, see the journal."""
        self._store, self._series, self._point = store, series, point
        self._disk, self._size, self._chunk_size = disk, size, chunk_size
        self._sealing = ThreadPoolExecutor(1)  # a full chunk file becomes durable while the next one is written
        self._sealed: list[Future[Writer]] = []
        self._tell_sealed = sealed
        self._old_chunks = old_chunks
        self._chunks: list[Union[Future[Writer], FileEntry, None]] = list(kept.chunks) if kept else []
        self._told = len(self._chunks)  # how many of them `sealed` was told of
        self._own = len(kept.own) if kept else 0  # chunk files made, or being made
        # number in old_chunks -> number in this disk's own list of chunk files
        places = {chunk: number for number, chunk in enumerate(self._chunks)}
        self._old_places = {n: places[old] for n, old in enumerate(old_chunks) if old in places}
        self._chunk: Optional[_Chunk] = None
        self._reached = 0
        self._index = self._create(layout.index_name(disk))
        self._index_stream = _records_compressor().compressobj()
        for records in kept.records() if kept else ():
            self._add_to_index(records)

    def _create(self, name: str) -> Writer:
        return self._store.create(f"{self._series}/{self._point}/{name}")

    def add(self, encoded: Encoded) -> None:
        self._place_references(encoded)
        if self._chunk is None:
            self._chunk = self._new_chunk()
        self._chunk.add(encoded)
        self._add_to_index(encoded.records)
        if self._chunk.file.size >= self._chunk_size or self._chunk.record_count >= MAX_CHUNK_RECORDS:
            self._end_chunk(self._chunk)

    def _add_to_index(self, records: layout.Records) -> None:
        """An index that a reader has to refuse must never be committed."""
        if int(records["offset"][0]) < self._reached:
            raise errors.NbdpullError(f"disk {self._disk}: records from byte {records['offset'][0]} on come too late")
        self._reached = int(extents.ends(records[-1:])[0])
        self._index.write(self._index_stream.compress(records.tobytes()))

    def _place_references(self, encoded: Encoded) -> None:
        """Give references the number that their chunk file has in this point."""
        if not len(encoded.old):
            return
        for number in numpy.unique(encoded.records["chunk"][encoded.old]).tolist():
            if number not in self._old_places:
                self._old_places[number] = len(self._chunks)
                self._chunks.append(self._old_chunks[number])
        used = encoded.records["chunk"][encoded.old].tolist()
        encoded.records["chunk"][encoded.old] = [self._old_places[number] for number in used]

    def _new_chunk(self) -> _Chunk:
        number = len(self._chunks)
        self._chunks.append(None)
        file = self._create(layout.chunk_name(self._disk, self._own))
        self._own += 1
        return _Chunk(file, number, layout.chunk_header(self._point, self._disk, self._size, number))

    def _end_chunk(self, chunk: _Chunk) -> None:
        self._chunk = None
        self._sealed.append(self._sealing.submit(self._seal, chunk, len(self._chunks)))
        self._chunks[chunk.number] = self._sealed[-1]
        for earlier in self._sealed[:-MAX_UNSEALED]:
            earlier.result()  # bounds the records in memory; and a failed fsync ends the run now, not at its end

    def _seal(self, chunk: _Chunk, known: int) -> Writer:
        """known: how many chunk files the list had when this one was full. In the one thread for it, so that each one
        before it was told of."""
        file = chunk.seal()
        since = self._chunks[self._told : known]
        entries = [entry if isinstance(entry, FileEntry) else self._entry(file) for entry in since]
        self._tell_sealed(self._disk, entries, chunk.read_bytes)
        self._told = known
        return file

    def close(self) -> tuple[FileEntry, list[FileEntry]]:
        """Seal everything; return (index, chunks) as FileEntry, with paths relative to the series."""
        if self._chunk is not None:
            self._end_chunk(self._chunk)
        self._index.write(self._index_stream.flush())
        self._index.seal()
        chunks = [
            c if isinstance(c, FileEntry) else self._entry(c.result())  # type: ignore[union-attr]  # all have ended
            for c in self._chunks
        ]
        return self._entry(self._index), chunks

    def _entry(self, file: Writer) -> FileEntry:
        return FileEntry(file.path.partition("/")[2], file.size, file.sha256())

    def __enter__(self) -> DiskWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sealing.shutdown()
        for file in [self._index, self._chunk.file if self._chunk else None]:
            if file is not None:
                file.close()


def _records_compressor() -> zstandard.ZstdCompressor:
    """A new one each: one compressor's streams share its state, so that a second use would end the first."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True)


def compressed_records(batches: Iterable[layout.Records]) -> bytes:
    """Return the index that DiskWriter makes of these records, however they are cut into arrays."""
    stream = _records_compressor().compressobj()
    return b"".join([*(stream.compress(batch.tobytes()) for batch in batches), stream.flush()])


class _Chunk:
    """The chunk file being written."""

    def __init__(self, file: Writer, number: int, header: bytes) -> None:
        self.file, self.number = file, number
        self.record_count = self.read_bytes = 0
        self._records: list[layout.Records] = []
        self._sizes = [(len(header), 0)]
        file.write(header)

    def add(self, encoded: Encoded) -> None:
        """Append the frames, and fill in the place of each in its record."""
        records, data = encoded.records, encoded.new
        stored = records["stored"][data].astype("u8")
        records["position"][data] = self.file.size + numpy.cumsum(stored) - stored
        records["chunk"][data] = self.number
        self._records.append(records)
        self.record_count += len(records)
        self.read_bytes += encoded.read_bytes
        self._sizes += records[["stored", "raw"]][data].tolist()
        self.file.write(b"".join(encoded.frames))

    def seal(self) -> Writer:
        """Append records and seek table, make the file durable; return it."""
        compressed = _records_compressor().compress(numpy.concatenate(self._records).tobytes())
        records = layout.skippable(layout.RECORDS_MAGIC, compressed)
        self._sizes.append((len(records), 0))
        self.file.write(records + layout.seek_table(self._sizes))
        self.file.seal()
        return self.file
