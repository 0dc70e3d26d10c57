"""Points that are removed, and the files that go with them.

A point is gone once its manifest has another name; that frees nothing, and can be taken back by hand until the sweep. A
file goes when no committed point refers to it, and not before readers of any point that did have had their time. Each
step is one call of the system, takes no room, and can be made again: what a killed run leaves, the next one ends. The
manifest of the last point outlives its files, as no other point may get its number.

Owns: what a removed point's directory looks like, and which files may go. Who removes holds the series. Must not know:
which points are to go, and why.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..format import layout
from ..format.manifest import FileEntry
from ..storage.base import Store
from . import drafts, half_points, immutable, lock_free, pins, references, sweep_mark
from . import grace as graces
from .series import Point, Series

_TELLING = {half_points.REMOVED, layout.REPACKED, sweep_mark.NAME}  # files that say what their directory is


@dataclass(frozen=True)
class Swept:
    """What became of the files of removed points, in bytes. freed: gone; waiting: nothing refers to them, but it is
    too early; shared: points that stay refer to them; locked: nothing refers to them, and they show no more, but a lock
    keeps them until locked_until, the last of them. untold: why nobody could tell that of some, "" for none. points:
    ids of those whose last files went."""

    freed: int = 0
    waiting: int = 0
    shared: int = 0
    points: tuple[str, ...] = ()
    has_locks: bool = True
    locked: int = 0
    locked_until: Optional[datetime] = None
    untold: str = ""

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.freed + other.freed,
            self.waiting + other.waiting,
            self.shared + other.shared,
            self.points + other.points,
            self.has_locks and other.has_locks,
            self.locked + other.locked,
            max(filter(None, (self.locked_until, other.locked_until)), default=None),
            self.untold or other.untold,
        )

    @property
    def warnings(self) -> list[str]:
        return [f"it is not told what a lock keeps, and until when: {self.untold}"] if self.untold else []


def remove(series: Series, point: Point) -> None:
    """From now on the series has no such point. UsageError of one that is pinned, be it just now; OutputError."""
    pins.require_none(series, point)
    folder = f"{series.folder}/{point.id}"
    if series.store.has_locks:
        series.store.delete(f"{folder}/{half_points.REMOVED}")  # of a removal that was taken back: its time is not ours
        series.store.rename(f"{folder}/{layout.MANIFEST}", f"{folder}/{half_points.REMOVED}")
    elif not half_points.rename_manifest(series, point.id):
        return
    try:
        pins.require_none(series, point)  # who pins holds nothing
    except errors.UsageError:
        _take_back(series.store, folder)
        raise
    half_points.end_announcement(series, point.id)


def _take_back(store: Store, folder: str) -> None:
    """In a bucket, the manifest is another object than it was."""
    store.rename(f"{folder}/{half_points.REMOVED}", f"{folder}/{layout.MANIFEST}")
    immutable.begin(store)
    if store.protection:
        store.protect([f"{folder}/{layout.MANIFEST}"], store.protection)


def referred(series: Series, but: Collection[str] = (), check: Check = lambda: None) -> set[str]:
    """Paths of all files that the points of a series refer to, relative to it. but: ids of points that do not count.
    Where that cannot be told of one point, no file may go: Damaged, FormatTooNew."""
    points, refused = series.load()
    for error in refused.values():
        raise type(error)(f"{error}; until that is settled, no file of {series.domain} can be removed") from error
    found: dict[str, FileEntry] = {}
    wanted = (point for point in points if point.id not in but)
    for entries in series.store.several(partial(references.of_point, series), wanted):
        check()
        found.update({entry.path: entry for entry in entries})
    return references.paths(series, found.values())


def why_stays(series: Series, name: str) -> str:
    """Of a directory without a manifest that says nothing of itself: it may be what is left of a point that others
    refer to. "" where it may go."""
    try:
        is_empty = not series.store.names(f"{series.folder}/{name}")
        is_needed = not is_empty and any(path.startswith(f"{name}/") for path in referred(series))
        return "points refer to its files" if is_needed else half_points.why_in_use(series, name, None)
    except errors.NbdpullError as error:
        return str(error)


def require_at_once(store: Store) -> None:
    """UsageError where files must not go before their time."""
    if not store.has_locks:
        raise errors.UsageError(f"--now: {store.root} has no locks, and only time keeps those apart who work there")


def sweep(
    series: Series,
    grace: Optional[float] = None,
    check: Check = lambda: None,
    emptied: Callable[[], Collection[str]] = frozenset,
) -> Swept:
    """Remove what nothing refers to of points that were removed so many seconds ago. Points that were removed since
    refer to files all the same: those who read them began when they were there. grace: None: as the store needs.
    emptied: tells, when all is listed, which files go although points refer to them: see repack.emptied."""
    grace = graces.of(series.store) if grace is None else grace
    with series.store.looking(series.folder):
        drafts_freed = drafts.remove_all(series)
        moved = frozenset(emptied())
        points = frozenset(lock_free.points(series) if moved else ())
        late = _late(series, grace, check) - moved
        how = _How(grace, late, _last_of_all(series), _Locks(series.store), moved, points)
        swept = (_swept(series, left, how) for left in _left(series, frozenset(), check, moved))
        return sum(swept, Swept(freed=drafts_freed, has_locks=series.store.has_locks))


def would_sweep(series: Series, gone: frozenset[str], check: Check = lambda: None) -> Swept:
    """Only look, as if the points with these ids were removed, too: all that could go is waiting."""
    locks = _Locks(series.store)
    with series.store.looking(series.folder):
        return sum((_would_sweep(series, left, locks) for left in _left(series, gone, check)), Swept())


def _would_sweep(series: Series, left: _Left, locks: _Locks) -> Swept:
    found = locks.of({f"{series.folder}/{left.point}/{file}": size for file, size in left.free.items()})
    return Swept(waiting=sum(left.free.values()) - found.locked, shared=left.shared) + found


class _Locks:
    """Tells of files that are to go how much of them a lock keeps."""

    def __init__(self, store: Store) -> None:
        self._store, self._is_asked = store, immutable.may_be(store)

    def of(self, going: Mapping[str, int]) -> Swept:
        """going: {path: bytes}. Who may not ask removes all the same."""
        locked, until, untold = 0, None, ""
        for path, size in going.items() if self._is_asked else ():
            try:
                told = self._store.protected_until(path)
            except errors.AccessDenied as error:
                self._is_asked, untold = False, str(error)
                break
            if told and told > datetime.now(timezone.utc):
                locked, until = locked + size, max(told, until or told)
        return Swept(locked=locked, locked_until=until, untold=untold)


class _How(NamedTuple):
    """late: paths of what stays; last: see _last_of_all. moved: paths of what points refer to, and read elsewhere;
    points: ids of all of which that was looked at."""

    grace: float
    late: Collection[str]
    last: Optional[str]
    locks: _Locks
    moved: Collection[str]
    points: Collection[str]


def _late(series: Series, grace: float, check: Check) -> set[str]:
    """Paths of what points refer to that were removed less than so many seconds ago. What has lost its directory can be
    read by nobody: it was removed at once."""
    found: set[str] = set()
    for name in half_points.removed(series):
        check()
        if half_points.seconds_removed(series, name) < grace:
            with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
                found |= _readable(series, half_points.removed_point(series, name))
    return found


def _readable(series: Series, point: Point) -> set[str]:
    """Paths of what a removed point refers to, as far as that can be told."""
    directories = references.readable(series, point)
    found: set[str] = set()
    for entry in references.by_directories(point, directories) if directories or not point.disks else []:
        found.add(entry.path)
        with suppress(errors.Damaged):
            found |= references.paths(series, [entry])
    return found


def _last_of_all(series: Series) -> Optional[str]:
    """Directory of the removed point that alone tells the highest number of the series; None where a committed one
    does."""
    newest = series.newest()
    committed = newest.manifest.sequence if newest else -1
    found = [(point.manifest.sequence, name) for name, point in half_points.removed_points(series).items()]
    number, name = max(found, default=(-1, ""))
    return name if number > committed else None


def waiting(series: Series, kept: Container[str]) -> int:
    """Bytes of what nothing refers to. kept: paths of all that the points refer to in directories without a point."""
    found = (_left_of(series, name, kept) for name in _without_point(series))
    return sum(sum(left.free.values()) for left in found)


class _Left(NamedTuple):
    """What is left of a removed point, or is in a directory of frames that were moved. free: {name: bytes} of the files
    that no committed point refers to; shared: bytes of the others."""

    point: str
    free: dict[str, int]
    shared: int


def _left(series: Series, gone: frozenset[str], check: Check, emptied: Collection[str] = ()) -> Iterator[_Left]:
    """Of each point that was removed, or is among `gone`; and of moved frames. emptied: paths of files that go although
    they are referred to."""
    names = [*_without_point(series), *sorted(gone)]
    kept = referred(series, gone, check).difference(emptied) if names else set()
    moved = half_points.repacked(series)
    if moved and references.is_lost(series, kept):  # its table may be brought back from a copy
        kept |= {f"{name}/{file}" for name in moved for file in _files(series, name)}
    for name in names:
        check()
        yield _left_of(series, name, kept)


def _without_point(series: Series) -> list[str]:
    return [*half_points.removed(series), *half_points.repacked(series)]


def _left_of(series: Series, name: str, kept: Container[str]) -> _Left:
    files = _files(series, name)
    free = {file: size for file, size in files.items() if f"{name}/{file}" not in kept}
    return _Left(name, free, sum(files.values()) - sum(free.values()))


def _files(series: Series, point: str) -> dict[str, int]:
    """{name: bytes} of the files of a directory but that which says what it is. What is no file is nothing of ours, as
    the folder that a file server makes for itself."""
    folder = f"{series.folder}/{point}"
    names = set(series.store.files(folder)) - _TELLING
    return {name: series.store.size(f"{folder}/{name}") or 0 for name in names}


def _is_late(series: Series, name: str, is_point: bool, grace: float) -> bool:
    """Whether it is too early for any file of a directory. Moved frames go at once where they are moved again; without
    locks they may just be on their way there."""
    if is_point:
        return half_points.seconds_removed(series, name) < grace
    moved = f"{series.folder}/{name}/{layout.REPACKED}"
    return not series.store.has_locks and series.store.seconds_since_change(moved) < grace


def _swept(series: Series, left: _Left, how: _How) -> Swept:
    folder, has_locks = f"{series.folder}/{left.point}", series.store.has_locks
    is_point = series.store.holds(f"{folder}/{half_points.REMOVED}")
    is_late = _is_late(series, left.point, is_point, how.grace) or sweep_mark.is_young(series, left.point)
    due = {} if is_late else {file: size for file, size in left.free.items() if f"{left.point}/{file}" not in how.late}
    found = how.locks.of({f"{folder}/{file}": size for file, size in due.items()})
    age = half_points.seconds_set_apart(series, left.point)
    going = _deleted(series, left.point, due, age, how)
    gone = sum(going.values())
    freed = max(0, gone - found.locked)
    if is_late or left.shared or len(going) < len(left.free):
        return Swept(freed, sum(left.free.values()) - gone, left.shared) + found
    strange = set(series.store.names(folder)) - _TELLING
    is_to_stay = strange or left.point == how.last  # the manifest of the last one stays
    if is_to_stay or (going and not has_locks):  # the mark of a sweep outlives the files
        return Swept(freed, points=(left.point,) if is_point and going else ()) + found
    if lock_free.may_sweep(series, left.point, age):
        sweep_mark.drop(series, left.point)
        series.store.remove_folder(folder)  # with the file that says what it is, the last of it
    return Swept(freed, points=(left.point,) if is_point and has_locks else ()) + found


def _deleted(series: Series, name: str, due: dict[str, int], age: float, how: _How) -> dict[str, int]:
    """Those of the files of a directory that are gone now. age: of what tells that it may go, as it was listed."""
    gone: dict[str, int] = {}
    if due and lock_free.may_sweep(series, name, age):
        sweep_mark.put(series, name)
    moved = {file for file in due if f"{name}/{file}" in how.moved}
    if moved and lock_free.has_more(series, how.points):  # which may show of them what is not elsewhere
        due = {file: size for file, size in due.items() if file not in moved}
    for file, size in due.items():
        if not lock_free.may_sweep(series, name, age):
            break
        series.store.delete(f"{series.folder}/{name}/{file}")
        gone[file] = size
    return gone
