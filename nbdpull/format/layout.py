"""Format nbdpull/2: every magic number, byte offset and file name of a store. docs/format.md is its specification.

Owns: the layout of chunk files, indexes and sealed JSON documents, and the names of files and points. Converts bytes to
values and back; what a reader must refuse is refused here or in manifest.py.

Must not know: files, compression, threads, libvirt, NBD.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import re
import secrets
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Callable, Optional, TypeVar, Union
from urllib.parse import quote, unquote

import numpy

from ..core import errors, extents, members

FORMAT = "nbdpull/2"
NEVER_RELEASED = ("nbdpull/1",)  # formats of development versions
SEALED = "sealed"
FEATURES = frozenset({SEALED})  # what a document may list in "requires" and this reader understands

Document = dict[str, Any]  # a JSON object

MARKER = "nbdpull.json"
POLICY = "policy.json"
KEYS = "@keys"  # folder of the key files of a sealed store; no domain's encoded name contains an @
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
MOVED = ".moved"  # suffix of the name of a chunk file's moved table
REPACKED = "repacked.json"  # marks a folder whose chunk files contain frames that were moved there
DOMAIN_XML = "domain.xml"
LIVE_XML = "domain-live.xml"  # of the running domain, if it has what domain.xml lacks
CHECKPOINT_XML = "checkpoint.xml"
VM_OBJECT = "virtualmachine.json"  # of KubeVirt, instead of domain.xml
NVRAM = "nvram"
BOOT_FILES = ("kernel", "initrd", "dtb")  # of a domain that is booted from them directly
TPM_PREFIX = "tpm."  # followed by the name of the state file of an emulated TPM

MAX_FRAME = 1 << 20  # bytes of guest data; no frame crosses a multiple of it
MAX_BLOCK_RECORDS = 1 << 14  # records that begin in one multiple of MAX_FRAME: one for each 64 bytes
MAX_STORED = MAX_FRAME + (1 << 16)  # bytes of a frame that does not compress
MAX_DISK = 1 << 50  # bytes
MAX_DOCUMENT = 1 << 26  # bytes of a sealed document, and of a journal
MAX_NOTE = 1 << 16  # bytes of the note about a key file
MAX_FILE = 1 << 30  # bytes of a file that is neither chunk file nor index: such files are read whole
MAX_CHUNK_FILES = 1 << 18  # chunk files that a pull creates for one disk
PAGE_PIECE, RECORDS_PIECE = "page", "records"  # kinds of pieces that are sealed
WINDOW = 1 << 30  # bytes of a disk that one page covers; docs/design.md has the measurements
MAX_PAGE_RECORDS = 1 << 21  # one for each 512 bytes of a window
MAX_PAGES = 16  # of one window
MAX_DIRECTORY = 1 << 28  # bytes, decompressed

# Names


def new_point_id(now: Optional[datetime] = None) -> str:
    """Return an id such as 20261122T194500Z-7f3a9c04: UTC seconds for people, random digits for uniqueness.

    Ids do not define an order.
    """
    now = now or datetime.now(timezone.utc)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


POINT_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6,16}\Z", re.ASCII)
_IN_POINT = POINT_ID.pattern.replace(r"\Z", "/")
CHUNK_PATH = re.compile(_IN_POINT + r"(?P<disk>[\w.~%-]+)\.\d{4,}\.zst\Z", re.ASCII)
INDEX_PATH = re.compile(_IN_POINT + r"(?P<disk>[\w.~%-]+)\.index\Z", re.ASCII)
DISK_PATH = re.compile(_IN_POINT + r"(?P<disk>[\w.~%-]+)\.(?:\d{4,}\.zst|index)\Z", re.ASCII)  # either
# Names of files about a folder, of moved tables and of drafts: no file of a point may have one.
_RESERVED = (
    r"(?i:(?:manifest\.json|manifest\.removed|manifest\.swept|run\.json|pinned\.json|repacked\.json|.*\.moved|.*\.draft)"
    r"\Z)"
)
_FILE_NAME = rf"(?!\.{{1,2}}\Z)(?!{_RESERVED})[^/\x00-\x1f\x7f\ud800-\udfff]{{1,255}}\Z"
FILE_PATH = re.compile(f"{_IN_POINT}(?P<name>{_FILE_NAME})", re.ASCII)
KEY_ID = re.compile(r"[0-9a-f]{32}\Z")  # id of a master key
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?[+-]\d\d:[0-5]\d\Z", re.ASCII)


def is_time(text: str) -> bool:
    """Return whether a text is a time in the form of documents: 2026-11-22T19:45:00+00:00, perhaps with a fraction."""
    try:
        return bool(_TIME.match(text) and datetime.fromisoformat(text))
    except ValueError:
        return False


MAX_NAME = 255  # bytes that a file system allows in one name
MAX_DISK_NAME = 200  # bytes of the encoded name of a disk: the names of its files are longer
_SHORTENED = re.compile(r"~[0-9a-f]{16}\Z")


@functools.lru_cache(1024)  # a directory has hundreds of file names of one disk; those of a thousand points are read
def encoded(name: str) -> str:
    """Percent-encode a name as one plain path component that no reader can misinterpret."""
    text = quote(name, safe="", errors="replace")  # text that is not UTF-8 is no name: its encoding only has to differ
    return "%2E" + text[1:] if text.startswith(".") else text


def folder_name(domain: str) -> str:
    """Return the folder of a domain: its encoded name; if that is too long, or looks shortened, its beginning and a
    digest.

    A name is cut between two characters, so that readers that do not know the rule see a valid name.
    """
    whole = encoded(domain)
    if len(whole) <= MAX_NAME and not _SHORTENED.search(whole):
        return whole
    digest = hashlib.sha256(domain.encode()).hexdigest()[:16]
    kept = domain[:MAX_NAME]
    while len(f"{encoded(kept)}~{digest}") > MAX_NAME:
        kept = kept[:-1]
    return f"{encoded(kept)}~{digest}"


def fits_point(name: str, size: int) -> bool:
    """Return whether a point can contain a small file of this name and size in bytes."""
    return bool(re.match(_FILE_NAME, name)) and size <= MAX_FILE


def belongs_to_domain(name: str) -> bool:
    """Return whether a restore brings back this file of a point, beside the disks."""
    return name in (DOMAIN_XML, LIVE_XML, VM_OBJECT, NVRAM, *BOOT_FILES) or name.startswith(TPM_PREFIX)


def file_piece(name: str) -> str:
    """Return the kind of piece that a small file of a point is in a sealed store."""
    return f"file {name}"


def domain_name(folder: str) -> Optional[str]:
    """Return the domain's name, None if the folder is not a domain's.

    The full name behind a shortened one is unknown: the result is then the decoded folder name.
    """
    name = unquote(folder)
    return name if encoded(name) == folder and "\0" not in name else None


def chunk_name(disk: str, number: int) -> str:
    return f"{encoded(disk)}.{number:04d}.zst"


def index_name(disk: str) -> str:
    return f"{encoded(disk)}.index"


def directory_name(disk: str) -> str:
    return f"{encoded(disk)}.directory"


# Sealed documents: manifest.json and nbdpull.json

_SEAL = re.compile(rb'\n "digest": "([0-9a-f]{64})"\n}\n\Z')
_MAC = re.compile(rb'\n "mac": "([0-9a-f]{64})",\n "digest": "([0-9a-f]{64})"\n}\n\Z')
_ZEROS = "0" * 64

Mac = Callable[[bytes], Optional[bytes]]


def seal(document: Document) -> bytes:
    """Return the document as JSON bytes whose last member is their own SHA-256 (taken with 64 zeros in its place)."""
    return _digested(_blank({**document, "digest": _ZEROS}))


def seal_with_mac(document: Document, mac: Mac) -> bytes:
    """Return what `seal` does, with a member `mac` before the digest: the MAC of the file with zeros in place of both.
    ValueError without a key."""
    blank = _blank({**document, "mac": _ZEROS, "digest": _ZEROS})
    made = mac(blank)
    if made is None:
        raise ValueError("there is no key for the MAC")
    return _digested(_MAC.sub(f'\n "mac": "{made.hex()}",\n "digest": "{_ZEROS}"\n}}\n'.encode(), blank))


def has_mac(data: bytes, mac: Mac) -> bool:
    """Return whether a document has the MAC that only a holder of the key can make; without the key, any MAC counts."""
    match = _MAC.search(data)
    if match is None:
        return False
    made = mac(data[: match.start(1)] + _ZEROS.encode() + data[match.end(1) : match.start(2)] + _ZEROS.encode()
               + data[match.end(2) :])  # fmt: skip
    return made is None or hmac.compare_digest(made.hex(), match[1].decode())


def _blank(document: Document) -> bytes:
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _digested(blank: bytes) -> bytes:
    digest = hashlib.sha256(blank).hexdigest().encode()
    return _SEAL.sub(b'\n "digest": "' + digest + b'"\n}\n', blank)


def is_intact(data: bytes) -> bool:
    """Return whether the bytes match the digest in them, whatever else they contain."""
    match = _SEAL.search(data)
    return match is not None and match[1].decode() == hashlib.sha256(_blanked(data, match)).hexdigest()


def unseal(data: bytes, what: str) -> Document:
    """Return the document in `data`. Damaged if its digest does not match, FormatTooNew if it needs a later reader,
    FormatTooOld if its format was never released."""
    intact = is_intact(data)
    try:
        document = parse_object(data)
        unknown = _unknown(document["format"], document.get("requires", []))
    except (ValueError, KeyError):
        raise errors.Damaged(f"{what}: not a document of an nbdpull store; restore this file from a copy") from None
    is_sealed = _SEAL.search(data) is not None
    if unknown and (intact or not is_sealed):  # a later format may have another seal; a broken one proves nothing
        if unknown[0] in NEVER_RELEASED:
            raise errors.FormatTooOld(
                f"{what}: written by a development version of nbdpull, in format {unknown[0]}, which no release reads; "
                "pull into a new directory"
            )
        needed = ", ".join(unknown[:9])
        raise errors.FormatTooNew(f"{what}: needs {needed}, this nbdpull reads {FORMAT}; use a newer nbdpull")
    if not intact:
        raise errors.Damaged(f"{what}: the file is damaged (its digest does not match)")
    return document


def _blanked(data: bytes, match: re.Match[bytes]) -> bytes:
    return data[: match.start(1)] + b"0" * 64 + data[match.end(1) :]


def _unknown(stated: object, requires: object) -> list[str]:
    """Return what a document requires and this reader lacks, as texts. ValueError if `requires` is no list of texts."""
    needed: list[str] = members.typed(list[str], requires, "requires")
    if stated == FORMAT:
        return sorted({*needed} - FEATURES)
    return [stated if isinstance(stated, str) and len(stated) < members.MAX_TEXT else members.short(stated)]


def parse_object(data: bytes) -> Document:
    """Return the object in JSON bytes. ValueError if they contain another value, or anything that two readers might
    interpret differently (a member twice, half a surrogate pair) or cannot hold (huge numbers, endless nesting)."""
    if len(data) > MAX_DOCUMENT:
        raise ValueError("too large")
    text = data.decode()
    try:
        found = _STRICT.decode(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # UnicodeEncodeError of a half pair
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


_N = TypeVar("_N", int, float)


def _number(kind: Callable[[str], _N]) -> Callable[[str], _N]:
    """Return a parser of numbers that refuses those too large for any document."""

    def parse(text: str) -> _N:
        value = kind(text) if len(text) <= _MAX_DIGITS else None
        if value is None or not abs(value) <= members.MAX_INTEGER:
            raise ValueError("a number that is too large")
        return value

    return parse


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


_MAX_DIGITS = 100
_STRICT = json.JSONDecoder(
    object_pairs_hook=members.each_once,
    parse_int=_number(int),
    parse_float=_number(float),
    parse_constant=_no_number,
)


# Records: which range is in which frame

RECORD = numpy.dtype(
    [
        ("offset", "<u8"),  # bytes, on the disk
        ("length", "<u8"),  # bytes
        ("position", "<u8"),  # of the frame in its chunk file
        ("stored", "<u4"),  # the frame's size in the chunk file
        ("raw", "<u4"),  # its size decompressed
        ("skip", "<u4"),  # where in the decompressed frame the range begins
        ("chunk", "<u4"),  # which chunk file: an index into the list that names them, see format/pages.py
        ("kind", "<u4"),  # extents.DATA or extents.ZERO
        ("flags", "<u4"),  # none are defined: must be 0
        ("digest", "V32"),  # BLAKE3 of the decompressed frame
    ]
)
assert RECORD.itemsize == 80

Record = Union[numpy.void, Mapping[str, Any]]  # a RECORD, or a mapping with its fields
if TYPE_CHECKING:
    Records = extents.Ranges  # of RECORD

_ZERO_RECORD_FIELDS = ("position", "stored", "raw", "skip", "chunk")


def window_start(offset: int) -> int:
    """Return where the window begins that contains this byte of a disk."""
    return offset // WINDOW * WINDOW


def window_stop(start: int, size: int) -> int:
    """Return where the window that begins at `start` ends. size: of the disk."""
    return min(start + WINDOW, size)


def zero_records(ranges: extents.Ranges) -> Records:
    """Return the records of ranges that read as zero."""
    records = numpy.zeros(len(ranges), RECORD)
    records["offset"], records["length"], records["kind"] = ranges["offset"], ranges["length"], extents.ZERO
    return records


def records_flaw(records: Records, disk_size: int, chunk_count: int) -> Optional[str]:
    """Say why a reader must refuse these consecutive records of one index, or None."""
    flaw = extents.flaw(records, disk_size)
    if flaw:
        return flaw
    if records["flags"].any() or (records["kind"] > extents.ZERO).any():
        return "a record of unknown kind or flags"
    zero = records["kind"] == extents.ZERO
    if any(records[field][zero].any() for field in _ZERO_RECORD_FIELDS):
        return "a zero record with a frame"
    return _data_flaw(records[~zero], chunk_count)


def _data_flaw(data: Records, chunk_count: int) -> Optional[str]:
    if (data["chunk"] >= chunk_count).any():
        return "a record in a chunk file without a name"
    if (data["raw"] > MAX_FRAME).any() or (data["stored"] > MAX_STORED).any() or not data["stored"].all():
        return "a frame of impossible size"
    if (data["skip"] + data["length"] > data["raw"]).any():
        return "a record that reaches past its frame"
    if (data["offset"] // MAX_FRAME != (extents.ends(data) - 1) // MAX_FRAME).any():
        return f"a record that crosses a multiple of {MAX_FRAME} bytes"
    return None


# Chunk files: skippable header, data frames, skippable records, skippable seek table

HEADER_MAGIC = 0x184D2A50
RECORDS_MAGIC = 0x184D2A51
SEEK_TABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
FRAME_MAGIC = struct.pack("<I", 0xFD2FB528)

_SKIPPABLE = struct.Struct("<II")  # magic, size of what follows
_SEEK_FOOTER = struct.Struct("<IBI")  # number of entries, descriptor, magic
_SEEK_ENTRY = numpy.dtype([("stored", "<u4"), ("raw", "<u4")])
SEEK_FOOTER_SIZE = _SEEK_FOOTER.size


def skippable(magic: int, payload: bytes) -> bytes:
    return _SKIPPABLE.pack(magic, len(payload)) + payload


def chunk_header(point: str, disk: str, size: int, number: int) -> bytes:
    """Return the first bytes of a chunk file; size is the disk's, in bytes, number the file's."""
    about = {"format": FORMAT, "point": point, "disk": disk, "size": size, "chunk": number}
    return skippable(HEADER_MAGIC, json.dumps(about, separators=(",", ":")).encode())


def seek_table(sizes: Sequence[tuple[int, int]]) -> bytes:
    """Return the zstd seekable format's table for [(stored, raw), …] of every frame before it, skippable ones too."""
    entries = numpy.array(sizes, dtype="<u4").tobytes()
    return skippable(SEEK_TABLE_MAGIC, entries + _SEEK_FOOTER.pack(len(sizes), 0, SEEKABLE_MAGIC))


