"""Rebuild: make a lost index or directory again, from the records at the end of the chunk files and the point below.

Owns: finding both, and the proof that the result is exactly what the manifest names. Must not know: frames, libvirt,
what is printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Optional, cast

from ..core import errors
from ..core.errors import Check, Report
from ..crypto.seal import Seal
from ..format import layout, reader
from ..format.directory import Directory
from ..format.index_writer import Disk, IndexWriter
from ..format.manifest import DiskEntry, FileEntry
from ..format.sound_part import SoundPart
from ..repository import immutable
from ..repository.series import Point, Series
from ..storage.base import Store
from . import store_choice
from .options.points import IndexOptions as Options


@dataclass(frozen=True)
class Result:
    """What was rebuilt. paths: of the files that were made again; warnings: of those that are not locked."""

    domain: str
    point: str
    disk: str
    paths: list[str]
    warnings: list[str]


def rebuild(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make the index of a disk of a point again, and its directory. OutputExists if both exist."""
    target, point = store_choice.find_point(options.store, options.point, options.domain, options.identities)
    made = _rebuilt(target, point, options.disk, check)
    paths = [path[len(target.folder) + 1 :] for path in made]
    warnings = [text for path in paths for text in immutable.keep_promises(target, path)]
    return Result(target.domain, point.id, options.disk, [*map(target.store.path, made)], warnings)


class _Way(NamedTuple):
    """How the files of a disk may have been made. beside: see index_writer.Disk; kept: those that existed before, so
    that they are named, and no more is known of them; new: chunk files, with the records that the index is made of."""

    beside: Optional[str]
    kept: list[FileEntry]
    new: list[FileEntry]


def _rebuilt(target: Series, point: Point, name: str, check: Check) -> list[str]:
    """Make the lost files again; return their paths."""
    disk = point.disk(name)
    paths = [f"{target.folder}/{path}" for path in [disk.directory.path, *_indexes(target, point, disk)]]
    if all(target.store.size(path) is not None for path in paths):
        raise errors.OutputExists(f"{' and '.join(map(target.store.path, paths))} exist: move away what is damaged")
    made = _fitting(target, point, disk, check)
    immutable.begin(target.store)
    lost = [path for path in reversed([*made]) if target.store.size(path) is None]  # the directory first
    if not lost:
        which = (
            "exist: move away what is damaged" if len(made) > 1 else "exists, and nothing changed: there is no index"
        )
        raise errors.OutputExists(f"{' and '.join(map(target.store.path, sorted(made)))} {which}")
    for path in lost:
        target.store.publish(path, made[path], target.store.protection)
    return lost


def _indexes(target: Series, point: Point, disk: DiskEntry) -> list[str]:
    """Return the paths of the indexes that the point may have made."""
    found: list[str] = []
    if point.manifest.origin:  # a copy may have made it in a folder beside the point's, which has no manifest
        with suppress(errors.Damaged):
            named = target.directory(point, disk.name, partial=True).indexes
            found = [each.path for each in named if _is_beside(target, each.folder)]
    return found or [f"{point.id}/{layout.index_name(disk.name)}"]


def _is_beside(target: Series, name: str) -> bool:
    """Return whether a folder may be one that a copy made beside that of its point (resealed_point.py)."""
    return bool(layout.POINT_ID.match(name)) and not target.has_point(name)


