"""Points of another store on their way into a series, as the files that it lacks.

Each file is copied as it is, its size and SHA-256 proved on the way. What a directory gets before its point is there
looks like what is left of a removed one: no pull touches it, a later copy goes on with it, and a prune frees what
nothing refers to. The manifest comes last, when all else is durable.

Owns: which files are lacking, and that nothing half looks whole. Must not know: which files of the series are counted
on (counted_on.py does), which points are wanted, and of what order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..core.throttle import Throttle
from ..format import layout, moved
from ..format.manifest import FileEntry
from ..storage.base import Protection, Writer
from . import drafts, half_points, immutable, live_frames, lock_free, proved_copy, references, sweep_mark
from .counted_on import CountedOn, is_there
from .series import Point, Series

Tell = Callable[[int], None]  # so many more bytes were copied


class Taken(NamedTuple):
    """What was copied for a point."""

    point: str
    files: int
    bytes: int


def lacking(source: Series, target: Series, point: Point, but: Container[str] = ()) -> list[FileEntry]:
    """The files of a point of the source that the target has not, by their names and sizes. but: paths that do not
    count. Damaged where a directory of the point cannot be read."""
    left = [entry for entry in _needed(source, target, point).files if entry.path not in but]
    with target.store.looking(target.folder):
        return [entry for entry in left if not is_there(target, entry)]


class _Needed(NamedTuple):
    """What the target is to have of a point: files, and moved tables of others. led: files that it has moved itself,
    with tables that lead to all that the point shows."""

    files: list[FileEntry]
    tables: list[moved.Table]
    led: list[FileEntry]


def _needed(source: Series, target: Series, point: Point) -> _Needed:
    """A file that the source has moved away is not needed where the target has it. Else its table is, which may have to
    lead to what the target has moved itself, too."""
    files: dict[str, FileEntry] = {}
    tables = []
    with source.store.looking(source.folder), target.store.looking(target.folder):
        entries = references.of_point(source, point)
        led = _led(source, target, point, entries)
        for entry in (each for each in entries if each not in led):
            is_at_hand = is_there(target, entry) or source.store.size(f"{source.folder}/{entry.path}") is not None
            table = None if is_at_hand else moved.read(source.store, source.folder, entry)
            if table:
                known = moved.read(target.store, target.folder, entry)
                tables.append(moved.joined(known, table) if known else table)
            files.update({each.path: each for each in (tables[-1].files if table else [entry])})
    return _Needed([*files.values()], tables, led)


def _led(source: Series, target: Series, point: Point, entries: Sequence[FileEntry]) -> list[FileEntry]:
    """The files that a target without locks has moved away, with tables that lead to all that a point shows: they
    lead there until no point refers to the file, as no table is made anew. What the target's point shows that this one
    was laid over is known without a look, and without a key."""
    folder, store = target.folder, target.store
    gone = [each for each in entries if not (store.has_locks or is_there(target, each))]
    gone = [each for each in gone if store.size(f"{folder}/{moved.path_of(each.path)}") is not None]
    of_base = {*(_of_base(target, point) if gone else ())}
    found: set[str] = set()
    with suppress(errors.Damaged, errors.KeyNeeded):
        left = [table for each in gone if each not in of_base and (table := moved.read(store, folder, each))]
        found = live_frames.led(source, point, left, lambda: None) if left else found
    return [each for each in gone if each in of_base or each.path in found]


def _of_base(target: Series, point: Point) -> list[FileEntry]:
    """What the base of a point of the source refers to, if it is a point of the target, too."""
    parent = point.manifest.parent
    with suppress(errors.NbdpullError):
        base = target.point_in(parent.point) if parent and target.has_point(parent.point) else None
        return references.of_point(target, base) if base and parent and base.sha256 == parent.sha256 else []
    return []


class Incoming:
    """Takes points of the source into the target, which is held. points: those that the target has."""

    def __init__(self, source: Series, target: Series, points: Sequence[Point], throttle: Throttle) -> None:
        self._source, self._target, self._throttle = source, target, throttle
        self._counted_on = CountedOn(target, points)
        self._known = {point.id for point in points}

    def take(self, point: Point, tell: Tell = lambda count: None, check: Check = lambda: None) -> Taken:
        """Copy what the target lacks of a point, and then it is one of its points.

        Damaged where a file of the source is not what was stored, or is not there; then, and with OutputError, what was
        copied for the point is removed. Where `check` ends it, whole files stay for the next time.
        """
        immutable.begin(self._target.store)  # of each point anew: its time counts from here
        making = _Making(self._target, point.id)
        try:
            self._take(point, making, tell, check)
        except (errors.Damaged, errors.StoreError, errors.OutputError):
            making.undo(self._counted_on.includes)
            raise
        return Taken(point.id, len(making.copied), sum(making.copied.values()))

    def _take(self, point: Point, making: _Making, tell: Tell, check: Check) -> None:
        """Each time that frames were moved to other files meanwhile, go on with those: all that is there counts."""
        needed = _needed(self._source, self._target, point)
        while True:
            try:
                return self._take_once(point, needed, making, tell, check)
            except errors.Damaged:
                before, needed = needed, _needed(self._source, self._target, point)
                if needed.files == before.files:
                    raise

    def _take_once(self, point: Point, needed: _Needed, making: _Making, tell: Tell, check: Check) -> None:
        entries, tables, led = needed
        with self._target.store.looking(self._target.folder):
            self._counted_on.forget_removed()
            self._counted_on.require(led)
            doubtful = [entry for entry in entries if not self._counted_on.has(entry)]
            for entry in [*doubtful, *(table.old for table in tables)]:
                self._counted_on.require_free(entry)
            there = [entry for entry in doubtful if is_there(self._target, entry)]
            making.prepare([*doubtful, *(table.old for table in tables)])
        for entry in doubtful:
            self._make_sure(entry, entry in there, making, tell, check)
        making.sync()
        manifest = self._manifest(point)
        making.lead(tables)
        making.publish(manifest, immutable.secure(self._target, point))
        lock_free.prove(self._target, point, self._known, lambda: self._require_still(making, entries))
        making.end()
        self._known.add(point.id)
        self._counted_on.add(point, entries)

    def _require_still(self, making: _Making, entries: Iterable[FileEntry]) -> None:
        """That nothing goes on which the point counts: it may have taken a day."""
        for entry in entries:
            lock_free.require_stays(self._target, entry.path)
        making.require_set_apart()
        for name in self._counted_on.points:
            lock_free.require_base(self._target, name)

    def _make_sure(self, entry: FileEntry, is_there: bool, making: _Making, tell: Tell, check: Check) -> None:
        """Have the target have the file, whole and durable. is_there: whether one of its size was seen."""
        if is_there and not self._target.own_flaw(entry, check):
            making.seal_again(entry)
        else:
            self._copy(entry, making, tell, check)

    def _copy(self, entry: FileEntry, making: _Making, tell: Tell, check: Check) -> None:
        flaw = self._source.size_flaw(entry)
        if flaw:
            raise errors.Damaged(flaw)

        def begin(count: int) -> None:
            check()
            self._throttle.take(count)

        with making.file(entry) as file:
            if not proved_copy.copied(self._source, entry, file, begin, tell):
                where = self._source.store.path(f"{self._source.folder}/{entry.path}")
                raise errors.Damaged(f"{where}: the file is damaged (it is not what was stored)")

    def _manifest(self, point: Point) -> bytes:
        path = f"{self._source.folder}/{point.id}/{layout.MANIFEST}"
        data = self._source.store.read(path)
        if hashlib.sha256(data).hexdigest() != point.sha256:
            raise errors.Damaged(f"{self._source.store.path(path)}: it has changed since it was read first")
        return data


class _Making:
    """A point in the making: what is done in the target, and can be undone. copied: {path: bytes} of files."""

    def __init__(self, target: Series, point: str) -> None:
        self._target, self._store, self._point = target, target.store, point
        self._folders: list[str] = []  # that are new
        self._prepared: list[str] = []
        self._files: list[FileEntry] = []
        self._found: list[FileEntry] = []
        self._was_swept = False
        self.copied: dict[str, int] = {}

    def _path(self, name: str) -> str:
        return f"{self._target.folder}/{name}"

    def _names(self, entries: Iterable[FileEntry]) -> list[str]:
        """Of the folders that they are in, and of the point's own, the last."""
        return [*{entry.path.partition("/")[0] for entry in entries} - {self._point}, self._point]

    def prepare(self, entries: Iterable[FileEntry]) -> None:
        """Make the folders; in those that are there, what a copy left that died while it made a file appear."""
        self._prepared = self._names(entries)
        for name in self._prepared:
            lock_free.require_not_doomed(self._target, name)
            self._was_swept = sweep_mark.is_there(self._target, name)  # of the point's own, the last
            if half_points.set_apart(self._target, name):
                self._folders.append(name)
            else:
                half_points.renew(self._target, name)
        drafts.remove(self._target, self._prepared)

    @contextmanager
    def file(self, entry: FileEntry) -> Iterator[Writer]:
        """Give the Writer of a file that appears at the end, durable; left by an exception, there is none. Half of one
        must not show: where the target has moved the file, points are read by its table only as long as there is
        none. What has its name is none that anybody could use: it goes."""
        with self._store.replacing(self._path(entry.path)) as file:
            yield file
        self._files.append(entry)
        self.copied[entry.path] = entry.size

    def seal_again(self, entry: FileEntry) -> None:
        """Make a file durable that was found whole: who wrote it may have died before it could."""
        self._store.make_durable(self._path(entry.path))
        self._found.append(entry)

    def sync(self) -> None:
        """The same of the names of those files."""
        for name in self._names(self._found):
            self._store.sync_folder(self._path(name))

    def lead(self, tables: Iterable[moved.Table]) -> None:
        """Have tables lead to all that they are to lead to. From then on nothing of it goes: points may be read by
        them."""
        for table in tables:
            self._folders, self._files = [], []
            path = self._path(moved.path_of(table.old.path))
            was = self._store.find(path, moved.MAX_TABLE)
            known = moved.read(self._store, self._target.folder, table.old)
            if was is None or known is None:
                self._store.publish(path, moved.encode(table), self._store.protection)
            elif len(known.moves) != len(table.moves):
                self._store.replace(path, moved.encode(moved.joined(known, table)), was)
            if self._store.has_locks:  # of another size: it would be read in place of the table
                self._store.delete(self._path(table.old.path))
            elif self._store.holds(self._path(table.old.path)):
                raise errors.Busy(f"another run brought {table.old.path} meanwhile: copy again")

    def publish(self, manifest: bytes, protection: Optional[Protection]) -> None:
        """Commit the point, of which all else is durable."""
        try:
            self._store.publish(self._path(f"{self._point}/{layout.MANIFEST}"), manifest, protection)
        except errors.NbdpullError as error:
            if isinstance(error, errors.OutputExists) or not half_points.withdrawn(
                self._target, self._point
            ):  # it is a point, and stays one
                self._folders, self._files = [], []
            raise

    def require_set_apart(self) -> None:
        """Busy where files of the directories may be about to go."""
        for name in self._prepared:
            lock_free.require_set_apart(self._target, name, self._point)

    def end(self) -> None:
        """It is a point now."""
        half_points.end_setting_apart(self._target, self._point)
        if self._was_swept:
            sweep_mark.drop(self._target, self._point)

    def undo(self, stays: Callable[[FileEntry], bool]) -> None:
        """Remove what was made. stays: whether a file is another point's, too, which had lost it. Without locks it may
        be counted on by now: it is for a prune, in its time."""
        if not self._store.has_locks:
            return
        kept = {entry.path for entry in self._files if stays(entry)}
        for entry in self._files:
            if entry.path not in kept:
                self._store.remove_file(self._path(entry.path))
        for name in self._folders:
            if not any(path.startswith(f"{name}/") for path in kept):
                self._store.remove_folder(self._path(name))
