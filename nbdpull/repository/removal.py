"""The removal of points, and of the files that no other point needs.

A point is removed by renaming its manifest. That frees nothing, and can be undone by hand until the sweep. A file is
removed when no committed point refers to it, and the readers of any point that did have had enough time. Each step is
one system call, takes no space, and can be repeated: the next run finishes what a killed run leaves. The manifest of
the last point outlives its files, because no other point may get its number.

Owns: what a removed point's directory looks like, and which files may be removed. The caller holds the lock of the
series. Must not know: which points are removed, and why.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import errors, sizes
from ..core.errors import Check
from ..format import layout
from ..format.manifest import FileEntry
from ..storage.base import Store
from . import drafts, half_points, immutable, lock_free, pins, references, sweep_mark
from . import grace as graces
from .series import Point, Series

log = logging.getLogger("nbdpull.store")
_TELLING = {half_points.REMOVED, layout.REPACKED, sweep_mark.NAME}  # files that state what their directory is


@dataclass(frozen=True)
class Swept:
    """The result of a sweep of the files of removed points, in bytes.

    freed: of removed files; waiting: of files that nothing refers to, but that are too recent to be removed; shared: of
    files that remaining points refer to; locked: of files that nothing refers to and that are hidden, but that a lock
    keeps, the last of them until locked_until; lock_problem: why the locks of some files are unknown, "" if
    there are none; points: ids of the points whose last files were removed.
    """

    freed: int = 0
    waiting: int = 0
    shared: int = 0
    points: tuple[str, ...] = ()
    has_locks: bool = True
    locked: int = 0
    locked_until: Optional[datetime] = None
    lock_problem: str = ""

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.freed + other.freed,
            self.waiting + other.waiting,
            self.shared + other.shared,
            self.points + other.points,
            self.has_locks and other.has_locks,
            self.locked + other.locked,
            max(filter(None, (self.locked_until, other.locked_until)), default=None),
            self.lock_problem or other.lock_problem,
        )

    @property
    def warnings(self) -> list[str]:
        return [f"what a lock keeps, and until when, is unknown: {self.lock_problem}"] if self.lock_problem else []


def remove(series: Series, point: Point) -> None:
    """Remove a point from the series. UsageError if it is pinned, even if that happened just now; OutputError."""
    pins.require_none(series, point)
    folder = f"{series.folder}/{point.id}"
    if series.store.has_locks:
        series.store.delete(f"{folder}/{half_points.REMOVED}")  # of an undone removal: its time does not count
        series.store.rename(f"{folder}/{layout.MANIFEST}", f"{folder}/{half_points.REMOVED}")
    elif not half_points.rename_manifest(series, point.id):
        return
    try:
        pins.require_none(series, point)  # a run that pins a point holds no lock
    except errors.UsageError:
        _take_back(series.store, folder)
        raise
    log.info("point %s of %s removed", point.id, series.domain)
    half_points.end_announcement(series, point.id)


def _take_back(store: Store, folder: str) -> None:
    """Undo a removal. In a bucket the manifest is a new object, which has to be protected again."""
    store.rename(f"{folder}/{half_points.REMOVED}", f"{folder}/{layout.MANIFEST}")
    immutable.begin(store)
    if store.protection:
        store.protect([f"{folder}/{layout.MANIFEST}"], store.protection)


def referred(series: Series, but: Collection[str] = (), check: Check = lambda: None) -> set[str]:
    """Return the paths of all files that the points of a series refer to, relative to the series.

    but: ids of points that are ignored. Damaged or FormatTooNew if the files of one point are unknown: then no file may
    be removed.
    """
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
    """Return why a directory without a manifest and without any record of what it is must remain; "" if it may be
    removed. It may be the rest of a point that other points refer to."""
    try:
        is_empty = not series.store.names(f"{series.folder}/{name}")
        is_needed = not is_empty and any(path.startswith(f"{name}/") for path in referred(series))
        return "points refer to its files" if is_needed else half_points.why_in_use(series, name, None)
    except errors.Failure as error:
        return str(error)


def require_at_once(store: Store) -> None:
    """Raise UsageError if files of the store must not be removed before the grace period ends."""
    if not store.has_locks:
        raise errors.UsageError(
            f"--now: {store.root} has no locks, so only the grace period protects files that other runs need"
        )


def sweep(
    series: Series,
    grace: Optional[float] = None,
    check: Check = lambda: None,
    emptied: Callable[[], Collection[str]] = frozenset,
) -> Swept:
    """Remove the files of removed points that nothing refers to.

    grace: how many seconds ago a point must have been removed, None: as the store needs. Points removed since then
    still refer to their files, because readers may have begun before the removal. emptied: called when everything is
    listed; returns the files to remove although points refer to them, see repack.emptied.
    """
    grace = graces.of(series.store) if grace is None else grace
    with series.store.looking(series.folder):
        drafts_freed = drafts.remove_all(series)
        half_points.give_up_forsaken(series)
        moved = frozenset(emptied())
        points = frozenset(lock_free.points(series) if moved else ())
        late = _late(series, grace, check) - moved
        how = _How(grace, late, _last_of_all(series), _Locks(series.store), moved, points)
        each = (_swept(series, left, how) for left in _left(series, frozenset(), check, moved))
        swept = sum(each, Swept(freed=drafts_freed, has_locks=series.store.has_locks))
    log.info(
        "files of removed points of %s: %s freed, %s waiting",
        series.domain, sizes.shown(swept.freed), sizes.shown(swept.waiting),
    )  # fmt: skip
    return swept


def would_sweep(series: Series, gone: frozenset[str], check: Check = lambda: None) -> Swept:
    """Return what a sweep could remove if the points with these ids were removed, too, without a change: all of it
    counts as waiting."""
    locks = _Locks(series.store)
    with series.store.looking(series.folder):
        return sum((_would_sweep(series, left, locks) for left in _left(series, gone, check)), Swept())


def _would_sweep(series: Series, left: _Left, locks: _Locks) -> Swept:
    found = locks.of({f"{series.folder}/{left.point}/{file}": size for file, size in left.free.items()})
    return Swept(waiting=sum(left.free.values()) - found.locked, shared=left.shared) + found


class _Locks:
    """The locks on files that are to be removed."""

    def __init__(self, store: Store) -> None:
        self._store, self._is_asked = store, immutable.may_be(store)

    def of(self, going: Mapping[str, int]) -> Swept:
        """Return how much of some files a lock keeps. going: {path: bytes}. Without permission to read the locks, the
        files are removed nevertheless."""
        locked, until, lock_problem = 0, None, ""
        for path, size in going.items() if self._is_asked else ():
            try:
                lock_end = self._store.protected_until(path)
            except errors.AccessDenied as error:
                self._is_asked, lock_problem = False, str(error)
                break
            if lock_end and lock_end > datetime.now(timezone.utc):
                locked, until = locked + size, max(lock_end, until or lock_end)
        return Swept(locked=locked, locked_until=until, lock_problem=lock_problem)


class _How(NamedTuple):
    """How to sweep.

    late: paths of files that remain; last: see _last_of_all; moved: paths of files that points refer to, but read
    elsewhere; points: ids of all points for which that was checked.
    """

    grace: float
    late: Collection[str]
    last: Optional[str]
    locks: _Locks
    moved: Collection[str]
    points: Collection[str]


def _late(series: Series, grace: float, check: Check) -> set[str]:
    """Return the paths of the files to which points refer that were removed less than `grace` seconds ago. A disk whose
    directory is lost cannot be read: its files need not wait."""
    entries: set[FileEntry] = set()  # most are named by many points: each is looked for once
    for name in half_points.removed(series):
        check()
        if half_points.seconds_removed(series, name) < grace:
            with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
                entries.update(_named_by(series, half_points.removed_point(series, name)))
    found: set[str] = set()
    for entry in entries:
        check()
        found.add(entry.path)
        with suppress(errors.Damaged):
            found |= references.paths(series, [entry])
    return found


def _named_by(series: Series, point: Point) -> list[FileEntry]:
    """Return the files that a removed point refers to, as far as they can be determined."""
    directories = references.readable(series, point)
    return references.by_directories(point, directories) if directories or not point.disks else []


def _last_of_all(series: Series) -> Optional[str]:
    """Return the directory of the removed point that has the highest number of the series; None if a committed point
    has it."""
    newest = series.newest()
    committed = newest.manifest.sequence if newest else -1
    found = [(point.manifest.sequence, name) for name, point in half_points.removed_points(series).items()]
    number, name = max(found, default=(-1, ""))
    return name if number > committed else None


def waiting(series: Series, kept: Container[str]) -> int:
    """Return the bytes of the files in directories without a point that nothing refers to. kept: paths of all files
    there that points refer to."""
    found = (_left_of(series, name, kept) for name in _without_point(series))
    return sum(sum(left.free.values()) for left in found)


class _Left(NamedTuple):
    """The files of a removed point, or of a directory of moved frames. free: {name: bytes} of the files that no
    committed point refers to; shared: bytes of the others."""

    point: str
    free: dict[str, int]
    shared: int


def _left(series: Series, gone: frozenset[str], check: Check, emptied: Collection[str] = ()) -> Iterator[_Left]:
    """Yield the files of each point that was removed or is in `gone`, and of each directory of moved frames. emptied:
    paths of files to remove although points refer to them."""
    names = [*_without_point(series), *sorted(gone)]
    kept = referred(series, gone, check).difference(emptied) if names else set()
    moved = half_points.repacked(series)
    if moved and references.is_lost(series, kept):  # somebody may restore the lost table from a copy
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
    """Return {name: bytes} of the files of a directory except those that state what it is. Anything but a file is not
    nbdpull's, such as a folder that a file server makes for itself."""
    folder = f"{series.folder}/{point}"
    names = sorted(set(series.store.files(folder)) - _TELLING)
    return {name: series.store.size(f"{folder}/{name}") or 0 for name in names}


