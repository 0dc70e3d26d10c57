"""Directories without a manifest: of points being made, left by a dead run, or removed; and of moved frames.

Owns: how to distinguish these, what each records of its run, which process writes to a series, the number of its next
point, and the removal of a half point. Must not know: how a point is made, or when a half point may be removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Optional

from ..core import errors
from ..format import layout, manifest
from ..format.manifest import Head
from . import announcement, grace, sweep_mark
from .announcement import Announcement
from .series import Point, Series

log = logging.getLogger("nbdpull.store")
ANNOUNCED = announcement.NAME
REMOVED = "manifest.removed"  # name of the manifest of a removed point
_APART = b"This directory was made by a copy. Points of other directories refer to its files.\n"


@contextmanager
def writing(series: Series, doing: str = "pull") -> Iterator[None]:
    """Hold the series for one writer, and make its directory if it is new. Busy if another process holds it. doing: the
    verb, for the message."""

    def holder() -> str:
        known = filter(None, (announced(series, name) for name in names(series)))
        alive = [each for each in known if each.is_alive is not False]
        return f"nbdpull {alive[-1].whose}" if alive else "another nbdpull"

    series.store.make_folder(series.folder)
    with series.store.locked(series.folder, f"{doing} {series.domain}", holder):
        if series.store.has_locks:
            log.info("locked %s", series.store.path(series.folder))
        yield


def names(series: Series, committed: Container[str] = ()) -> list[str]:
    """Return the ids of the half points. A directory that cannot be a point's is not ours to remove. committed: ids of
    points known to be committed, which are not checked."""
    with series.store.looking(series.folder):
        known = _without_manifest(series, committed)
        return [name for name in known if not (_is_removed(series, name) or _is_repacked(series, name))]


def removed(series: Series, committed: Container[str] = ()) -> list[str]:
    """Return the ids of removed points of which files are left: other points may refer to them."""
    with series.store.looking(series.folder):
        return [name for name in _without_manifest(series, committed) if _is_removed(series, name)]


def repacked(series: Series) -> list[str]:
    """Return the names of the directories of files to which frames were moved."""
    with series.store.looking(series.folder):
        return [name for name in _without_manifest(series) if _is_repacked(series, name)]


def _is_removed(series: Series, name: str) -> bool:
    return series.store.holds(f"{series.folder}/{name}/{REMOVED}")


def _is_repacked(series: Series, name: str) -> bool:
    return series.store.holds(f"{series.folder}/{name}/{layout.REPACKED}")


def _without_manifest(series: Series, committed: Container[str] = ()) -> list[str]:
    with series.store.looking(series.folder):
        folders = [name for name in series.store.folders(series.folder) if name not in committed]
        return [name for name in folders if layout.POINT_ID.match(name) and not series.has_point(name)]


def removed_point(series: Series, name: str) -> Point:
    """Return the removed point. Damaged, FormatTooNew, FormatTooOld."""
    path = f"{series.folder}/{name}/{REMOVED}"
    data = series.store.read(path)
    return Point(manifest.decode(data, series.store.path(path), series.store.seal), hashlib.sha256(data).hexdigest())


def removed_points(series: Series, committed: Container[str] = ()) -> dict[str, Point]:
    """Return {name of its directory: point} of each removed point that can be read; a damaged one hides no other."""
    names = removed(series, committed)
    found = zip(names, series.store.several(partial(_readable, series), names))
    return {name: point for name, point in found if point}


def _readable(series: Series, name: str) -> Optional[Point]:
    with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
        return removed_point(series, name)
    return None


def next_sequence(series: Series, heads: Sequence[Head], refused: Collection[str]) -> int:
    """Return a number for a new point that no point, removed ones included, has had. heads, refused: as Series.heads
    returns them.

    Copies elsewhere may still contain a removed point, and points are ordered by number. A point that is unreadable now
    may become readable, and must not come after the points made meanwhile: so the number that it seems to have counts,
    too.
    """
    gone = removed_points(series, {head.point for head in heads}).values()
    known = [*(head.sequence for head in heads), *(point.manifest.sequence for point in gone)]
    known += [_seeming_sequence(series, name) for name in refused]
    return 1 + len(refused) + max(known, default=0)


def number(series: Series, name: str) -> Optional[int]:
    """Return the number that a committed point seems to have; None if there is no such point."""
    data = series.store.find(f"{series.folder}/{name}/{layout.MANIFEST}")
    return None if data is None else manifest.seeming_sequence(data)


def _seeming_sequence(series: Series, name: str) -> int:
    """Return the number that a refused point seems to have; 0 if it cannot be determined."""
    with suppress(errors.Failure):
        return number(series, name) or 0
    return 0


def set_apart(series: Series, name: str) -> bool:
    """Make a directory for files of a point that the series does not have, or not yet, as if the point had been
    removed. Return whether the directory is new."""
    folder = f"{series.folder}/{name}"
    is_new = not series.store.holds(folder)
    if is_new or not series.has_point(name):
        series.store.make_folder(folder)
        if not (_is_removed(series, name) or _is_repacked(series, name)):
            series.store.publish(f"{folder}/{REMOVED}", _APART)
    return is_new


def renew(series: Series, name: str) -> None:
    """Restart the time since the removal of a point, by its directory; otherwise what a copy adds night by night would
    be removed after a day. Without locks, call this only for a directory on which a copy may rely: see
    lock_free.require_not_doomed."""
    path = f"{series.folder}/{name}/{REMOVED}"
    with suppress(errors.Damaged):
        if _is_removed(series, name) and not series.has_point(name):
            series.store.replace(path, series.store.read(path))


def has_files(series: Series, name: str) -> bool:
    """Return whether the directory of a removed point contains more than the files that mark it as such."""
    return any(
        file not in (REMOVED, layout.REPACKED, sweep_mark.NAME)
        for file in series.store.files(f"{series.folder}/{name}")
    )


def end_setting_apart(series: Series, name: str) -> None:
    """Unmark the directory of a point that is now committed."""
    series.store.remove_file(f"{series.folder}/{name}/{REMOVED}")


def seconds_removed(series: Series, name: str) -> float:
    """Return the seconds since the point was removed; in a copy of the store, since it was copied. In a bucket, by the
    clock of its server; in a directory, from the file's ctime to now by the clock of this host."""
    return series.store.seconds_since_change(f"{series.folder}/{name}/{REMOVED}")


