"""The frames of chunk files that the points of a series show, and so the files that are mostly dead.

Only files that may be mostly dead according to the directories are examined: whatever a single directory needs of a
file is live. For these files the windows are computed, each distinct stack of pages once. Unreadable parts of a removed
point keep nothing alive, and do not affect the parts that can be read.

Must not know: what is done with a file, or which points are removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy

from ..core import errors
from ..core.errors import Check
from ..format import layout, moved, stack
from ..format.directory import NOWHERE, Directory
from ..format.manifest import FileEntry
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.layout import Records
    from ..format.moved import Place, Table

FRAME_COST = 100  # bytes of overhead for each frame: its record, its entry in the seek table, its move
FILE_COST = 1000  # bytes of overhead for each file

Borne = tuple[type[errors.Damaged], ...]  # ignored when a directory is read: nothing, or Damaged for a removed point


@dataclass(eq=False)
class Named:
    """A chunk file that directories name.

    is_there: whether the file exists, although it may have been moved; table: the table of its move, None if it has
    none; frames: a record of each live frame, by position; places: where each of these frames is now.
    """

    entry: FileEntry
    is_there: bool
    table: Optional[Table]
    live: int = 0  # a lower bound, in bytes
    frames: Records = field(default_factory=lambda: numpy.empty(0, layout.RECORD))
    places: list[Place] = field(default_factory=list)

    def settle(self) -> bool:
        """Find the places; return whether all are known. A table that does not list all frames is ignored if the file
        exists."""
        found = self._moved()
        if found is None and self.is_there:
            self.table = None
            found = [moved.Place(self.entry.path, position) for position in self.frames["position"].tolist()]
        self.places = found or []
        return found is not None

    def move(self, table: Table) -> None:
        """Use this table from now on: what the same run makes later starts from it."""
        self.table = table
        self.settle()

    def _moved(self) -> Optional[list[Place]]:
        """Return the places to which the table leads; None if there is no table or it does not list all frames."""
        if self.table is None:
            return None
        found = [self.table.place(*each) for each in self.frames[["position", "stored"]].tolist()]
        return None if None in found else [each for each in found if each]


@dataclass(eq=False)
class Old:
    """A file of the store that may be emptied: one of `holders` itself, or one to which their frames were moved.

    alive: bytes of its live frames; count: number of these frames.
    """

    path: str
    size: int
    holders: list[Named]
    alive: int = 0
    count: int = 0

    @property
    def share(self) -> float:
        return self.alive / self.size

    @property
    def is_done(self) -> bool:
        """Whether the file only has to be removed, because all live frames were moved before."""
        return any(each.entry.path == self.path and each.table for each in self.holders)

    def is_of(self, holder: Named) -> bool:
        """Return whether the holder is this file, or has a table, which then leads to this file."""
        return holder.entry.path == self.path or holder.table is not None

    @property
    def gain(self) -> int:
        """The bytes that a repack of the file frees, at least."""
        return self.size if self.is_done else self.size - self.alive - FRAME_COST * self.count - FILE_COST


class Disk(NamedTuple):
    """olds: files whose live share is below the limit and whose repack frees space, the smallest share first; problem:
    why this is unknown, "" if there is no problem."""

    name: str
    olds: Sequence[Old] = ()
    problem: str = ""


def emptied(
    series: Series, points: Iterable[Point], staying: Collection[str], among: Collection[str], check: Check
) -> Iterator[str]:
    """Yield the paths of the files whose moved table leads to intact copies of all frames that points show.

    among: paths of files with a moved table beside them; points, staying: as for `mostly_dead`. Damaged if a directory
    of a point in `staying` cannot be read.
    """
    for directories in _by_disk(series, points, staying, check).values():
        entries = {each.path: each for found in directories for each in found.files if each.path in among}
        with suppress(errors.Damaged):
            found = (moved.read(series.store, series.folder, each) for each in entries.values())
            tables = {table.old.path: table for table in found if table}
            for path in sorted(_led(directories, tables.values(), check)):
                if _is_sound(series, tables[path], check):  # reads all of the new files
                    yield path


def led(series: Series, point: Point, tables: Sequence[Table], check: Check) -> set[str]:
    """Return the paths of the files for which one of the tables leads to all frames that a point shows. Damaged or
    KeyNeeded if that cannot be determined."""
    directories: dict[Directory, Borne] = {series.directory(point, disk, partial=True): () for disk in point.disks}
    return _led(directories, tables, check)


def _led(directories: dict[Directory, Borne], tables: Iterable[Table], check: Check) -> set[str]:
    holders = [Named(table.old, False, table) for table in tables]
    _find_frames(holders, directories, check)
    return {holder.entry.path for holder in holders if holder.settle()}


def mostly_dead(
    series: Series, points: Iterable[Point], staying: Collection[str], below: float, check: Check
) -> Iterator[Disk]:
    """Yield each disk with its mostly dead files.

    points: those whose frames are live; staying: ids of the committed ones, whose files are not touched; below: the
    limit of the live share. Damaged if a directory of a point in `staying` cannot be read.
    """
    for disk, directories in _by_disk(series, points, staying, check).items():
        try:
            yield Disk(disk, _of_disk(series, directories, staying, below, check))
        except errors.Damaged as error:
            yield Disk(disk, problem=f"disk {disk}: {error}")


def _of_disk(
    series: Series, directories: dict[Directory, Borne], staying: Collection[str], below: float, check: Check
) -> list[Old]:
    named = _named(series, directories, check)
    possible = [old for old in _olds(named, staying) if _least(old) < below * old.size]
    holders = list(dict.fromkeys(holder for old in possible for holder in old.holders))
    _find_frames(holders, directories, check)
    unknown = {holder for holder in holders if not holder.settle()}
    found = [old for old in possible if unknown.isdisjoint(old.holders) and all(map(old.is_of, old.holders))]
    for old in found:
        sizes = [
            stored
            for holder in old.holders
            for place, stored in zip(holder.places, holder.frames["stored"].tolist())
            if place.path == old.path
        ]
        old.alive, old.count = sum(sizes), len(sizes)
    worth = (old for old in found if old.alive < below * old.size and old.gain > 0)
    return sorted(worth, key=lambda old: old.share)


def _by_disk(
    series: Series, points: Iterable[Point], staying: Collection[str], check: Check
) -> dict[str, dict[Directory, Borne]]:
    found: dict[str, dict[Directory, Borne]] = {}
    for point in points:
        check()
        borne = () if point.id in staying else (errors.Damaged,)
        for disk in point.disks:
            with suppress(*borne):
                directory = series.directory(point, disk, partial=True)
                found.setdefault(disk, {})[directory] = borne
    return found


def _named(series: Series, directories: dict[Directory, Borne], check: Check) -> list[Named]:
    found: dict[str, Named] = {}
    for directory, borne in directories.items():
        for entry, live in zip(directory.files, directory.live.tolist()):
            if layout.CHUNK_PATH.match(entry.path) and _may_move(series, entry):
                with suppress(*borne):
                    each = found.get(entry.path) or found.setdefault(entry.path, _as_it_is(series, entry, check))
                    each.live = max(each.live, live)
    return list(found.values())


def _may_move(series: Series, entry: FileEntry) -> bool:
    """Return whether the file may be moved. Without locks a file is moved only once, because a table cannot be replaced
    while another run may be reading it."""
    folder = series.folder
    return series.store.has_locks or (
        series.store.size(f"{folder}/{entry.path}") is not None
        and series.store.size(f"{folder}/{moved.path_of(entry.path)}") is None
    )


def _as_it_is(series: Series, entry: FileEntry, check: Check) -> Named:
    is_there = series.store.size(f"{series.folder}/{entry.path}") is not None
    with suppress(*([errors.Damaged] if is_there else [])):
        table = moved.read(series.store, series.folder, entry)
        if table is None or not is_there or _is_sound(series, table, check):
            return Named(entry, is_there, table)
    return Named(entry, is_there, None)


def _is_sound(series: Series, table: Table, check: Check) -> bool:
    """Return whether the new files are intact. If one is not, somebody may have restored the old file."""
    return not any(series.own_flaw(each, check) for each in table.files)


def _olds(named: Sequence[Named], staying: Collection[str]) -> list[Old]:
    """Return every file of the store that is in no directory of a point in `staying`. If a file is lost together with
    its table, which of the moved frames belong to it is unknown: then all files of moved frames are left out."""
    is_lost = any(not each.is_there and each.table is None for each in named)
    found: dict[str, Old] = {}
    for each in named:
        made = each.table.files if each.table and not is_lost else []
        entries = [*([each.entry] if each.is_there else []), *made]
        for entry in entries:
            if entry.folder not in staying and entry.size:
                found.setdefault(entry.path, Old(entry.path, entry.size, [])).holders.append(each)
    return list(found.values())


def _least(old: Old) -> int:
    """Return a lower bound of the live bytes of the file."""
    return sum(_least_of(holder, old.path) for holder in old.holders)


def _least_of(holder: Named, path: str) -> int:
    if holder.table is None:
        return holder.live
    if holder.is_there:  # the live frames may be in either of the two files
        return 0
    elsewhere = sum(holder.table.bytes_in(each.path) for each in holder.table.files if each.path != path)
    return max(0, holder.live - elsewhere)


def _find_frames(holders: Sequence[Named], directories: dict[Directory, Borne], check: Check) -> None:
    seen: set[tuple[int, int, bytes]] = set()
    for directory, borne in directories.items():
        numbers = {directory.number(each.entry.path): each for each in holders}
        numbers.pop(NOWHERE, None)
        if numbers:
            parts: list[Records] = []
            for start in directory.starts():
                with suppress(*borne):
                    parts += _data(directory, start, numbers, seen, check)
            for number, part in _by_chunk(parts):
                numbers[number].frames = _distinct(numpy.concatenate([numbers[number].frames, part]))


def _data(
    directory: Directory, start: int, numbers: Collection[int], seen: set[tuple[int, int, bytes]], check: Check
) -> Iterator[Records]:
    """Yield the records of some files that a window shows, unless another directory had the same stack of pages."""
    about = start, layout.window_stop(start, directory.size), directory.refs(start)["digest"].tobytes()
    if about not in seen:
        check()
        data = stack.data_of(directory.window(start).flat())
        seen.add(about)
        yield data[numpy.isin(data["chunk"], [*numbers])]


def _by_chunk(parts: Sequence[Records]) -> Iterator[tuple[int, Records]]:
    data = numpy.concatenate([numpy.empty(0, layout.RECORD), *parts])
    data = data[numpy.argsort(data["chunk"], kind="stable")]
    numbers, first = numpy.unique(data["chunk"], return_index=True)
    yield from zip(numbers.tolist(), numpy.split(data, first[1:]))


def _distinct(data: Records) -> Records:
    """Return one record for each frame of a file, by position."""
    found: Records = data[numpy.unique(data["position"], return_index=True)[1]]
    return found
