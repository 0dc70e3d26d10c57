"""The copying of points from another store into a series, file by file, as far as the series lacks them.

Each file is copied unchanged, and its size and SHA-256 are checked on the way. Until the point exists, its directory
looks like the remains of a removed point: no pull touches it, a later copy resumes it, and a prune frees what nothing
refers to. The manifest comes last, when everything else is durable.

Owns: which files are lacking, and that nothing incomplete looks whole. Must not know: on which files of the series a
copy may rely (counted_on.py knows), or which points are wanted, and in what order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..core.throttle import Throttle
from ..format import layout, moved
from ..format.manifest import FileEntry
from ..storage.base import Protection, Writer
from . import drafts, half_points, immutable, live_frames, lock_free, proved_copy, references, sweep_mark
from .counted_on import CountedOn, is_there
from .long_copy import LongCopy
from .series import Point, Series

Progress = Callable[[int], None]  # called with the number of bytes just copied


class Taken(NamedTuple):
    """What was copied for a point. files: their number; bytes: their size."""

    point: str
    files: int
    bytes: int


def lacking(
    source: Series, target: Series, point: Point, but: Container[str] = (), check: Check = lambda: None
) -> list[FileEntry]:
    """Return the files of a point of the source that the target lacks, by name and size. but: paths to leave out, which
    are not looked for. Damaged if a directory of the point cannot be read."""
    needed = _needed(source, target, point, partial(is_there, target), check, but)
    left = [entry for entry in needed.files if entry.path not in but]
    with target.store.looking(target.folder):
        return [entry for entry in left if not is_there(target, entry)]


class _Needed(NamedTuple):
    """What the target needs for a point.

    files: the files to have; tables: moved tables of other files; led: files that the target itself has moved, with
    tables that lead to all that the point shows.
    """

    files: list[FileEntry]
    tables: list[moved.Table]
    led: list[FileEntry]


def _needed(
    source: Series,
    target: Series,
    point: Point,
    has: Callable[[FileEntry], bool],
    check: Check,
    but: Container[str] = (),
) -> _Needed:
    """Return what the target needs for a point. If the target has a file that the source has moved, its table is not
    needed. Otherwise the table is, and may have to lead to what the target itself has moved, too.

    has: returns whether the target has a file; but: paths to leave out.
    """
    files: dict[str, FileEntry] = {}
    tables = []
    with source.store.looking(source.folder), target.store.looking(target.folder):
        entries = [entry for entry in references.of_point(source, point) if entry.path not in but]
        led = _led(source, target, point, entries, check)
        for entry in (each for each in entries if each not in led):
            is_at_hand = has(entry) or source.store.size(f"{source.folder}/{entry.path}") is not None
            table = None if is_at_hand else moved.read(source.store, source.folder, entry)
            if table:
                known = moved.read(target.store, target.folder, entry)
                tables.append(moved.joined(known, table) if known else table)
            files.update({each.path: each for each in (tables[-1].files if table else [entry])})
    return _Needed([*files.values()], tables, led)


def _led(source: Series, target: Series, point: Point, entries: Sequence[FileEntry], check: Check) -> list[FileEntry]:
    """Return the files that a target without locks has moved, with tables that lead to all that a point shows.

    Such a table leads there until no point refers to the file, as no table is made anew. What the base of this point
    shows, if it is a point of the target, is known to be there without reading it, and without a key.
    """
    folder, store = target.folder, target.store
    if store.has_locks:
        return []
    gone = [each for each in entries if not is_there(target, each)]
    gone = [each for each in gone if store.size(f"{folder}/{moved.path_of(each.path)}") is not None]
    if not gone:
        return []
    of_base = {*_of_base(target, point)}
    found: set[str] = set()
    with suppress(errors.Damaged, errors.KeyNeeded):
        left = [table for each in gone if each not in of_base and (table := moved.read(store, folder, each))]
        found = live_frames.led(source, point, left, check) if left else found
    return [each for each in gone if each in of_base or each.path in found]


def _of_base(target: Series, point: Point) -> list[FileEntry]:
    """Return the files to which the base of a point of the source refers, if the base is a point of the target, too."""
    parent = point.manifest.parent
    with suppress(errors.Failure):
        base = target.point_in(parent.point) if parent and target.has_point(parent.point) else None
        return references.of_point(target, base) if base and parent and base.sha256 == parent.sha256 else []
    return []


class Incoming:
    """Copies points of the source into the target, which the caller holds. points: those that the target has."""

    def __init__(self, source: Series, target: Series, points: Sequence[Point], throttle: Throttle) -> None:
        self._source, self._target, self._throttle = source, target, throttle
        self._counted_on = CountedOn(target, points)
        self._known = {point.id for point in points}

    def take(self, point: Point, progress: Progress = lambda count: None, check: Check = lambda: None) -> Taken:
        """Copy what the target lacks of a point, and then commit the point.

        Damaged if a file of the source is missing, or not what was stored. After that, and after OutputError or
        StoreError, what was copied for the point is removed. If an exception from `check` ends the copy, complete files
        remain for the next one.
        """
        immutable.begin(self._target.store)  # anew for each point: its time counts from here
        making = _Making(self._target, point.id)
        try:
            self._take(point, making, progress, check)
        except (errors.Damaged, errors.StoreError, errors.OutputError):
            making.undo(self._counted_on.includes)
            self._counted_on.present.forget()
            raise
        return Taken(point.id, len(making.copied), sum(making.copied.values()))

    def foresee(self, point: Point, entries: Iterable[FileEntry], check: Check) -> None:
        """Raise what `take` would raise, as far as that shows without reading the source's files, and without a change.
        entries: the files of the source that it would copy."""
        needed = self._needed(point, check)
        doubtful, _ = self._doubtful(needed, check)
        with self._target.store.looking(self._target.folder):
            for name in _folders(point.id, [*doubtful, *(table.old for table in needed.tables)]):
                lock_free.require_not_doomed(self._target, name)
        require_sizes(self._source, entries)

    def _take(self, point: Point, making: _Making, progress: Progress, check: Check) -> None:
        """Copy the point. Whenever frames have been moved to other files meanwhile, continue with those: all that
        exists counts."""
        needed = self._needed(point, check)
        while True:
            try:
                return self._take_once(point, needed, making, progress, check)
            except errors.Damaged:
                before, needed = needed, self._needed(point, check)
                if needed.files == before.files:
                    raise

    def _needed(self, point: Point, check: Check) -> _Needed:
        return _needed(self._source, self._target, point, self._counted_on.present, check)

    def _take_once(self, point: Point, needed: _Needed, making: _Making, progress: Progress, check: Check) -> None:
        entries, tables, _ = needed
        with self._target.store.looking(self._target.folder):
            doubtful, there = self._doubtful(needed, check)
            making.prepare([*doubtful, *(table.old for table in tables)])
        for entry in doubtful:
            making.go_on()
            self._make_sure(entry, entry in there, making, progress, check)
        making.sync()
        manifest = self._manifest(point)
        making.lead(tables)
        making.publish(manifest, immutable.secure(self._target, point))
        lock_free.prove(self._target, point, self._known, lambda: self._require_still(making, entries))
        making.end()
        self._known.add(point.id)
        self._counted_on.add(point, entries)

    def _doubtful(self, needed: _Needed, check: Check) -> tuple[list[FileEntry], list[FileEntry]]:
        """Return (files on which the copy cannot rely, those of them of which one of its size exists). StoreError if
        one of them must not be made; Busy if what the target itself has moved may go."""
        with self._target.store.looking(self._target.folder):
            self._counted_on.forget_removed()
            self._counted_on.require(needed.led)
            doubtful = [entry for entry in needed.files if not self._counted_on.has(entry)]
            for entry in [*doubtful, *(table.old for table in needed.tables)]:
                self._counted_on.require_free(entry, check)
            return doubtful, [entry for entry in doubtful if is_there(self._target, entry)]

    def _require_still(self, making: _Making, entries: Iterable[FileEntry]) -> None:
        """Require that no file on which the point relies is about to be removed: the copy may have taken a day."""
        for entry in entries:
            lock_free.require_stays(self._target, entry.path)
        making.require_set_apart()
        for name in self._counted_on.points:
            lock_free.require_base(self._target, name)

    def _make_sure(self, entry: FileEntry, is_there: bool, making: _Making, progress: Progress, check: Check) -> None:
        """Make sure that the target has the file, whole and durable. is_there: whether one of its size was seen."""
        if is_there and not self._target.own_flaw(entry, check):
            making.seal_again(entry)
        else:
            self._copy(entry, making, progress, check)

    def _copy(self, entry: FileEntry, making: _Making, progress: Progress, check: Check) -> None:
        require_sizes(self._source, [entry])

        def begin(count: int) -> None:
            check()
            self._throttle.take(count)

        with making.file(entry) as file:
            if not proved_copy.copied(self._source, entry, file, begin, progress):
                where = self._source.store.path(f"{self._source.folder}/{entry.path}")
                raise errors.Damaged(f"{where}: the file is damaged (it is not what was stored)")

    def _manifest(self, point: Point) -> bytes:
        path = f"{self._source.folder}/{point.id}/{layout.MANIFEST}"
        data = self._source.store.read(path)
        if hashlib.sha256(data).hexdigest() != point.sha256:
            raise errors.Damaged(f"{self._source.store.path(path)}: it has changed since it was first read")
        return data


def require_sizes(source: Series, entries: Iterable[FileEntry]) -> None:
    """Raise Damaged if a file of the source, or one that it was moved to, is missing or has the wrong size."""
    for flaw in filter(None, map(source.size_flaw, entries)):
        raise errors.Damaged(flaw)


def _folders(point: str, entries: Iterable[FileEntry]) -> list[str]:
    """Return the names of the folders that contain the files, and last that of the point itself."""
    return [*{entry.folder for entry in entries} - {point}, point]


class _Making:
    """A point in the making: what is done in the target, and how to undo it. copied: {path: bytes} of files."""

    def __init__(self, target: Series, point: str) -> None:
        self._target, self._store, self._point = target, target.store, point
        self._folders: list[str] = []  # the new ones
        self._prepared: list[str] = []
        self._files: list[FileEntry] = []
        self._found: list[FileEntry] = []
        self._was_swept = False
        self._long = LongCopy(target, point)
        self.copied: dict[str, int] = {}

    def _path(self, name: str) -> str:
        return f"{self._target.folder}/{name}"

    def prepare(self, entries: Iterable[FileEntry]) -> None:
        """Make the folders. In those that exist, remove the drafts of a copy that died."""
        self._prepared = _folders(self._point, entries)
        for name in self._prepared:
            lock_free.require_not_doomed(self._target, name)
            self._was_swept = sweep_mark.is_there(self._target, name)  # of the point's own directory, which comes last
            if half_points.set_apart(self._target, name):
                self._folders.append(name)
            else:
                half_points.renew(self._target, name)
        drafts.remove(self._target, self._prepared)

    def go_on(self) -> None:
        """Keep the folders as long as the copy takes: for a call before each file. Busy."""
        self._long.go_on(self._prepared)

    @contextmanager
    def file(self, entry: FileEntry) -> Iterator[Writer]:
        """Yield the Writer of a file that appears at the end, durable; if an exception leaves the block, the file does
        not appear.

        A partial file must not show: if the target has moved the file, points are read through its table only as long
        as the file itself is absent. If a file of this name exists, it is unusable, and is replaced.
        """
        with self._store.replacing(self._path(entry.path)) as file:
            yield file
        self._files.append(entry)
        self.copied[entry.path] = entry.size

    def seal_again(self, entry: FileEntry) -> None:
        """Make a file durable that was found whole: its writer may have died before it could do that."""
        self._store.make_durable(self._path(entry.path))
        self._found.append(entry)

    def sync(self) -> None:
        """Make the names of the files found whole durable, too."""
        for name in _folders(self._point, self._found):
            self._store.sync_folder(self._path(name))

    def lead(self, tables: Iterable[moved.Table]) -> None:
        """Write the tables, so that each leads to all that it must lead to. After that, nothing is removed by `undo`:
        points may be read through the tables."""
        for table in tables:
            self._folders, self._files = [], []
            path = self._path(moved.path_of(table.old.path))
            was = self._store.find(path, moved.MAX_TABLE)
            known = moved.read(self._store, self._target.folder, table.old)
            if was is None or known is None:
                self._store.publish(path, moved.encode(table), self._store.protection)
            elif len(known.moves) != len(table.moves):
                self._store.replace(path, moved.encode(moved.joined(known, table)), was)
            if self._store.has_locks:  # a file of another size would be read instead of the table
                self._store.delete(self._path(table.old.path))
            elif self._store.holds(self._path(table.old.path)):
                raise errors.Busy(f"another run brought {table.old.path} meanwhile: copy again")

    def publish(self, manifest: bytes, protection: Optional[Protection]) -> None:
        """Commit the point, of which everything else is durable."""
        try:
            self._store.publish(self._path(f"{self._point}/{layout.MANIFEST}"), manifest, protection)
        except errors.NbdpullError as error:
            if half_points.may_be_point(self._target, self._point, error):
                self._folders, self._files = [], []
            raise

    def require_set_apart(self) -> None:
        """Raise Busy if files of the directories may be about to be removed."""
        for name in self._prepared:
            lock_free.require_set_apart(self._target, name, self._point)

    def end(self) -> None:
        """Finish a point that is now committed."""
        half_points.end_setting_apart(self._target, self._point)
        if self._was_swept:
            sweep_mark.drop(self._target, self._point)

    def undo(self, stays: Callable[[FileEntry], bool]) -> None:
        """Remove what was made. stays: whether another point, which had lost the file, refers to it, too.

        Without locks another run may rely on the files by now: they are left to a later prune.
        """
        if not self._store.has_locks:
            return
        kept = {entry.path for entry in self._files if stays(entry)}
        for entry in self._files:
            if entry.path not in kept:
                self._store.remove_file(self._path(entry.path))
        for name in self._folders:
            if not any(path.startswith(f"{name}/") for path in kept):
                self._store.remove_folder(self._path(name))
