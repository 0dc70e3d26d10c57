"""What a committed point says of itself: manifest.json as typed values, and what of it a reader must refuse.

Owns: the manifest's members and their rules. Must not know: files and folders (series.py does), frames, libvirt.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field
from typing import Any, Optional

from . import errors, format

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
    """One disk of a point. All sizes in bytes; mode is FULL or INCREMENTAL, reason a code word that says why."""

    name: str
    size: int
    mode: str
    reason: str
    source: str
    index: FileEntry
    chunks: list[FileEntry]
    dirty_bytes: int
    zero_bytes: int
    read_bytes: int
    stored_bytes: int
    deduped_bytes: int = 0


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
class Manifest:
    """One point. since: the checkpoint that the incremental disks start from, or None. created: ISO 8601, UTC.

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
    versions: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    consistency_reason: str = ""  # why it is not frozen; came after the first stores, so it may be missing

    def disk(self, name):
        """The entry of that disk, or None."""
        return next((disk for disk in self.disks if disk.name == name), None)

    def all_files(self):
        """Every file of the point but the manifest, as FileEntry; chunk files of older points that it refers to too."""
        return [*self.files, *(entry for disk in self.disks for entry in [disk.index, *disk.chunks])]


def encode(manifest):
    return format.seal({"format": format.FORMAT, "requires": [], **asdict(manifest)})


def decode(data, what):
    """Return the Manifest in `data`; Damaged or FormatTooNew where a reader must refuse it."""
    document = format.unseal(data, what)
    try:
        manifest = _from_json(Manifest, document)
        flaw = _flaw(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        flaw = f"{type(error).__name__}: {error}"
    if flaw:
        raise errors.Damaged(f"{what}: not a manifest of {format.FORMAT} ({flaw})")
    return manifest


def _from_json(kind, document):
    """Build a dataclass from the members that it knows; others may be ignored, missing ones are KeyErrors."""
    members = kind.__dataclass_fields__
    values = {name: document[name] for name in members if name in document or members[name].default is MISSING}
    for name in values:
        _require_type(name, values[name], members[name].type)
    for name, inner in _NESTED.get(kind, {}).items():
        if isinstance(values[name], list):
            values[name] = [_from_json(inner, item) for item in values[name]]
        elif values[name] is not None:
            values[name] = _from_json(inner, values[name])
    return kind(**values)


def _require_type(name, value, annotation):
    """TypeError unless a JSON value is of the type that its member is annotated with."""
    optional = annotation.startswith("Optional[")
    plain = annotation[len("Optional[") : -1] if optional else annotation
    expected = _JSON_TYPES.get(plain.partition("[")[0], dict)
    if (optional and value is None) or (type(value) is expected and not (expected is int and value < 0)):
        return
    raise TypeError(f"{name} is {value!r}")


_JSON_TYPES = {"str": str, "int": int, "bool": bool, "list": list}  # all else, the nested dataclasses too, is an object

_NESTED = {
    Manifest: {"parent": ParentEntry, "checkpoint": CheckpointEntry, "disks": DiskEntry, "files": FileEntry},
    DiskEntry: {"index": FileEntry, "chunks": FileEntry},
}


def _flaw(manifest):
    """Say why a reader must refuse the manifest, or None."""
    for point in [manifest.point, *([manifest.parent.point] if manifest.parent else [])]:
        if not format.POINT_ID.match(point):
            return f"point id {point!r}"
    if len({disk.name for disk in manifest.disks}) != len(manifest.disks):
        return "a disk twice"
    flaws = [_disk_flaw(manifest, disk) for disk in manifest.disks] + [_files_flaw(manifest)]
    return next(filter(None, flaws), None)


def _disk_flaw(manifest, disk):
    if disk.mode not in (FULL, INCREMENTAL):
        return f"mode {disk.mode!r}"
    if disk.index.path != f"{manifest.point}/{format.index_name(disk.name)}":
        return f"index path {disk.index.path!r}"
    strange = [chunk.path for chunk in disk.chunks if not format.CHUNK_PATH.match(chunk.path)]
    return f"chunk path {strange[0]!r}" if strange else None


def _files_flaw(manifest):
    for entry in manifest.files:
        point, _, name = entry.path.partition("/")
        if not format.POINT_ID.match(point) or "/" in name or name in ("", ".", ".."):
            return f"file path {entry.path!r}"
    if any(len(entry.sha256) != 64 for entry in manifest.all_files()):
        return "a file without digest"
    return None
