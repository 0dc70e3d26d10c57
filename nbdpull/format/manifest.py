"""The manifest of a committed point: manifest.json as typed values, and what a reader must refuse in it.

Owns: the manifest's members and their rules. Must not know: files and folders (series.py does), frames, libvirt.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, Optional

from ..core import errors, members
from ..crypto.seal import PLAIN, Seal
from . import layout

FULL = "full"
INCREMENTAL = "incremental"


@dataclass(frozen=True)
class FileEntry:
    """A file of the store. path: relative to the series' folder; size: in bytes; sha256: in hex."""

    path: str
    size: int
    sha256: str

    @property
    def folder(self) -> str:
        """The folder of the point that made it, or of moved frames, within that of the series."""
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        return self.path.partition("/")[2]


@dataclass(frozen=True)
class DiskEntry:
    """One disk of a point. All sizes are in bytes.

    mode: how the disk was read, FULL or INCREMENTAL; reason: why, a code word; whole: whether the point has the whole
    disk, not only what changed since a state that is not stored.
    """

    name: str
    size: int
    mode: str
    reason: str
    source: str
    whole: bool
    directory: FileEntry
    dirty_bytes: int
    zero_bytes: int
    read_bytes: int
    stored_bytes: int
    deduped_bytes: int = 0
    levels: dict[str, int] = field(default_factory=dict)  # added later; {zstd's level: bytes compressed at it}


@dataclass(frozen=True)
class ParentEntry:
    point: str
    sha256: str


@dataclass(frozen=True)
class CheckpointEntry:
    """The checkpoint made with a point.

    creation_time: seconds since the epoch; automatic: named by nbdpull, which may delete it when it is superseded.
    """

    name: str
    creation_time: int
    automatic: bool


@dataclass(frozen=True)
class LockedEntry:
    """How everything that a point refers to, and the marker of the store, were locked when the point was made.

    until: when the first of these locks ends, ISO 8601; mode: a word of LockMode; keys: names of key files that were
    locked, too.
    """

    until: str
    mode: str
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """One point.

    sequence: higher than that of every point committed earlier in the series; only it defines their order. created:
    when the point was finished; as_of: the instant whose state it contains; both ISO 8601, UTC. since: the checkpoint
    that the incremental disks start from, or None.
    """

    point: str
    sequence: int
    created: str
    store: str
    parent: Optional[ParentEntry]
    domain: str
    uuid: str
    since: Optional[str]
    checkpoint: Optional[CheckpointEntry]
    consistency: str  # "frozen" or "crash-consistent"
    disks: list[DiskEntry]
    files: list[FileEntry]
    versions: dict[str, str]
    seconds: dict[str, float]
    consistency_reason: str = ""  # why it is not frozen; added after the first stores, so it may be missing
    as_of: Optional[str] = None  # likewise
    passwords: list[str] = field(default_factory=list)  # likewise; types of graphics with a password, which is not kept
    locked: Optional[LockedEntry] = None  # likewise; not written either if nothing is locked
    autostart: Optional[bool] = None  # likewise; whether libvirt started the domain with its host
    origin: Optional[str] = None  # likewise; SHA-256 of the first manifest of a point copied under another seal

    def disk(self, name: str) -> Optional[DiskEntry]:
        """Return the entry of the disk of this name, or None."""
        return next((disk for disk in self.disks if disk.name == name), None)

    def all_files(self) -> list[FileEntry]:
        """Return every file that the manifest names. The directories of the disks name the others."""
        return [*self.files, *(disk.directory for disk in self.disks)]

    @property
    def partial(self) -> frozenset[str]:
        """The names of the disks that are not whole: the point is not enough for an image of them."""
        return frozenset(disk.name for disk in self.disks if not disk.whole)


def encode(manifest: Manifest, seal: Seal = PLAIN) -> bytes:
    """Return the bytes of manifest.json. seal: of the store."""
    values = {name: value for name, value in asdict(manifest).items() if name not in _RARE or value is not None}
    if seal.id is None:
        return layout.seal({"format": layout.FORMAT, "requires": [], **values})
    seal.require()
    return layout.seal_with_mac({"format": layout.FORMAT, "requires": [layout.SEALED], **values}, seal.mac)


_RARE = ("locked", "autostart", "origin")  # members that are not written if they are None


class Head(NamedTuple):
    """The members that are needed of every point, even if its manifest is not decoded."""

    point: str
    sequence: int
    uuid: str


