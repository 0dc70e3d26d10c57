"""Mostly dead chunk files of removed points: their live frames are moved together, and the files go.

A frame lives while a point shows it: a committed one, or one that was removed and can still be taken back. Files of
committed points are left alone: all that the pull of such a point stored shows in it, and `sha256sum -c` goes on to
hold.

The new file is durable before the tables that lead to it, these before the old files go; so what a killed run leaves is
whole, and the next run goes on: where a file is there beside its table, it only has to go.

Where no lock keeps others out, a table is made once and never replaced, so of two runs one moves a file, and what the
other one has made is a stray. The old file goes with a later sweep, which has seen the table there for a while, and
looks anew whether it leads to all. Files that frames were moved to stay as they are until no table leads to them.

Owns: the choice within a limit, and the order of steps. Who repacks holds the series. Must not know: the layout of
anything, which points are to go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Optional

import numpy

from ..core import errors
from ..core.errors import Check
from ..format import findings, layout, moved, pages, reader, writer
from ..format.manifest import FileEntry
from . import grace as graces
from . import half_points, immutable, live_frames
from .live_frames import Disk, Named, Old, mostly_dead
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.layout import Records

STEP = 64  # frames that are copied between two looks at whether to end


@dataclass(frozen=True)
class Wanted:
    """below: files of which a smaller share lives are repacked; limit: bytes that are written at most, None: any;
    chunk_size: bytes of a new file, about."""

    below: float
    limit: Optional[int] = None
    chunk_size: int = 256 << 20


@dataclass(frozen=True)
class Repacked:
    """In bytes. moved: of live frames, to new files; freed: of the old files, which are gone; waiting: of those, and of
    those that were moved before, that go with a later sweep; left: what more would be free, but for the limit, for
    locks or for the problems. skipped: why nothing was looked at, a word of core/choices; None: it was."""

    moved: int = 0
    freed: int = 0
    left: int = 0
    problems: tuple[str, ...] = ()
    skipped: Optional[str] = None
    waiting: int = 0


def would_repack(series: Series, gone: Collection[str], wanted: Wanted, check: Check = lambda: None) -> Repacked:
    """Only look, as if the points with these ids were removed, and all that can go had gone."""
    with series.store.looking(series.folder, anew=True):
        points = [point for point in series.points() if point.id not in gone]
        found = list(mostly_dead(series, points, {point.id for point in points}, wanted.below, check))
        pending = sum(_pending(series).values())
    chosen, rest = _chosen(series, found, wanted.limit)
    return _repacked(series, chosen, rest, _problems(found), pending)


def repack(series: Series, wanted: Wanted, check: Check = lambda: None) -> Repacked:
    """Empty what is worth it, the least alive first. A damaged frame keeps the file that it is in, a damaged index all
    of its disk, and where there is no room all ends: those are problems, not errors. Damaged where a directory cannot
    be read."""
    with series.store.looking(series.folder, anew=True):
        found = list(mostly_dead(series, *_shown(series), wanted.below, check)) if _may_move(series) else []
        pending = sum(_pending(series).values())
    chosen, rest = _chosen(series, found, wanted.limit)
    if chosen and not series.store.has_locks:  # points that are made until the old files go count on these locks
        immutable.begin(series.store, timedelta(seconds=2 * graces.of(series.store)))
    run = _Run(series, check, _problems(found))
    chunk_size = min(wanted.chunk_size, series.store.chunk_size or wanted.chunk_size)
    try:
        for disk in found:
            for batch in _batches(_without(disk.olds, rest), chunk_size):
                run.empty(disk.name, batch)
    except (errors.OutputError, errors.AccessDenied) as error:
        run.problems.append(f"{error}; the rest is not repacked")
    run.end()
    return _repacked(series, run.done, [*rest, *_without(chosen, run.done)], run.problems, pending)


def _repacked(
    series: Series, done: Sequence[Old], left: Sequence[Old], problems: Iterable[str], pending: int
) -> Repacked:
    """pending: bytes of files that were moved before."""
    size, has_locks = sum(old.size for old in done), series.store.has_locks
    return Repacked(
        _alive(done),
        size if has_locks else 0,
        _gain(left),
        tuple(problems),
        waiting=0 if has_locks else pending + size,
    )


def _shown(series: Series) -> tuple[list[Point], set[str]]:
    """(points whose frames live, ids of those that are there)."""
    committed = series.points()
    return [*committed, *half_points.removed_points(series).values()], {point.id for point in committed}


def _may_move(series: Series) -> bool:
    """Whether to look. Without locks all that a point stored lives until its time is over; and a file is moved once."""
    if series.store.has_locks:
        return True
    names = [name for name in half_points.removed(series) if not _is_late(series, name)]
    held = {f"{name}/{file}" for name in names for file in series.store.files(f"{series.folder}/{name}")}
    return any(layout.CHUNK_PATH.match(path) and moved.path_of(path) not in held for path in held)


def _pending(series: Series, least: float = 0.0) -> dict[str, int]:
    """{path: bytes} of files that were moved so many seconds ago, and are there yet, without locks."""
    found: dict[str, int] = {}
    store, folder = series.store, series.folder
    for name in () if store.has_locks else [*half_points.removed(series), *half_points.repacked(series)]:
        files = {*store.files(f"{folder}/{name}")}
        for file in sorted(files):
            table = f"{folder}/{moved.path_of(f'{name}/{file}')}"
            if file + layout.MOVED in files and store.seconds_since_change(table) >= least:
                found[f"{name}/{file}"] = store.size(f"{folder}/{name}/{file}") or 0
    return found


def emptied(series: Series, check: Check = lambda: None) -> list[str]:
    """Paths of files that were moved so long ago that they go, as their tables lead to all that points show: those of
    points that were removed, too, for as long as these may be read. What cannot be told of one disk keeps its files."""
    known = _pending(series, graces.of(series.store))
    found: list[str] = []
    with suppress(errors.Damaged, errors.KeyNeeded):
        points, staying = _shown(series) if known else ([], set())
        late = {name for name in half_points.removed(series) if known and _is_late(series, name)}
        found += live_frames.emptied(series, points, staying | late, known, check)
    return found


def _is_late(series: Series, name: str) -> bool:
    return half_points.seconds_removed(series, name) < graces.of(series.store)


def _chosen(series: Series, found: Iterable[Disk], limit: Optional[int]) -> tuple[list[Old], list[Old]]:
    """(those to be emptied, the rest). What a lock keeps would only take room twice."""
    olds = [old for disk in found for old in disk.olds]
    free = [old for old in olds if not _is_locked(series, old)] if olds and immutable.may_be(series.store) else olds
    chosen, rest = _within(free, limit)
    return chosen, [*rest, *_without(olds, free)]


def _is_locked(series: Series, old: Old) -> bool:
    try:
        until = series.store.protected_until(f"{series.folder}/{old.path}")
    except errors.AccessDenied:  # who may not ask leaves it as it is
        return True
    return until is not None and until > datetime.now(timezone.utc) + timedelta(seconds=graces.of(series.store))


def _problems(found: Iterable[Disk]) -> tuple[str, ...]:
    return tuple(disk.problem for disk in found if disk.problem)


def _within(olds: Sequence[Old], limit: Optional[int]) -> tuple[list[Old], list[Old]]:
    """(those to be emptied, the rest)."""
    chosen: list[Old] = []
    left = limit
    for old in sorted(olds, key=lambda old: old.share):
        if left is None or old.alive <= left:
            chosen.append(old)
            left = None if left is None else left - old.alive
    return chosen, _without(olds, chosen)


def _without(olds: Sequence[Old], others: Sequence[Old]) -> list[Old]:
    known = set(others)
    return [old for old in olds if old not in known]


def _batches(olds: Sequence[Old], chunk_size: int) -> Iterator[list[Old]]:
    """Of which each makes one new file."""
    batch: list[Old] = []
    for old in olds:
        if batch and (
            sum(each.alive for each in batch) + old.alive > chunk_size
            or sum(each.count for each in batch) + old.count > writer.MAX_CHUNK_RECORDS
        ):
            yield batch
            batch = []
        batch.append(old)
    if batch:
        yield batch


def _alive(olds: Sequence[Old]) -> int:
    return sum(old.alive for old in olds)


def _gain(olds: Sequence[Old]) -> int:
    return sum(old.gain for old in olds)


class _Bad(Exception):
    """A frame of an Old is damaged."""

    def __init__(self, old: Old, problem: str) -> None:
        super().__init__(problem)
        self.old = old


class _Run:
    """done: what was emptied, and is gone; problems: texts."""

    def __init__(self, series: Series, check: Check, problems: Iterable[str]) -> None:
        self.done: list[Old] = []
        self.problems = [*problems]
        self._series, self._store, self._check = series, series.store, check
        self._folder = ""  # of new files: its name
        self._files: dict[str, int] = {}  # of each disk there, how many

    def end(self) -> None:
        """Remove directories of moved frames in which there are none any more. Without locks another run may have made
        one just now."""
        for name in half_points.repacked(self._series) if self._store.has_locks else ():
            if self._store.names(f"{self._series.folder}/{name}") == [layout.REPACKED]:
                self._store.remove_folder(f"{self._series.folder}/{name}")

    def empty(self, disk: str, batch: list[Old]) -> None:
        """Move all that lives in some files of a disk to one new file. OutputError."""
        while batch:
            try:
                self._empty(disk, batch)
                return
            except _Bad as bad:
                self.problems.append(f"{bad}: the rest of the file is not moved")
                batch = [old for old in batch if old is not bad.old]

    def _empty(self, disk: str, batch: Sequence[Old]) -> None:
        holders = list(dict.fromkeys(each for old in batch for each in old.holders if not old.is_done))
        frames = _Frames(holders, {old.path: old for old in batch})
        made = self._copied(disk, frames) if len(frames.records) else None
        tables = dict(zip(holders, frames.tables(made)))
        if not self._store.has_locks:
            self._lead(batch, tables)
            return
        try:
            for old in batch:
                for holder in old.holders:
                    if holder in tables:
                        self._put(holder, tables.pop(holder))
                self._store.delete(f"{self._series.folder}/{old.path}")
                self.done.append(old)
        except errors.OutputError:
            if made and not self._is_named(made, holders):
                self._store.remove_file(f"{self._series.folder}/{made.path}")
            raise

    def _lead(self, batch: Sequence[Old], tables: Mapping[Named, moved.Table]) -> None:
        """Without locks: make the tables as long as no sweep takes the new file for a stray, which it is where another
        run made one first. OutputError."""
        for old in batch:
            self._check()
            told = f"{self._series.folder}/{self._folder}/{layout.REPACKED}"
            if self._folder and self._store.seconds_since_change(told, anew=True) > graces.COUNTED_ON:
                raise errors.OutputError(f"what was moved to {self._folder} was made too long ago")
            path = f"{self._series.folder}/{moved.path_of(old.path)}"
            with suppress(errors.OutputExists):
                self._store.publish(path, moved.encode(tables[old.holders[0]]), self._store.protection)
                self.done.append(old)

    def _is_named(self, made: FileEntry, holders: Sequence[Named]) -> bool:
        """Whether a table leads to a new file. One that could not be written may be there all the same."""
        try:
            tables = [moved.read(self._store, self._series.folder, holder.entry) for holder in holders]
        except errors.Damaged:
            return True
        return any(made in table.files for table in tables if table)

    def _put(self, holder: Named, table: moved.Table) -> None:
        self._check()
        path = f"{self._series.folder}/{moved.path_of(table.old.path)}"
        self._store.replace(path, moved.encode(table))
        holder.move(table)

    def _copied(self, disk: str, frames: _Frames) -> FileEntry:
        """A new file of frames, which learn their places in it. _Bad, OutputError: then there is none."""
        number = self._files.get(disk, 0)
        path = f"{self._new_folder()}/{layout.chunk_name(disk, number)}"
        file = self._store.create(f"{self._series.folder}/{path}")
        try:
            size = frames.disk_size
            chunk = writer.Chunk(file, 0, layout.chunk_header(self._folder, disk, size, number), self._store.seal)
            with reader.FrameReader(self._store, self._series.folder, frames.entries) as source:
                for start in range(0, len(frames.records), STEP):
                    self._check()
                    chunk.add(frames.encoded(source, start, start + STEP))
            chunk.seal(pages.Page([path], chunk.records()))
            self._store.sync_folder(f"{self._series.folder}/{self._folder}")
        except BaseException:
            file.close()
            self._store.remove_file(f"{self._series.folder}/{path}")
            raise
        self._files[disk] = number + 1
        frames.moved = chunk.records()["position"]
        return FileEntry(path, file.size, file.sha256())

    def _new_folder(self) -> str:
        """Its name; it is made with the first file in it."""
        if not self._folder:
            name = layout.new_point_id()
            self._store.make_folder(f"{self._series.folder}/{name}", fresh=True)
            about = {"format": layout.FORMAT, "requires": [], **findings.now()}
            self._store.publish(f"{self._series.folder}/{name}/{layout.REPACKED}", layout.seal(about))
            self._folder = name
        return self._folder


class _Frames:
    """All that lives in a batch of files, in the order of the disk.

    holders: the files as directories name them; olds: those of the batch, by path. records: of the frames, chunk the
    number of a holder; moved: the position of each in the new file.
    """

    def __init__(self, holders: Sequence[Named], olds: dict[str, Old]) -> None:
        self._holders, self._olds = holders, olds
        parts = [numpy.empty(0, layout.RECORD)]
        paths: list[str] = []
        for number, holder in enumerate(holders):
            mine = numpy.array([place.path in olds for place in holder.places], bool)
            part = holder.frames[mine].copy()
            part["chunk"] = number
            parts.append(part)
            paths += [place.path for place in holder.places if place.path in olds]
        records = numpy.concatenate(parts)
        order = numpy.argsort(records["offset"], kind="stable")
        self.records: Records = records[order]
        self._paths = [paths[number] for number in order.tolist()]
        self.moved = numpy.empty(0, "u8")

    @property
    def entries(self) -> list[FileEntry]:
        return [holder.entry for holder in self._holders]

    @property
    def disk_size(self) -> int:
        """So large the disk is at the least."""
        return int((self.records["offset"] + self.records["length"]).max())

    def encoded(self, source: reader.FrameReader, start: int, stop: int) -> writer.Encoded:
        """Some of them, as they are, each proved. _Bad."""
        records, frames = self.records[start:stop].copy(), []
        for record, path in zip(records, self._paths[start:stop]):
            try:
                frames.append(source.stored(record))
            except errors.Damaged as error:
                raise _Bad(self._olds[path], str(error)) from error
        every = numpy.arange(len(records))
        return writer.Encoded(records, frames, 0, every, every[:0])

    def tables(self, made: Optional[FileEntry]) -> Iterator[moved.Table]:
        """The new table of each holder; made: the new file, None where nothing lives."""
        for number, holder in enumerate(self._holders):
            mine = self.records["chunk"] == number
            to = dict(zip(self.records["position"][mine].tolist(), self.moved[mine].tolist())) if made else {}
            places = [
                moved.Place(made.path, to[position]) if made and position in to else place
                for position, place in zip(holder.frames["position"].tolist(), holder.places)
            ]
            known = [*([made] if made else []), *(holder.table.files if holder.table else [])]
            yield moved.table(holder.entry, holder.frames, places, known)
