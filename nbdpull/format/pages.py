"""Pages and directories: the bytes that state which frame has the data of which range of a disk.

A page contains the records that one pull wrote for one window of a disk, and the names of the chunk files that they
point into; so its meaning does not depend on the directory that refers to it. A directory lists the pages of each
window, and all files that an image needs.

Owns: the layout of both, and what a reader must refuse in them. Must not know: files, how pages cover each other.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy
import zstandard

from ..core import extents
from . import layout
from .manifest import FileEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    PageRef = numpy.void  # a PAGE
    PageRefs = NDArray[numpy.void]
    Numbers = NDArray[numpy.uint64]

PAGE = numpy.dtype(
    [
        ("offset", "<u8"),  # of the page's window, bytes
        ("position", "<u8"),  # where the page begins in its index file
        ("stored", "<u4"),  # the page's size in the index file
        ("raw", "<u4"),  # the page's size decompressed
        ("file", "<u4"),  # which index file: number in the directory's files
        ("records", "<u4"),  # how many records it has
        ("digest", "V32"),  # BLAKE3 of the decompressed page; with a key in a sealed store
    ]
)
assert PAGE.itemsize == 64

_FILE = numpy.dtype([("size", "<u8"), ("live", "<u8"), ("sha256", "V32")])
assert _FILE.itemsize == 48

_PAGE_HEAD = struct.Struct("<II")  # files, bytes of their names
_DIRECTORY_HEAD = struct.Struct("<IIQ")  # files, pages, bytes of the names
MAX_NAMES = 1 << 26  # bytes
MAX_PAGE = 1 << 28  # bytes, stored or decompressed
MAX_WINDOW = 1 << 23  # bytes of earlier output that a decompressor keeps; zstd would accept 16 times as much


class Page(NamedTuple):
    """names: paths of chunk files, relative to the series; a record's chunk is an index into this list."""

    names: list[str]
    records: layout.Records


@dataclass(frozen=True)
class Directory:
    """files: index and chunk files, with paths relative to the series; live: how many bytes of each the image needs;
    pages: PAGE, sorted by offset; those of one window from the oldest."""

    files: list[FileEntry]
    live: Numbers
    pages: PageRefs


def encode_page(page: Page) -> bytes:
    names = _joined(page.names)
    return _PAGE_HEAD.pack(len(page.names), len(names)) + names + page.records.tobytes()


def decode_page(data: bytes, disk: str) -> Page:
    """Return the Page; ValueError if a reader must refuse it for any window. See also page_flaw."""
    if len(data) < _PAGE_HEAD.size:
        raise ValueError("a page that is cut short")
    count, size = _PAGE_HEAD.unpack_from(data)
    start = _PAGE_HEAD.size + size
    names = _split(data[_PAGE_HEAD.size : start], count, size)
    if _names_flaw(names, disk) or not all(map(layout.CHUNK_PATH.match, names)):
        raise ValueError("a page that names a path that is not a chunk file of the disk")
    if (len(data) - start) % layout.RECORD.itemsize:
        raise ValueError("a page that ends inside a record")
    return Page(names, numpy.frombuffer(data, layout.RECORD, offset=start))