def head(data: bytes, point: str, seal: Seal = PLAIN) -> Optional[Head]:
    """Return the Head of a point's manifest, if that is intact and has the form that `encode` writes. seal: of the
    store.

    Takes a fourth of the time of `decode`. None: use `decode`.
    """
    requires = f'[\n  "{layout.SEALED}"\n ]' if seal.id is not None else "[]"
    begin = f'{{\n "format": "{layout.FORMAT}",\n "requires": {requires},\n "point": "{point}",\n'
    match = _HEAD.match(data, len(begin)) if data.startswith(begin.encode()) else None
    if match is None or not layout.is_intact(data) or (seal.id is not None and not layout.has_mac(data, seal.mac)):
        return None
    return Head(point, int(match[1]), match[2].decode())


_HEAD = re.compile(rb' "sequence": (\d{1,19}),\n(?:.*\n)*? "uuid": "([\w-]*)",\n', re.ASCII)  # a line a member


def seeming_sequence(data: bytes) -> int:
    """Return the sequence in data that `decode` refuses, 0 if there is none. It is not reliable."""
    found = re.search(rb'"sequence": (\d{1,12}),', data)
    return int(found[1]) if found else 0


def decode(data: bytes, what: str, seal: Seal = PLAIN) -> Manifest:
    """Return the Manifest in `data`. seal: of the store.

    Damaged or FormatTooNew if a reader must refuse it, Foreign if it is sound but belongs to another store.
    """
    document = layout.unseal(data, what)
    flaw = _seal_flaw(layout.SEALED in document.get("requires", []), data, seal)
    if flaw:
        raise errors.Foreign(f"{what}: {flaw}")
    try:
        manifest = members.build(Manifest, document)
        flaw = _flaw(manifest)
    except ValueError as error:
        flaw = str(error)
    if flaw:
        raise errors.Damaged(f"{what}: not a manifest of {layout.FORMAT} ({flaw})")
    return manifest


def _seal_flaw(is_sealed: bool, data: bytes, seal: Seal) -> Optional[str]:
    if is_sealed and seal.id is None:
        return f"made in a sealed store, but {layout.MARKER} says that this one is not; restore that file from a copy"
    if seal.id is not None and not (is_sealed and layout.has_mac(data, seal.mac)):
        return "not made with the key of this store: it was changed by somebody without the key, or made elsewhere"
    return None


def _flaw(manifest: Manifest) -> Optional[str]:
    """Say why a reader must refuse the manifest, or None."""
    for point in [manifest.point, *([manifest.parent.point] if manifest.parent else [])]:
        if not layout.POINT_ID.match(point):
            return f"point id {members.short(point)}"
    if not layout.is_time(manifest.created):
        return f"created is {members.short(manifest.created)}"
    if manifest.as_of is not None and not layout.is_time(manifest.as_of):
        return f"as_of is {members.short(manifest.as_of)}"
    if not manifest.disks:
        return "no disk"
    if len({layout.encoded(disk.name).lower() for disk in manifest.disks}) != len(manifest.disks):
        return "a disk twice"
    digests = [entry.sha256 for entry in manifest.all_files()]
    digests += [manifest.parent.sha256] if manifest.parent else []
    if not all(map(layout.SHA256.match, [*digests, *([] if manifest.origin is None else [manifest.origin])])):
        return "a file without digest"
    flaws = [_disk_flaw(manifest, disk) for disk in manifest.disks] + [_files_flaw(manifest)]
    return next(filter(None, flaws), None)


def _disk_flaw(manifest: Manifest, disk: DiskEntry) -> Optional[str]:
    if disk.mode not in (FULL, INCREMENTAL):
        return f"mode {members.short(disk.mode)}"
    if not 0 < len(layout.encoded(disk.name)) <= layout.MAX_DISK_NAME:
        return f"disk name {members.short(disk.name)}"
    if disk.size > layout.MAX_DISK:
        return f"size of a disk is {disk.size}"
    if disk.directory.path != f"{manifest.point}/{layout.directory_name(disk.name)}":
        return f"directory path {members.short(disk.directory.path)}"
    if disk.mode == FULL and not disk.whole:
        return "a disk that was read in full, and is not whole"
    return None


def _files_flaw(manifest: Manifest) -> Optional[str]:
    names = [match and match["name"] for match in (layout.FILE_PATH.match(entry.path) for entry in manifest.files)]
    strange = [entry.path for entry, name in zip(manifest.files, names) if name is None]
    if strange:
        return f"file path {members.short(strange[0])}"
    if any(entry.size > layout.MAX_FILE for entry in manifest.files):
        return "a file that is too large"
    return "a file twice" if len(set(names)) != len(names) else None
