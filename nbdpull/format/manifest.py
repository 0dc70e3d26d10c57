"""What a committed point says of itself: manifest.json as typed values, and what of it a reader must refuse.

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
    """A file of the store: path relative to the series' folder, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DiskEntry:
    """One disk of a point. All sizes in bytes. mode: how it was read, FULL or INCREMENTAL; reason: why, a code word;
    whole: whether the point has all of the disk, not only what changed since a state that nobody stored."""

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
    levels: dict[str, int] = field(default_factory=dict)  # came later; {zstd's level: bytes compressed at it}


@dataclass(frozen=True)
class ParentEntry:
    point: str
    sha256: str


@dataclass(frozen=True)
class CheckpointEntry:
    """The checkpoint made with a point. automatic: named by nbdpull, so nbdpull may delete it when superseded."""

    name: str
    creation_time: int
    automatic: bool


@dataclass(frozen=True)
class LockedEntry:
    """How all that a point refers to, and the marker of the store, were locked when it was made. until: ISO 8601, when
    the first of these locks ends; mode: a word of LockMode; keys: names of key files that were locked, too."""

    until: str
    mode: str
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """One point. since: the checkpoint that the incremental disks start from, or None. created, as_of: ISO 8601, UTC,
    when it was finished, and the instant whose state it holds.

    sequence: higher than that of every point committed before it in the series; it alone tells which came later.
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
    consistency_reason: str = ""  # why it is not frozen; came after the first stores, so it may be missing
    as_of: Optional[str] = None  # likewise
    passwords: list[str] = field(default_factory=list)  # likewise; types of graphics that had one, which no file has
    locked: Optional[LockedEntry] = None  # likewise; where nothing is locked it is not written either
    origin: Optional[str] = None  # likewise; SHA-256 of its first manifest, where it was copied under another seal

    def disk(self, name: str) -> Optional[DiskEntry]:
        """The entry of that disk, or None."""
        return next((disk for disk in self.disks if disk.name == name), None)

    def all_files(self) -> list[FileEntry]:
        """Every file that the manifest names, as FileEntry. The directories of the disks name the others."""
        return [*self.files, *(disk.directory for disk in self.disks)]

    @property
    def partial(self) -> frozenset[str]:
        """Names of the disks of which no image can be made of the point alone."""
        return frozenset(disk.name for disk in self.disks if not disk.whole)


def encode(manifest: Manifest, seal: Seal = PLAIN) -> bytes:
    """The bytes of the file. seal: of the store."""
    told = {name: value for name, value in asdict(manifest).items() if name not in _RARE or value is not None}
    if seal.id is None:
        return layout.seal({"format": layout.FORMAT, "requires": [], **told})
    seal.require()
    return layout.seal_with_mac({"format": layout.FORMAT, "requires": [layout.SEALED], **told}, seal.mac)


_RARE = ("locked", "origin")  # members that are not written where they are None


class Head(NamedTuple):
    """What is to be known of points at which nobody looks."""

    point: str
    sequence: int
    uuid: str


def head(data: bytes, point: str, seal: Seal = PLAIN) -> Optional[Head]:
    """The Head of the manifest of a point, if that is intact and as `encode` writes it: told in a fourth of the time
    that `decode` takes. None where only that can tell. seal: of the store."""
    requires = f'[\n  "{layout.SEALED}"\n ]' if seal.id is not None else "[]"
    begin = f'{{\n "format": "{layout.FORMAT}",\n "requires": {requires},\n "point": "{point}",\n'
    match = _HEAD.match(data, len(begin)) if data.startswith(begin.encode()) else None
    if match is None or not layout.is_intact(data) or (seal.id is not None and not layout.has_mac(data, seal.mac)):
        return None
    return Head(point, int(match[1]), match[2].decode())


_HEAD = re.compile(rb' "sequence": (\d{1,19}),\n(?:.*\n)*? "uuid": "([\w-]*)",\n', re.ASCII)  # a line a member


def seeming_sequence(data: bytes) -> int:
    """What is told as that by data which `decode` refuses, and nobody can rely on; 0 where nothing is."""
    found = re.search(rb'"sequence": (\d{1,12}),', data)
    return int(found[1]) if found else 0


def decode(data: bytes, what: str, seal: Seal = PLAIN) -> Manifest:
    """Return the Manifest in `data`; Damaged or FormatTooNew where a reader must refuse it, Foreign where it is sound
    and not of this store. seal: of the store."""
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
        return f"of a sealed store, and {layout.MARKER} does not say that this one is; restore that file from a copy"
    if seal.id is not None and not (is_sealed and layout.has_mac(data, seal.mac)):
        return "not made with the key of this store: it was changed by somebody who has not the key, or made elsewhere"
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