def seconds_set_apart(series: Series, name: str, anew: bool = False) -> float:
    """Return the seconds since the point was removed, or frames were moved to the directory. anew: read the present
    value even inside a `looking` block."""
    try:
        return series.store.seconds_since_change(f"{series.folder}/{name}/{REMOVED}", anew)
    except errors.OutputError:
        return series.store.seconds_since_change(f"{series.folder}/{name}/{layout.REPACKED}", anew)


def announced(series: Series, point_id: str) -> Optional[Announcement]:
    """Return the announcement in a half point; None if there is no valid one."""
    path = f"{series.folder}/{point_id}/{announcement.NAME}"
    found = announcement.decode(series.store.read(path)) if series.store.size(path) is not None else None
    return found if found and found.id == point_id else None


def is_copy(series: Series, half: Announcement) -> bool:
    """Return whether a half point is a copy of the one that its run made: no run works in a copy. If the run was
    started on this machine, compare with the run's own directory; the inode of the directory works for any machine."""
    here = f"{series.folder}/{half.id}"
    if half.is_alive is not None:
        same = series.store.is_same(here, os.path.join(half.store, half.folder))
        if same is not None:
            return not same
    return half.inode not in (None, series.store.inode(here))


def is_forsaken(series: Series, point_id: str) -> bool:
    """Return whether a half point is so old that no run on any machine can still be working on it. That is only
    possible in a store without locks: there nothing else shows whether a half point of another machine is in use, and
    each of its files appears at once."""
    folder = f"{series.folder}/{point_id}"
    return not series.store.has_locks and series.store.seconds_since_change(folder) > grace.of(series.store)