def _joined(names: Iterable[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _split(data: bytes, count: int, size: int) -> list[str]:
    names = data.decode("ascii").split("\n") if size <= MAX_NAMES else []
    if len(data) != size or len(names) != count + 1 or names.pop() or len({*names}) != count:
        raise ValueError("the names are not one for each file, all different")
    return names


def page_flaw(page: Page, start: int, stop: int) -> Optional[str]:
    """Say why a reader must refuse a page for [start, stop) of the disk, or None."""
    records = page.records
    flaw = layout.records_flaw(records, stop, len(page.names))
    if not flaw and len(records) and int(records["offset"][0]) < start:
        flaw = "a record outside of its window"
    return flaw or density_flaw(records)


def density_flaw(records: layout.Records) -> Optional[str]:
    """Why the records are too many for a page, or None."""
    if len(records) > layout.MAX_PAGE_RECORDS:
        return f"more than {layout.MAX_PAGE_RECORDS} records in {layout.WINDOW} bytes"
    blocks, most = records["offset"] // layout.MAX_FRAME, layout.MAX_BLOCK_RECORDS
    if (blocks[most:] == blocks[:-most]).any():
        return f"more than {most} records in {layout.MAX_FRAME} bytes"
    return None


def encode_directory(directory: Directory) -> bytes:
    return joined(directory.files, directory.live, directory.pages)


def decode_directory(data: bytes, disk: str, disk_size: int) -> Directory:
    """Return the Directory; ValueError if a reader must refuse it."""
    files, live, refs = split(data, PAGE)
    flaw = _names_flaw([entry.path for entry in files], disk) or _refs_flaw(refs, files, disk_size)
    if flaw:
        raise ValueError(flaw)
    return Directory(files, live, refs)


def joined(entries: Sequence[FileEntry], live: Iterable[int], rows: NDArray[numpy.void]) -> bytes:
    """Return the bytes of a list of files and rows of numbers: a directory, or a moved table."""
    files, names = numpy.zeros(len(entries), _FILE), _joined(entry.path for entry in entries)
    files["size"], files["live"] = [entry.size for entry in entries], numpy.fromiter(live, "u8", len(entries))
    files["sha256"] = numpy.array([bytes.fromhex(entry.sha256) for entry in entries], "V32")
    head = _DIRECTORY_HEAD.pack(len(files), len(rows), len(names))
    return head + files.tobytes() + rows.tobytes() + names


def split(data: bytes, row: numpy.dtype[numpy.void]) -> tuple[list[FileEntry], Numbers, NDArray[numpy.void]]:
    """Return (files, live, rows) from bytes that `joined` made; ValueError."""
    if len(data) < _DIRECTORY_HEAD.size:
        raise ValueError("it is cut short")
    count, rows, size = _DIRECTORY_HEAD.unpack_from(data)
    at = _DIRECTORY_HEAD.size
    if len(data) != at + count * _FILE.itemsize + rows * row.itemsize + size:
        raise ValueError("it does not have the size that it states")
    files = numpy.frombuffer(data, _FILE, count, at)
    found = numpy.frombuffer(data, row, rows, at + files.nbytes)
    names = _split(data[at + files.nbytes + found.nbytes :], count, size)
    return [*map(_entry, names, files["size"].tolist(), files["sha256"].tolist())], files["live"], found


@functools.lru_cache(1 << 16)  # directories of a thousand points have half a million entries, of a few thousand files
def _entry(path: str, size: int, sha256: bytes) -> FileEntry:
    return FileEntry(path, size, sha256.hex())


def reach_past(position: Numbers, stored: NDArray[numpy.integer[Any]], sizes: Numbers) -> bool:
    """Return whether one of the ranges ends past the end of its file, without sums: these may not fit in 64 bits."""
    return bool((position > sizes).any() or (stored > sizes - position).any())


def _names_flaw(names: Sequence[str], disk: str) -> Optional[str]:
    others = {*map(_disk_of, names)} - {layout.encoded(disk)}
    return "it names a path that is not a file of the disk" if others else None


@functools.lru_cache(1 << 16)  # as for _entry
def _disk_of(path: str) -> str:
    """Return the encoded name of the disk of a file, "" if it is no chunk or index file."""
    match = layout.DISK_PATH.match(path)
    return match["disk"] if match else ""


def _refs_flaw(refs: PageRefs, files: Sequence[FileEntry], disk_size: int) -> Optional[str]:
    if not len(refs):
        return None
    if (refs["file"] >= len(files)).any():
        return "a page in a file that is not an index"
    indexes = [files[number] for number in refs["file"].tolist()]
    if not all(each.path.endswith(".index") for each in indexes):
        return "a page in a file that is not an index"
    if (refs["offset"] % layout.WINDOW).any() or (refs["offset"] >= disk_size).any():
        return "a page outside any window"
    if (refs["offset"][1:] < refs["offset"][:-1]).any():
        return "pages that are out of order"
    if (refs["offset"][layout.MAX_PAGES :] == refs["offset"][: -layout.MAX_PAGES]).any():
        return f"more than {layout.MAX_PAGES} pages of a window"
    if (
        (refs["raw"] > MAX_PAGE).any()
        or (refs["stored"] > MAX_PAGE).any()
        or not refs["stored"].all()
        or not refs["records"].all()
        or (refs["records"] > layout.MAX_PAGE_RECORDS).any()
    ):
        return "a page of impossible size"
    if reach_past(refs["position"], refs["stored"], numpy.array([each.size for each in indexes], "u8")):
        return "a page past the end of its file"
    return None


# Pages and directories are stored as one zstd frame each


def compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


def decompressed(data: bytes, limit: int) -> bytes:
    """Return the content of one whole zstd frame, at most `limit` bytes; ValueError if `data` is no such frame.

    Must never allocate the size that a damaged frame claims.
    """
    try:
        if not 0 <= zstandard.frame_content_size(data) <= limit or not is_frame(data):
            raise ValueError("no frame of a sensible size")
        stream, parts, size = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj(), [], 0
        for start in range(0, len(data), _STEP):
            if stream.eof:
                raise ValueError("something after the frame")
            parts.append(stream.decompress(data[start : start + _STEP]))
            size += len(parts[-1])
            if size > limit:
                raise ValueError("longer than it states")
    except zstandard.ZstdError as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error
    if not stream.eof or stream.unused_data:
        raise ValueError("not one whole frame")
    return b"".join(parts)


_STEP = 4096  # bytes decompressed at once, which make 128 MiB at the very most


def is_frame(data: bytes) -> bool:
    """Return whether bytes begin with a zstd frame as nbdpull writes them; ZstdError if they begin with no frame."""
    about = zstandard.get_frame_parameters(data)
    return data[:4] == layout.FRAME_MAGIC and about.has_checksum and not about.dict_id


def total_live(records: layout.Records) -> dict[int, int]:
    """Return {chunk: total stored bytes of the distinct frames that the data records point into}."""
    data = records[records["kind"] == extents.DATA]
    if not len(data):
        return {}
    data = data[numpy.lexsort((data["position"], data["chunk"]))]
    first = numpy.ones(len(data), bool)
    first[1:] = (data["chunk"][1:] != data["chunk"][:-1]) | (data["position"][1:] != data["position"][:-1])
    frames = data[first]
    starts = numpy.flatnonzero(numpy.concatenate([[True], frames["chunk"][1:] != frames["chunk"][:-1]]))
    sums = numpy.add.reduceat(frames["stored"].astype("u8"), starts)
    return dict(zip(frames["chunk"][starts].tolist(), sums.tolist()))
