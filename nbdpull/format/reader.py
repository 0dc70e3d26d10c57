"""The reader of chunk files and pages of one disk: files to records and bytes. writer.py is its mirror.

Owns: decompression and digests on the way out. Anything that differs from what was written is Damaged, never data.
Must not know: which records cover others (directory.py), where the bytes go.
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Callable, Optional, TypeVar

import numpy
import zstandard
from blake3 import blake3

from ..core import errors, extents
from ..storage.base import Reader, Store
from . import layout, moved, pages
from .manifest import FileEntry

MAX_CHUNK_RECORDS_SIZE = 1 << 26  # bytes; nbdpull never writes more in one chunk file
MAX_TAIL_SIZE = 1 << 26  # bytes of the seek table, or of the compressed records, in one chunk file
MAX_OPEN = 1024  # chunk files in a process: an image that grew for years needs a few frames from that many
SHARE = 4  # and at most one in this many of the files that the process may have open

_T = TypeVar("_T")


def page(store: Store, path: str, ref: numpy.void, disk: str) -> pages.Page:
    """Return the page of an index file that a directory's PAGE refers to; Damaged if it is not what was stored."""
    return store.proved(lambda: _page(store, path, ref, disk))


def _page(store: Store, path: str, ref: numpy.void, disk: str) -> pages.Page:
    raw, stored = int(ref["raw"]), int(ref["stored"])
    try:
        piece = store.seal.opened_piece(store.read_range(path, int(ref["position"]), stored), layout.PAGE_PIECE)
        data = pages.decompressed(piece, raw)
        if len(data) != raw or store.seal.secret(digest(data)) != ref["digest"].tobytes():
            raise ValueError("its digest is not the stored one")
        found = pages.decode_page(data, disk)
        if len(found.records) != ref["records"]:
            raise ValueError("it does not have as many records as were stored")
        return found
    except ValueError as error:
        raise errors.Damaged(f"{store.path(path)}: a page of the index is damaged ({error})") from None


def chunk_records(store: Store, path: str, size: int, disk: str) -> pages.Page:
    """Return the records at the end of a chunk file of `size` bytes, with the names of the chunk files that they point
    into. Damaged if this part is not intact."""
    try:
        table_size = layout.seek_table_size(_tail(store, path, size, layout.SEEK_FOOTER_SIZE))
        table = layout.parse_seek_table(_tail(store, path, size, table_size))
        frame = _tail(store, path, size - table_size, table[-1][0])
        piece = layout.parse_skippable(frame, layout.RECORDS_MAGIC)
        data = store.seal.opened_piece(piece, layout.RECORDS_PIECE)
        return pages.decode_page(pages.decompressed(data, MAX_CHUNK_RECORDS_SIZE), disk)
    except (ValueError, IndexError) as error:
        raise errors.Damaged(f"{store.path(path)}: the records of the chunk file cannot be read: {error}") from error


def _tail(store: Store, path: str, stop: int, length: int) -> bytes:
    """Return the last `length` bytes before `stop`; ValueError if there cannot be so many, or if the size is absurd."""
    if not 0 <= length <= min(stop, MAX_TAIL_SIZE):
        raise ValueError("it has no sensible size")
    return store.read_range(path, stop - length, length)


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=pages.MAX_WINDOW)


def digest(data: extents.Buffer) -> bytes:
    """Return the digest of bytes, as in records."""
    return blake3(data).digest()


def digest_of(parts: Iterable[extents.Buffer]) -> bytes:
    """Return the digest of bytes that come in parts."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


class _Count:
    """How many files all OpenFiles of this process have open, as a point may have many disks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.files = 0

    def add(self, files: int) -> None:
        with self._lock:
            self.files += files


_count = _Count()


def _most() -> int:
    """Return how many files all OpenFiles together may have open."""
    few, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN if few == resource.RLIM_INFINITY else min(MAX_OPEN, few // SHARE)


class OpenFiles:
    """Files of a store, open for reading. Those used least recently are closed when the process has too many open."""

    def __init__(self, store: Store, again: bool = False) -> None:
        """again: see Store.open_reader."""
        self._store, self._again, self._most = store, again, _most()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Reader] = OrderedDict()  # least recently used first

    def read(self, path: str, offset: int, length: int, through: bool = False) -> bytes:
        """Return exactly `length` bytes of a file from `offset`; Damaged if it does not have them. through: see
        Store.open_reader."""
        return self._reader(path, through).read(offset, length)

    def has_size(self, path: str, size: int, through: bool = False) -> bool:
        """Return whether a file has this size. It stays open, as it will be read; False if too many are open."""
        if _count.files >= self._most:
            return False
        with suppress(errors.Damaged):
            return self._reader(path, through).size == size
        return False

    def _reader(self, path: str, through: bool) -> Reader:
        """Return the Reader of a file. It remains open as long as the caller uses it."""
        with self._lock:
            if found := self._open.get(path):
                self._open.move_to_end(path)
                return found
        new = self._store.open_reader(path, self._again, through)  # not with the lock: other threads would wait for it
        with self._lock:
            found = self._open.setdefault(path, new)
            if found is new:
                _count.add(1)
                for _ in range(min(_count.files - self._most, len(self._open) - 1)):
                    self._open.popitem(last=False)  # its file is closed when no thread reads it any more
                    _count.add(-1)
        return found

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
            _count.add(-1)