def parse_skippable(data: bytes, magic: int) -> bytes:
    """Return the payload of the skippable frame that `data` begins with; ValueError if it is none, or cut short."""
    if len(data) < _SKIPPABLE.size:
        raise ValueError("cut short")
    found, size = _SKIPPABLE.unpack_from(data)
    if found != magic or len(data) < _SKIPPABLE.size + size:
        raise ValueError(f"no frame of magic {magic:#x} here")
    return data[_SKIPPABLE.size : _SKIPPABLE.size + size]


def seek_table_size(footer: bytes) -> int:
    """Return the size in bytes of the seek table that ends in this footer; ValueError if it is none."""
    if len(footer) != _SEEK_FOOTER.size:
        raise ValueError("cut short")
    count, _, magic = _SEEK_FOOTER.unpack(footer)
    if magic != SEEKABLE_MAGIC:
        raise ValueError("no seek table at the end")
    size: int = _SKIPPABLE.size + count * _SEEK_ENTRY.itemsize + _SEEK_FOOTER.size
    return size


def parse_seek_table(tail: bytes) -> list[tuple[int, int]]:
    """Return [(stored, raw), …] from the end of a chunk file; ValueError if `tail` does not end in a seek table."""
    if len(tail) < _SEEK_FOOTER.size:
        raise ValueError("cut short")
    count, descriptor, magic = _SEEK_FOOTER.unpack(tail[-_SEEK_FOOTER.size :])
    size = _SKIPPABLE.size + count * _SEEK_ENTRY.itemsize + _SEEK_FOOTER.size
    if magic != SEEKABLE_MAGIC or descriptor or size > len(tail):
        raise ValueError("no seek table at the end")
    payload = parse_skippable(tail[-size:], SEEK_TABLE_MAGIC)
    sizes: list[tuple[int, int]] = numpy.frombuffer(payload[: -_SEEK_FOOTER.size], _SEEK_ENTRY).tolist()
    return sizes


# The digest of an image

IMAGE_DIGEST_BLOCK = MAX_FRAME
_NUMBER = struct.Struct("<Q")


def image_digest_head(size: int) -> bytes:
    """Return the first bytes that the digest of an image is computed from; size is the disk's, in bytes."""
    return b"nbdpull/1 image\n" + _NUMBER.pack(size)


def image_digest_block(number: int, digest: bytes) -> bytes:
    """Return the bytes that follow for each block that is not all zero. number: of the block; digest: of its bytes."""
    return _NUMBER.pack(number) + digest


# SHA256SUMS, as `sha256sum -c` reads it


def sums(digests: Mapping[str, str]) -> bytes:
    """Return the text for {file name: hex digest}."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()
