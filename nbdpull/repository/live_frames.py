"""Which frames of chunk files the points of a series show, and so which files are mostly dead.

Only files of which the directories let it be thought are looked at: what a single directory needs of a file lives. For
those the windows are made up, each distinct stack of pages once. What cannot be read of a point that was removed keeps
nothing, and takes nothing from what can be.

Must not know: what becomes of a file, which points are to go.
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

FRAME_COST = 100  # bytes that a frame costs beside itself: its record, its line in the seek table, its move
FILE_COST = 1000  # the same of a file

Borne = tuple[type[errors.Damaged], ...]  # what is no error where a point is read that was removed


@dataclass(eq=False)
class Named:
    """A chunk file as directories name it. is_there: it was not moved, or it is there all the same; table: by which it
    was. frames: a record of each frame that lives, by position; places: where each is now."""

    entry: FileEntry
    is_there: bool
    table: Optional[Table]
    live: int = 0  # at the least, in bytes
    frames: Records = field(default_factory=lambda: numpy.empty(0, layout.RECORD))
    places: list[Place] = field(default_factory=list)

    def settle(self) -> bool:
        """Find the places; whether all are known. A table that does not tell of all counts for nothing where the file
        is there."""
        found = self._moved()
        if found is None and self.is_there:
            self.table = None
            found = [moved.Place(self.entry.path, position) for position in self.frames["position"].tolist()]
        self.places = found or []
        return found is not None

    def move(self, table: Table) -> None:
        """That is its table from now on: what is made later of the same run starts from it."""
        self.table = table
        self.settle()

    def _moved(self) -> Optional[list[Place]]:
        """Where the table leads to; None where it does not tell of all."""
        if self.table is None:
            return None
        found = [self.table.place(*each) for each in self.frames[["position", "stored"]].tolist()]
        return None if None in found else [each for each in found if each]


@dataclass(eq=False)
class Old:
    """A file of the store that may be emptied: one of `holders` itself, or one that they were moved to. alive: bytes of
    its frames that live, count: how many."""

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
        """Whether it only has to go, as all that lives was moved before."""
        return any(each.entry.path == self.path and each.table for each in self.holders)

    def is_of(self, holder: Named) -> bool:
        """Whether it is that file, or its table leads to it."""
        return holder.entry.path == self.path or holder.table is not None

    @property
    def gain(self) -> int:
        """Bytes that are free once it was repacked, at the least."""
        return self.size if self.is_done else self.size - self.alive - FRAME_COST * self.count - FILE_COST


class Disk(NamedTuple):
    """olds: files of which a smaller share than is wanted lives, and whose repack gains anything, the least alive
    first; problem: why nobody can tell, "" if there is none."""

    name: str
    olds: Sequence[Old] = ()
    problem: str = ""


def emptied(
    series: Series, points: Iterable[Point], staying: Collection[str], among: Collection[str], check: Check
) -> Iterator[str]:
    """Yield those files, among some that have a moved table beside them, of which all that points show is where the
    table leads, whole. points, staying: as of `mostly_dead`; Damaged where a directory of one that stays cannot be
    read."""
    for directories in _by_disk(series, points, staying, check).values() if among else ():
        entries = {each.path: each for found in directories for each in found.files if each.path in among}
        with suppress(errors.Damaged):
            tables = filter(None, (moved.read(series.store, series.folder, each) for each in entries.values()))
            sound = [table for table in tables if _is_sound(series, table, check)]
            yield from _led(directories, sound, check)


def led(series: Series, point: Point, tables: Sequence[Table], check: Check) -> set[str]:
    """Paths of the files, among those that some tables stand for, of which the tables lead to all that a point shows.
    Damaged, KeyNeeded where that cannot be told."""
    directories: dict[Directory, Borne] = {series.directory(point, disk, partial=True): () for disk in point.disks}
    return _led(directories, tables, check)


def _led(directories: dict[Directory, Borne], tables: Iterable[Table], check: Check) -> set[str]:
    holders = [Named(table.old, False, table) for table in tables]
    _find_frames(holders, directories, check)
    return {holder.entry.path for holder in holders if holder.settle()}


def mostly_dead(
    series: Series, points: Iterable[Point], staying: Collection[str], below: float, check: Check
) -> Iterator[Disk]:
    """Yield each. points: whose frames live; staying: ids of those that are committed, whose files are left alone.
    Damaged where a directory cannot be read."""
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
    """Without locks, files are moved once, as nobody could replace a table that another run reads meanwhile."""
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
    """Whether the new files are what was stored. Where one is not, somebody may have brought the old file back."""
    return not any(series.own_flaw(each, check) for each in table.files)


def _olds(named: Sequence[Named], staying: Collection[str]) -> list[Old]:
    """Every file of the store that is in no directory that stays. Where a file is lost with its table, nobody knows
    which of the frames that were moved are its own: they stay as they are."""
    is_lost = any(not each.is_there and each.table is None for each in named)
    found: dict[str, Old] = {}
    for each in named:
        made = each.table.files if each.table and not is_lost else []
        entries = [*([each.entry] if each.is_there else []), *made]
        for entry in entries:
            if entry.path.partition("/")[0] not in staying and entry.size:
                found.setdefault(entry.path, Old(entry.path, entry.size, [])).holders.append(each)
    return list(found.values())


def _least(old: Old) -> int:
    """How much of it lives at the least."""
    return sum(_least_of(holder, old.path) for holder in old.holders)


def _least_of(holder: Named, path: str) -> int:
    if holder.table is None:
        return holder.live
    if holder.is_there:  # nobody knows in which of both
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
    """Yield what a window shows of some files, unless another directory had the same stack of pages."""
    about = start, min(start + layout.WINDOW, directory.size), directory.refs(start)["digest"].tobytes()
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
    """A record of each frame of one file, by position."""
    found: Records = data[numpy.unique(data["position"], return_index=True)[1]]
    return found