def why_in_use(series: Series, point_id: str, announced: Optional[Announcement]) -> str:
    """Return why a half point that no journal on this machine records must remain, "" if it may be removed. Without
    locks, a clone of this machine, with the same id, may be working there, or a copy may just have begun to resume
    it."""
    is_left = series.store.has_locks or (announced and is_copy(series, announced)) or is_forsaken(series, point_id)
    return "" if is_left else "somebody may be working on it"


def remove(series: Series, point_id: str) -> None:
    """Remove a half point of this machine with all its files; if its manifest cannot be removed, remove nothing.
    Without locks, the files of a half point whose manifest was visible for a moment are left to a sweep: another run
    may build on it."""
    if not series.store.has_locks and _showed(series, point_id):
        return
    if withdrawn(series, point_id):
        discard(series, point_id)


def discard(series: Series, name: str) -> None:
    """Remove a directory without a manifest as far as possible. The file that states what it is goes last: if this is
    interrupted, only that shows who may remove the rest, and when."""
    folder = f"{series.folder}/{name}"
    with suppress(errors.NbdpullError):
        for file in series.store.files(folder):
            if file not in (ANNOUNCED, REMOVED):
                series.store.delete(f"{folder}/{file}")
        series.store.remove_folder(folder)


def give_to_sweep(series: Series, point_id: str) -> None:
    """Remove a half point that may belong to another machine. Without locks, turn it into the remains of a removed
    point: there are rules for which run may remove their files, and which may make them again."""
    if series.store.has_locks:
        remove(series, point_id)
    else:
        with suppress(errors.OutputExists):
            series.store.publish(f"{series.folder}/{point_id}/{REMOVED}", _APART)


def give_up_forsaken(series: Series) -> None:
    """Give half points to a sweep on which no run can still be working: a domain that is gone is not pulled again, and
    so no pull would. Only in a store without locks, see `is_forsaken`."""
    for name in () if series.store.has_locks else names(series):
        if is_forsaken(series, name):
            give_to_sweep(series, name)


def give_up(series: Series, point_id: str) -> None:
    """Remove a point whose manifest has just appeared: its files go like those of any removed point. OutputError."""
    rename_manifest(series, point_id)


def rename_manifest(series: Series, point_id: str) -> bool:
    """Mark a point as removed, for stores without locks; return whether it still had a manifest. The new name exists at
    every moment, as another removal may just have created it: it keeps all files that the point referred to for their
    time."""
    folder = f"{series.folder}/{point_id}"
    data = series.store.find(f"{folder}/{layout.MANIFEST}")
    if data is not None:
        series.store.replace(f"{folder}/{REMOVED}", data)
        series.store.delete(f"{folder}/{layout.MANIFEST}")
    return data is not None


def _showed(series: Series, point_id: str) -> bool:
    """Return whether a half point had a manifest that others could see. If so, take the manifest back if possible."""
    try:
        if series.has_point(point_id):
            give_up(series, point_id)
        is_removed = _is_removed(series, point_id)
    except errors.NbdpullError:
        return True
    if is_removed:
        end_announcement(series, point_id)
    return is_removed


def withdrawn(series: Series, point_id: str) -> bool:
    """Remove the manifest of a half point, if any; return whether none is left. A commit that failed at its very end
    may have left one: it must be removed first, and durably, as a removal that ends halfway would leave a point that
    lacks files."""
    folder = f"{series.folder}/{point_id}"
    manifest_path = f"{folder}/{layout.MANIFEST}"
    try:
        if series.store.size(manifest_path) is None:
            return True
        series.store.remove_file(manifest_path)
        series.store.sync_folder(folder)
        return series.store.size(manifest_path) is None
    except errors.NbdpullError:
        return False


def may_be_point(series: Series, point_id: str, error: errors.NbdpullError) -> bool:
    """Return whether a directory may be a point although its commit failed with this error. It is if another run has
    committed the point. Otherwise the manifest is removed if possible, see `withdrawn`."""
    return isinstance(error, errors.OutputExists) or not withdrawn(series, point_id)


def end_announcement(series: Series, point_id: str) -> None:
    """Remove the announcement of a committed point. A run that died just after its commit leaves that of the newest
    point; those of earlier points were removed by the next run."""
    series.store.remove_file(f"{series.folder}/{point_id}/{announcement.NAME}")
