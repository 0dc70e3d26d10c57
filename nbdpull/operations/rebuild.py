"""Rebuild: make a lost index or directory again, from the records at the end of the chunk files and the point below.

Owns: finding both, and the proof that the result is exactly what the manifest names. Must not know: frames, libvirt,
what is printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Optional, cast

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
    """What was rebuilt. paths: of the files that were made again."""

    domain: str
    point: str
    disk: str
    paths: list[str]


def rebuild(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make the index of a disk of a point again, and its directory. OutputExists if both exist."""
    target, point = store_choice.find_point(options.store, options.point, options.domain, options.identities)
    return Result(target.domain, point.id, options.disk, _rebuilt(target, point, options.disk, check))


def _rebuilt(target: Series, point: Point, name: str, check: Check) -> list[str]:
    disk = point.disk(name)
    paths = [f"{target.folder}/{disk.directory.path}", f"{target.folder}/{point.id}/{layout.index_name(name)}"]
    lost = [path for path in paths if target.store.size(path) is None]
    if not lost:
        raise errors.OutputExists(f"{' and '.join(map(target.store.path, paths))} exist: move away what is damaged")
    made = _fitting(target, point, disk, check)
    immutable.begin(target.store)
    lost = [path for path in lost if path in made]
    if not lost:
        raise errors.OutputExists(f"{target.store.path(paths[0])} exists, and nothing changed: there is no index")
    for path in lost:
        target.store.publish(path, made[path], target.store.protection)
    return [target.store.path(path) for path in lost]


def _fitting(target: Series, point: Point, disk: DiskEntry, check: Check) -> dict[str, bytes]:
    """Return {path: bytes} of the files that match the manifest; Damaged if none can be made that do."""
    chunks = _chunks(target, point, disk, check)
    problems: list[Optional[errors.NbdpullError]] = []
    for below in _belows(target, point, disk, check):
        flaws: list[Optional[errors.NbdpullError]] = []
        for left in _left(point, chunks):
            check()
            try:
                made = _made(target, point, disk, below, chunks, left)
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


def _left(point: Point, chunks: Sequence[FileEntry]) -> Iterable[int]:
    """Yield how many of the first chunk files may have existed before the others were made.

    A copy under another seal continues with the files that a killed copy left, and records in its own files whatever is
    still visible of them.
    """
    return range(len(chunks) + 1) if point.manifest.origin else (0,)


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


def _made(
    target: Series, point: Point, disk: DiskEntry, base: Optional[Directory], chunks: Sequence[FileEntry], left: int
) -> dict[str, bytes]:
    """Return {path: bytes} of the files that the records of the chunk files make over a base. left: see _left."""
    memory = _Memory(target.store.seal)
    about = Disk(target.folder, point.id, disk.name, disk.size, disk.whole)
    again = IndexWriter(cast(Store, memory), about, base)
    known = {entry.path for entry in [*(base.files if base else []), *chunks]}
    for entry in chunks[:left]:
        again.number(entry.path)
    for entry in chunks[left:]:
        page = reader.chunk_records(target.store, f"{target.folder}/{entry.path}", entry.size, disk.name)
        if not known.issuperset(page.names):
            raise errors.Damaged(f"{target.store.path(target.folder, entry.path)}: it refers to files of another point")
        again.add_chunk(entry.path, page)
    again.close({entry.path: entry for entry in chunks})
    return {file.path: bytes(file.data) for file in memory.files}


def _chunks(target: Series, point: Point, disk: DiskEntry, check: Check) -> list[FileEntry]:
    """Return the FileEntry of each chunk file that the point's pull made: from the directory, or, if that is lost, from
    the file as it is now."""
    known: dict[str, FileEntry] = {}
    with suppress(errors.Damaged):
        known = {entry.path: entry for entry in target.directory(point, disk.name, partial=True).files}
    found: list[FileEntry] = []
    names = set(target.store.files(f"{target.folder}/{point.id}"))
    while (name := layout.chunk_name(disk.name, len(found))) in names:
        path = f"{point.id}/{name}"
        found.append(known.get(path) or target.as_it_is(path, check))
    if name + layout.MOVED in names:
        raise errors.Damaged(
            f"{target.store.path(target.folder, point.id, name)} was repacked: its records, which an index is rebuilt "
            "from, are gone"
        )
    return found


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
