"""A look at one point: whatever of its files, links, records and frames is not what was stored.

Owns: what is looked at of a point, and in which order; it goes on after a damage, so that all of them are told. Must
not know: which points are looked at and for how long, what follows of a damage (evidence.py and verdict.py do).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional, Union

import numpy

from ..core import errors, extents, pipeline
from ..core.errors import Check
from ..format import manifest, reader
from ..format.manifest import DiskEntry, FileEntry
from . import verdict
from .evidence import Damage, Look
from .part import Part
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.layout import Record, Records

BATCH_FRAMES = 64
BUDGET = 1 << 26  # bytes of decompressed frames under way
MAX_DAMAGES = 10_000  # of a disk of a point that are told


@dataclass(frozen=True)
class TooNew:
    """A point that a later nbdpull made, or that builds on one: it can be neither proved nor called damaged here."""

    point: str
    problem: str


class Seen(NamedTuple):
    """So much more of a point was looked at. raw_bytes: of the frames, decompressed."""

    point: str
    files: int = 0
    frames: int = 0
    raw_bytes: int = 0


Tell = Callable[[Union[Damage, TooNew, Seen]], None]


@dataclass(frozen=True)
class Depth:
    """How much is looked at. level: see verdict.py; check: called often, what it raises ends the look."""

    level: str
    part: Part
    threads: int
    check: Check


class _Enough(Exception):
    """Raised where one disk of a point has so many damages that nobody reads on."""


def refusal(point: str, error: errors.NbdpullError) -> Union[Damage, TooNew]:
    """Of a point that a reader must refuse whole, or what it builds on."""
    if isinstance(error, errors.FormatTooNew):
        return TooNew(point, str(error))
    return Damage(point, None, str(error))


class Inspector:
    """Looks at points of one Series. tell: called with all that is found, and with what was looked at meanwhile."""

    def __init__(self, target: Series, depth: Depth, tell: Tell) -> None:
        self._target, self._depth, self._tell = target, depth, tell
        self._known_good: set[tuple[str, str]] = set()  # (path, SHA-256): one that several points refer to is read once

    def inspect(self, look: Look) -> None:
        """Look at the point of a Look, which learns what is found."""
        self._files(look)
        self._links(look.point)
        look.complete = all([self._disk(look, disk) for disk in look.point.manifest.disks])

    def _files(self, look: Look) -> None:
        """Size and digest of every file."""
        point, depth = look.point, self._depth
        disks = {e.path: d.name for d in point.manifest.disks for e in [d.index, *d.chunks]}
        entries = [each for each in point.manifest.all_files() if (each.path, each.sha256) not in self._known_good]
        whole = self._read_whole(look, entries)

        def work(entry: FileEntry) -> Optional[str]:
            read = entry.path in whole
            return self._target.file_flaw(entry, depth.check) if read else self._target.size_flaw(entry)

        flaws = pipeline.ordered(work, entries, threads=depth.threads, budget=1, weight=lambda _: 0, check=depth.check)
        for entry, flaw in zip(entries, flaws):
            if flaw:
                self._tell(look.found(disks.get(entry.path), flaw, path=entry.path))
            elif entry.path in whole:
                self._known_good.add((entry.path, entry.sha256))
            self._tell(Seen(point.id, files=int(entry.path in whole)))

    def _read_whole(self, look: Look, entries: Iterable[FileEntry]) -> set[str]:
        """Paths of those of which the digest is looked at, too."""
        chunks = {chunk.path for disk in look.point.manifest.disks for chunk in disk.chunks}
        paths, part = {entry.path for entry in entries}, self._depth.part
        return {path for path in paths if path not in chunks or part.file(path) or look.is_wanted(path)}

    def _links(self, point: Point) -> None:
        try:
            self._target.parent(point)
            for disk in point.manifest.disks:
                with suppress(errors.NoFullPull):  # it is as it was stored
                    self._target.chain(point, disk.name)
        except (errors.Damaged, errors.FormatTooNew) as error:
            self._tell(refusal(point.id, error))

    def _disk(self, look: Look, disk: DiskEntry) -> bool:
        """Every record, and the frames to be looked at, of one disk; return whether it came to an end."""
        ranges = _Ranges(look, disk, self._tell)
        try:
            self._frames(look, disk, ranges)
        except errors.Damaged as error:
            self._tell(look.found(disk.name, error, path=disk.index.path))
        except _Enough:
            problem = f"more than {MAX_DAMAGES} damages: the rest of this disk is not checked"
            self._tell(look.found(disk.name, problem))
            return False
        return True

    def _frames(self, look: Look, disk: DiskEntry, ranges: _Ranges) -> None:
        with reader.FrameReader(self._target.store, self._target.folder, disk) as frames:

            def work(records: Records) -> tuple[Records, list[Optional[str]]]:
                return records, [_frame_flaw(frames, record) for record in records]

            for records, flaws in pipeline.ordered(
                work,
                self._chosen(look, disk, ranges),
                threads=self._depth.threads,
                budget=BUDGET,
                weight=lambda records: int(records["raw"].sum()),
                check=self._depth.check,
            ):
                for record, flaw in zip(records, flaws):
                    if flaw:
                        path = disk.chunks[int(record["chunk"])].path
                        ranges.damaged(flaw, int(record["offset"]), int(record["length"]), path)
                self._tell(Seen(look.point.id, frames=len(records), raw_bytes=int(records["raw"].sum())))

    def _chosen(self, look: Look, disk: DiskEntry, ranges: _Ranges) -> Iterator[Records]:
        """Yield in small parts the data records whose frames are looked at; all records are."""
        for batch in self._records(disk, ranges):
            self._depth.check()
            data = batch[batch["kind"] == extents.DATA]
            wanted = look.wanted(disk, data)
            if self._depth.level != verdict.FILES:
                wanted |= self._depth.part.frames(data)
            yield from _in_parts(data[wanted])

    def _records(self, disk: DiskEntry, ranges: _Ranges) -> Iterator[Records]:
        """Yield the records of a disk; a full one whose records leave out a range is damaged."""
        reached = 0
        for batch in reader.records(self._target.store, self._target.folder, disk):
            if disk.mode == manifest.FULL:
                ranges.left_out(extents.gaps(batch, reached, int(extents.ends(batch[-1:])[0])))
            reached = int(extents.ends(batch[-1:])[0])
            yield batch
        if disk.mode == manifest.FULL and reached < disk.size:
            ranges.left_out([(reached, disk.size - reached)])


class _Ranges:
    """The damaged ranges of a disk: told one by one, until there are too many."""

    def __init__(self, look: Look, disk: DiskEntry, tell: Tell) -> None:
        self._look, self._disk, self._tell = look, disk, tell
        self._left = MAX_DAMAGES

    def damaged(self, problem: str, offset: int, length: int, path: str) -> None:
        self._tell(self._look.found(self._disk.name, problem, offset, length, path))
        self._left -= 1
        if self._left <= 0:
            raise _Enough

    def left_out(self, gaps: Iterable[tuple[int, int]]) -> None:
        for offset, length in gaps:
            self.damaged("the index leaves out a range of a full disk", offset, length, self._disk.index.path)


def _in_parts(records: Records) -> list[Records]:
    return numpy.array_split(records, -(-len(records) // BATCH_FRAMES)) if len(records) else []


def _frame_flaw(frames: reader.FrameReader, record: Record) -> Optional[str]:
    try:
        frames.read(record)
    except errors.Damaged as error:
        return str(error)
    return None