class FrameReader:
    """Reads frames from the files of one disk, wherever they were moved; may be used by several threads at once.

    entries: the files that a record's chunk is an index into; files: OpenFiles that are shared with others, and closed
    by the caller; None: its own. wanted: how many bytes of each file will be read, roughly in ascending order; None:
    unknown.
    """

    def __init__(
        self,
        store: Store,
        series: str,
        entries: Sequence[FileEntry],
        files: Optional[OpenFiles] = None,
        wanted: Optional[Sequence[int]] = None,
    ) -> None:
        self._store, self._series, self._entries = store, series, entries
        self._through = [2 * size >= entry.size for size, entry in zip(wanted or (), entries)] or [False] * len(entries)
        self._tables: dict[int, moved.Table] = {}
        self._files = files or OpenFiles(store)
        self._shared = files is not None
        self._idle: list[zstandard.ZstdDecompressor] = []

    def opens(self, number: int) -> bool:
        """Return whether a file has its size, and can stay open until it is read. False says nothing: it may have been
        moved, or too many files may be open."""
        entry = self._entries[number]
        return self._files.has_size(f"{self._series}/{entry.path}", entry.size, self._through[number])

    def read(self, record: layout.Record) -> bytes:
        """Return the bytes of a data record's whole frame; Damaged unless they have its size and digest."""
        return self._done(record, self._proved)[1]

    def flaw(self, record: layout.Record) -> Optional[str]:
        """Return why the frame of a record is not what was stored, without the range of the record; None if it is."""
        try:
            self._store.proved(partial(self._proved, record))
        except errors.Damaged as error:
            return str(error)
        return None

    def stored(self, record: layout.Record) -> bytes:
        """Return the frame as stored in the file, proved as `read` does."""
        return self._done(record, self._proved)[0]

    def unsealed(self, record: layout.Record) -> bytes:
        """Return the frame without its seal. Damaged.

        The seal is proof enough, without decompression: it opens only with the digest of the frame's content.
        """
        if self._store.seal.id is None:
            return self.stored(record)
        return self._done(record, self._unsealed)

    def _done(self, record: layout.Record, work: Callable[[layout.Record], _T]) -> _T:
        """Return what the work returns, as proved; Damaged with the range of the record."""
        try:
            return self._store.proved(partial(work, record))
        except errors.Damaged as error:
            raise errors.Damaged(f"{error}{range_of(record)}") from error

    def _unsealed(self, record: layout.Record) -> bytes:
        path, data = self._at(record)
        try:
            return self._store.seal.opened_frame(data, bytes(record["digest"]))
        except ValueError as error:
            raise errors.Damaged(f"{self._store.path(path)}: a frame is not what was stored: {error}") from None

    def _proved(self, record: layout.Record) -> tuple[bytes, bytes]:
        path, data = self._at(record)
        wanted = bytes(record["digest"])
        raw = self._content(data, wanted, int(record["raw"]))
        if raw is None or digest(raw) != wanted:
            raise errors.Damaged(f"{self._store.path(path)}: a frame is not what was stored")
        return data, raw

    def _at(self, record: layout.Record) -> tuple[str, bytes]:
        """Return (path, bytes) of a frame as stored in a file. If a file is gone, its frames were moved by a repack:
        first those of the file itself, later perhaps those of the new file, too."""
        number, position, stored = int(record["chunk"]), int(record["position"]), int(record["stored"])
        while True:
            place = self._place(number, position, stored)
            path = f"{self._series}/{place[0]}"
            try:
                return path, self._files.read(path, place[1], stored, self._through[number])
            except errors.Damaged:
                if self._store.size(path) is not None or not self._has_table(number):
                    raise
                if self._place(number, position, stored) == place:
                    raise

    def _has_table(self, number: int) -> bool:
        """Read the moved table of a file again; return whether there is one."""
        table = moved.read(self._store, self._series, self._entries[number])
        if table is not None:
            self._tables[number] = table
        return table is not None

    def _place(self, number: int, position: int, stored: int) -> tuple[str, int]:
        """Return (path, position) of a frame of a file, as far as is known."""
        entry, table = self._entries[number], self._tables.get(number)
        if table is None:
            return entry.path, position
        place = table.place(position, stored)
        if place is None:
            path = self._store.path(self._series, moved.path_of(entry.path))
            raise errors.Damaged(f"{path}: a frame that is needed was not moved")
        return place

    def _content(self, data: bytes, wanted: bytes, size: int) -> Optional[bytes]:
        """Return exactly `size` bytes, None if the frame does not open with this digest or has another size. Must never
        allocate the size that a damaged frame claims."""
        try:
            frame = self._store.seal.opened_frame(data, wanted)
            if zstandard.frame_content_size(frame) != size or not pages.is_frame(frame):
                return None
            return self._whole(frame)
        except (ValueError, zstandard.ZstdError):
            return None

    def _whole(self, data: bytes) -> bytes:
        """Decompress a frame, with a decompressor that no other thread uses meanwhile.

        Decompressors are not thread-local: a thread of nbdkit loses its locals when its call into Python ends, and
        creating a decompressor takes as long as decompressing a small frame.
        """
        try:
            mine = self._idle.pop()
        except IndexError:
            mine = _decompressor()
        try:
            return mine.decompress(data, allow_extra_data=False)
        finally:
            self._idle.append(mine)

    def close(self) -> None:
        if not self._shared:
            self._files.close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def range_of(record: layout.Record) -> str:
    """Return the end of a message about the frame of a record: which bytes of the disk are concerned."""
    offset, length = int(record["offset"]), int(record["length"])
    return f" (bytes {offset} to {offset + length} of the disk)"