def _is_late(series: Series, name: str, is_point: bool, grace: float) -> bool:
    """Return whether it is too early to remove any file of a directory. Moved frames that are moved again are removed
    at once; without locks, another run may just be moving frames to the directory."""
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
    rest = how.locks.of({f"{folder}/{file}": size for file, size in left.free.items() if file not in due})
    age = half_points.seconds_set_apart(series, left.point)
    going = _deleted(series, left.point, due, age, how)
    gone = sum(going.values())
    freed = max(0, gone - found.locked)
    if is_late or left.shared or len(going) < len(left.free):
        waiting = max(0, sum(left.free.values()) - gone - rest.locked)
        return Swept(freed, waiting, left.shared) + found + rest
    strange = set(series.store.names(folder)) - _TELLING
    is_to_stay = strange or left.point == how.last  # the manifest of the last point remains
    if is_to_stay or (going and not has_locks):  # the mark of a sweep outlives the files
        return Swept(freed, points=(left.point,) if is_point and going else ()) + found
    if lock_free.may_sweep(series, left.point, age):
        sweep_mark.drop(series, left.point)
        series.store.remove_folder(folder)  # with the file that states what it is, its last one
    return Swept(freed, points=(left.point,) if is_point and has_locks else ()) + found


def _deleted(series: Series, name: str, due: dict[str, int], age: float, how: _How) -> dict[str, int]:
    """Remove files of a directory; return those that were removed. age: what seconds_set_apart returned when the files
    were listed."""
    gone: dict[str, int] = {}
    if due and lock_free.may_sweep(series, name, age):
        sweep_mark.put(series, name)
    moved = {file for file in due if f"{name}/{file}" in how.moved}
    if moved and lock_free.has_more(series, how.points):  # which may show frames of them that are nowhere else
        due = {file: size for file, size in due.items() if file not in moved}
    for file, size in due.items():
        if not lock_free.may_sweep(series, name, age):
            break
        series.store.delete(f"{series.folder}/{name}/{file}")
        gone[file] = size
    return gone
