"""The repack of mostly dead chunk files of removed points: their live frames are moved together, the files are removed.

A frame is live while a point shows it: a committed point, or a removed one whose removal can still be undone. Files of
committed points are not touched: all data that the pull of such a point stored is shown by the point, and
`sha256sum -c` continues to succeed.

The new file is durable before the tables that lead to it, and these before the old files are removed. So what a killed
run leaves is complete, and the next run continues: a file that exists beside its table only has to be removed.

Without locks a table is made once and never replaced, so if two runs move the same file, one of them succeeds, and what
the other one made is a stray. The old file is removed by a later sweep, when the table has existed for a while, and
after another check that the table leads to all live frames. Files to which frames were moved are not changed until no
table leads to them.

Owns: the choice within a limit, and the order of the steps. The caller holds the lock of the series. Must not know: the
layout of any file, which points are removed.
"""

from __future__ import annotations

import logging
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

log = logging.getLogger("nbdpull.store")
STEP = 64  # frames that are copied between two calls of check()


@dataclass(frozen=True)
class Wanted:
    """below: repack files whose live share is smaller than this; limit: the most bytes to write, None: no limit;
    chunk_size: approximate bytes of a new file."""

    below: float
    limit: Optional[int] = None
    chunk_size: int = 256 << 20


@dataclass(frozen=True)
class Repacked:
    """The result of a repack, in bytes.

    moved: of live frames moved to new files; freed: of the old files that were removed; left: what more could be freed
    without the limit, the locks or the problems; skipped: why nothing was repacked at all, a word of core/choices, or
    None; waiting: of the files, moved now or before, that a later sweep removes.
    """

    moved: int = 0
    freed: int = 0
    left: int = 0
    problems: tuple[str, ...] = ()
    skipped: Optional[str] = None
    waiting: int = 0


def would_repack(series: Series, gone: Collection[str], wanted: Wanted, check: Check = lambda: None) -> Repacked:
    """Return what a repack would do if the points with these ids, and all files that can be removed, were removed,
    without a change."""
    with series.store.looking(series.folder, anew=True):
        points = [point for point in series.points() if point.id not in gone]
        found = list(mostly_dead(series, points, {point.id for point in points}, wanted.below, check))
        pending = sum(_pending(series).values())
    chosen, rest = _chosen(series, found, wanted.limit)
    return _repacked(series, chosen, rest, _problems(found), pending)


def repack(series: Series, wanted: Wanted, check: Check = lambda: None) -> Repacked:
    """Empty the files that are worth it, those with the smallest live share first.

    A file with a damaged frame is kept, as are all files of a disk with a damaged index, and if there is no space the
    repack ends: these are problems, not errors. Damaged if a directory cannot be read.
    """
    with series.store.looking(series.folder, anew=True):
        found = list(mostly_dead(series, *_shown(series), wanted.below, check)) if _may_move(series) else []
        pending = sum(_pending(series).values())
    chosen, rest = _chosen(series, found, wanted.limit)
    if chosen and not series.store.has_locks:  # points made until the old files are removed rely on these locks
        immutable.begin(series.store, timedelta(seconds=2 * graces.of(series.store)))
    run = _Run(series, check, _problems(found))
    chunk_size = writer.chunk_size(series.store, wanted.chunk_size)
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
    """Return the result. pending: bytes of files that were moved before."""
    size, has_locks = sum(old.size for old in done), series.store.has_locks
    return Repacked(
        _alive(done),
        size if has_locks else 0,
        _gain(left),
        tuple(problems),
        waiting=0 if has_locks else pending + size,
    )


def _shown(series: Series) -> tuple[list[Point], set[str]]:
    """Return (points whose frames are live, ids of the committed ones)."""
    committed = series.points()
    return [*committed, *half_points.removed_points(series).values()], {point.id for point in committed}


def _may_move(series: Series) -> bool:
    """Return whether any file may be moved. Without locks a removed point keeps all its frames live until its grace
    period ends, and a file is moved only once."""
    if series.store.has_locks:
        return True
    names = [name for name in half_points.removed(series) if not _is_late(series, name)]
    held = {f"{name}/{file}" for name in names for file in series.store.files(f"{series.folder}/{name}")}
    return any(layout.CHUNK_PATH.match(path) and moved.path_of(path) not in held for path in held)


def _pending(series: Series, least: float = 0.0) -> dict[str, int]:
    """Return {path: bytes} of the files of a store without locks that still exist and were moved at least `least`
    seconds ago."""
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
    """Return the paths of the files that were moved long enough ago to be removed.

    Their tables lead to all frames that points show, including removed points as long as readers may still use them. If
    that cannot be determined, files are kept.
    """
    found: list[str] = []
    known = _pending(series, graces.of(series.store))
    if not known:
        return found
    with suppress(errors.Damaged, errors.KeyNeeded):
        points, staying = _shown(series)
        late = {name for name in half_points.removed(series) if _is_late(series, name)}
        found += live_frames.emptied(series, points, staying | late, known, check)
    return found


def _is_late(series: Series, name: str) -> bool:
    return half_points.seconds_removed(series, name) < graces.of(series.store)