def _fitting(target: Series, point: Point, disk: DiskEntry, check: Check) -> dict[str, bytes]:
    """Return {path: bytes} of the files that match the manifest; Damaged if none can be made that do."""
    ways = _ways(target, point, disk, check)
    problems: list[Optional[errors.NbdpullError]] = []
    for below in _belows(target, point, disk, check):
        flaws: list[Optional[errors.NbdpullError]] = []
        for way in ways:
            check()
            try:
                made = _made(target, point, disk, below, way)
            except errors.StoreError:
                raise
            except errors.Failure as error:  # a page is lost, or the records were not laid over this one
                flaws.append(error)
                continue
            flaws.append(None)
            directory = made.get(f"{target.folder}/{disk.directory.path}", b"")
            if hashlib.sha256(directory).hexdigest() == disk.directory.sha256:
                return made
        problems.append(None if None in flaws else flaws[0])
    lost = _lost_base(target, point)
    if lost:
        raise lost
    raise problems[0] or errors.Damaged(
        f"{target.store.path(target.folder, disk.directory.path)}: the records of the chunk files do not make the "
        "directory that the manifest names; either some of its chunk files are those of another point, or an index of "
        "the point below was damaged then and is not now, or this zstd compresses differently from the one that made "
        "it: try on the machine that made the point"
    )


def _ways(target: Series, point: Point, disk: DiskEntry, check: Check) -> list[_Way]:
    """Return the ways in which the files may have been made, the likeliest first.

    A copy under another seal continues with the files that a killed copy left, and records in its own files whatever is
    still visible of them. If other points need the files of the folder, it makes its own in a folder beside.
    """
    known: dict[str, FileEntry] = {}
    with suppress(errors.Damaged):
        known = {entry.path: entry for entry in target.directory(point, disk.name, partial=True).files}
    own = _chunks(target, point.id, disk, known, check)
    if not point.manifest.origin:
        return [_Way(None, [], own)]
    return [
        *(_Way(None, own[:count], own[count:]) for count in range(len(own) + 1)),
        *_ways_beside(target, point, disk, known, check),
    ]


def _ways_beside(
    target: Series, point: Point, disk: DiskEntry, known: Mapping[str, FileEntry], check: Check
) -> Iterator[_Way]:
    """Yield the ways with new files in another folder. If the directory is lost, it may be any without a point, and
    most have nothing to do with this one: so a file there that cannot be read is no error."""
    kept = [known[path] for path in sorted(known) if path.startswith(f"{point.id}/")]
    with suppress(errors.Damaged):
        kept = kept or _disk_files(target, point.id, disk, known, check)
    folders = dict.fromkeys(path.partition("/")[0] for path in known) if known else target.store.folders(target.folder)
    for name in filter(partial(_is_beside, target), folders):
        with suppress(errors.Damaged):
            if found := _disk_files(target, name, disk, known, check):
                yield _Way(name, kept, list(filter(_is_chunk, found)))


def _is_chunk(entry: FileEntry) -> bool:
    return bool(layout.CHUNK_PATH.match(entry.path))


def _belows(target: Series, point: Point, disk: DiskEntry, check: Check) -> Iterator[Optional[Directory]]:
    """Yield the directories, or None for none, that the records may have been laid over, the likeliest first.

    For a disk that was read in full, nothing states whether its records were laid over anything. If indexes of the base
    were damaged then, this shows only in the damage, or in that the directory no longer names them. A copy under
    another seal may have been laid over another point, or none, if the store did not have the one that it names.
    """
    lost = _lost_base(target, point)
    if lost and not point.manifest.origin:
        raise lost
    yield from _over(target, point, disk, target.parent(point), check)
    for other in _others(target, point) if point.manifest.origin else ():
        with suppress(errors.Damaged):
            yield from filter(None, _over(target, point, disk, other, check))  # None was among the first


def _others(target: Series, point: Point) -> list[Point]:
    """Return the points that it does not name as its parent, earlier ones first, then by distance."""
    named = point.manifest.parent.point if point.manifest.parent else None
    others = [each for each in target.load()[0] if each.id not in (point.id, named)]
    number = point.manifest.sequence
    return sorted(others, key=lambda each: (each.manifest.sequence > number, abs(each.manifest.sequence - number)))