def _chosen(series: Series, found: Iterable[Disk], limit: Optional[int]) -> tuple[list[Old], list[Old]]:
    """Return (the files to empty, the rest). A file that a lock keeps would only take space twice."""
    olds = [old for disk in found for old in disk.olds]
    free = [old for old in olds if not _is_locked(series, old)] if olds and immutable.may_be(series.store) else olds
    chosen, rest = _within(free, limit)
    return chosen, [*rest, *_without(olds, free)]


def _is_locked(series: Series, old: Old) -> bool:
    try:
        until = series.store.protected_until(f"{series.folder}/{old.path}")
    except errors.AccessDenied:  # without permission to read the lock, leave the file
        return True
    return until is not None and until > datetime.now(timezone.utc) + timedelta(seconds=graces.of(series.store))


def _problems(found: Iterable[Disk]) -> tuple[str, ...]:
    return tuple(disk.problem for disk in found if disk.problem)


def _within(olds: Sequence[Old], limit: Optional[int]) -> tuple[list[Old], list[Old]]:
    """Return (the files to empty, the rest)."""
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
    """Yield batches of old files: each batch makes one new file."""
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
    """A repack. done: files that were emptied, and are removed if the store has locks; problems: texts."""

    def __init__(self, series: Series, check: Check, problems: Iterable[str]) -> None:
        self.done: list[Old] = []
        self.problems = [*problems]
        self._series, self._store, self._check = series, series.store, check
        self._folder = ""  # the name of the folder of new files
        self._files: dict[str, int] = {}  # {disk: number of its files in that folder}

    def end(self) -> None:
        """Remove directories of moved frames that have become empty. Not without locks: another run may have made one
        just now."""
        for name in half_points.repacked(self._series) if self._store.has_locks else ():
            if self._store.names(f"{self._series.folder}/{name}") == [layout.REPACKED]:
                self._store.remove_folder(f"{self._series.folder}/{name}")

    def empty(self, disk: str, batch: list[Old]) -> None:
        """Move all live frames of some files of a disk to one new file. OutputError."""
        while batch:
            try:
                self._empty(disk, batch)
                log.info("%s of %s: live frames of %d files moved", disk, self._series.domain, len(batch))
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
        """Make the tables in a store without locks, but only as long as no sweep may take the new file for a stray.
        It is a stray if another run made the tables first. OutputError."""
        for old in batch:
            self._check()
            record = f"{self._series.folder}/{self._folder}/{layout.REPACKED}"
            if self._folder and self._store.seconds_since_change(record, anew=True) > graces.COUNTED_ON:
                raise errors.OutputError(f"what was moved to {self._folder} was made too long ago")
            path = f"{self._series.folder}/{moved.path_of(old.path)}"
            with suppress(errors.OutputExists):
                self._store.publish(path, moved.encode(tables[old.holders[0]]), self._store.protection)
                self.done.append(old)

    def _is_named(self, made: FileEntry, holders: Sequence[Named]) -> bool:
        """Return whether a table leads to the new file. A table whose writing failed may exist nevertheless."""
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
        """Copy the frames to a new file, and set their positions in it. _Bad, OutputError: then no new file remains."""
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
        """Return the name of the folder of new files; make the folder for the first file."""
        if not self._folder:
            name = layout.new_point_id()
            folder = f"{self._series.folder}/{name}"
            self._store.make_folder(folder, fresh=True)
            about = {"format": layout.FORMAT, "requires": [], **findings.now()}
            try:
                self._store.publish(f"{folder}/{layout.REPACKED}", layout.seal(about))
            except errors.OutputError:
                self._store.remove_folder(folder)  # else each prune of a full disk would leave one
                raise
            self._folder = name
        return self._folder


class _Frames:
    """All live frames of a batch of files, in the order of the disk.

    holders: the files as directories name them; olds: the files of the batch, by path; records: of the frames, with the
    number of a holder as chunk; moved: the position of each frame in the new file.
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
        """A lower bound of the size of the disk, in bytes."""
        return int((self.records["offset"] + self.records["length"]).max())

    def encoded(self, source: reader.FrameReader, start: int, stop: int) -> writer.Encoded:
        """Return some of the frames as stored, each verified. _Bad."""
        records, frames = self.records[start:stop].copy(), []
        for record, path in zip(records, self._paths[start:stop]):
            try:
                frames.append(source.stored(record))
            except errors.Damaged as error:
                raise _Bad(self._olds[path], str(error)) from error
        every = numpy.arange(len(records))
        return writer.Encoded(records, frames, 0, every, every[:0])

    def tables(self, made: Optional[FileEntry]) -> Iterator[moved.Table]:
        """Yield the new table of each holder. made: the new file, None if no frame is live."""
        for number, holder in enumerate(self._holders):
            mine = self.records["chunk"] == number
            to = dict(zip(self.records["position"][mine].tolist(), self.moved[mine].tolist())) if made else {}
            places = [
                moved.Place(made.path, to[position]) if made and position in to else place
                for position, place in zip(holder.frames["position"].tolist(), holder.places)
            ]
            known = [*([made] if made else []), *(holder.table.files if holder.table else [])]
            yield moved.table(holder.entry, holder.frames, places, known)