def _over(
    target: Series, point: Point, disk: DiskEntry, parent: Optional[Point], check: Check
) -> Iterator[Optional[Directory]]:
    entry = parent.manifest.disk(disk.name) if parent else None
    if parent is None or entry is None:
        yield None
        return
    base = target.directory(parent, disk.name, partial=True)
    yield base
    yield None
    flawed = {each.path for each in base.indexes if target.own_flaw(each, check)}
    named = flawed
    with suppress(errors.Damaged):
        found = target.directory(point, disk.name, partial=True)
        named = {each.path for each in base.indexes} - {each.path for each in found.files}
    for bad in (flawed, named):
        if bad:
            yield SoundPart(target.store, target.folder, entry, bad, check)


def _lost_base(target: Series, point: Point) -> Optional[errors.Damaged]:
    """Return the Damaged for a parent that no longer exists, None if the parent exists or there is none."""
    if point.manifest.parent is None or target.parent(point) is not None:
        return None
    return errors.Damaged(
        f"point {point.id} was laid over {point.manifest.parent.point}, which the store does not have: an index cannot "
        "be rebuilt without it"
    )


def _made(target: Series, point: Point, disk: DiskEntry, base: Optional[Directory], way: _Way) -> dict[str, bytes]:
    """Return {path: bytes} of the files that the records of the chunk files make over a base."""
    memory = _Memory(target.store.seal)
    about = Disk(target.folder, point.id, disk.name, disk.size, disk.whole, way.beside)
    again = IndexWriter(cast(Store, memory), about, base)
    chunks = [*way.kept, *way.new]
    known = {entry.path for entry in [*(base.files if base else []), *chunks]}
    for entry in way.kept:
        again.number(entry.path)
    for entry in way.new:
        page = reader.chunk_records(target.store, f"{target.folder}/{entry.path}", entry.size, disk.name)
        if not known.issuperset(page.names):
            raise errors.Damaged(f"{target.store.path(target.folder, entry.path)}: it refers to files of another point")
        again.add_chunk(entry.path, page)
    again.close({entry.path: entry for entry in chunks})
    return {file.path: bytes(file.data) for file in memory.files}


def _chunks(
    target: Series, folder: str, disk: DiskEntry, known: Mapping[str, FileEntry], check: Check
) -> list[FileEntry]:
    """Return the FileEntry of each chunk file that the point's pull made: from the directory, or, if that is lost, from
    the file as it is now. known: the files that the directory names, by path."""
    found: list[FileEntry] = []
    names = set(target.store.files(f"{target.folder}/{folder}"))
    while (name := layout.chunk_name(disk.name, len(found))) in names:
        path = f"{folder}/{name}"
        found.append(known.get(path) or target.as_it_is(path, check))
    if name + layout.MOVED in names:
        raise errors.Damaged(
            f"{target.store.path(target.folder, folder, name)} was repacked: its records, which an index is rebuilt "
            "from, are gone"
        )
    return found


def _disk_files(
    target: Series, folder: str, disk: DiskEntry, known: Mapping[str, FileEntry], check: Check
) -> list[FileEntry]:
    """Return what `_chunks` does, of all chunk files and the index in a folder, whatever their numbers, by path."""
    paths = [f"{folder}/{name}" for name in target.store.files(f"{target.folder}/{folder}")]
    matches = [match for path in sorted(paths) if (match := layout.DISK_PATH.match(path))]
    mine = [match[0] for match in matches if match["disk"] == layout.encoded(disk.name)]
    return [known.get(path) or target.as_it_is(path, check) for path in mine]


class _Memory:
    """The part of a Store that an IndexWriter needs, in memory."""

    def __init__(self, seal: Seal) -> None:
        self.seal = seal
        self.files: list[_File] = []

    def create(self, path: str) -> _File:
        self.files.append(_File(path))
        return self.files[-1]


class _File:
    """The part of a storage.base.Writer that an IndexWriter needs."""

    def __init__(self, path: str) -> None:
        self.path, self.data = path, bytearray()

    @property
    def size(self) -> int:
        return len(self.data)

    def write(self, data: bytes) -> None:
        self.data += data

    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def seal(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc: object) -> None: ...
