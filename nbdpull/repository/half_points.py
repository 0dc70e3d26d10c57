"""Directories without a manifest: of points being made by a run that lives, left by one that died, or removed; and of
frames that were moved.

Owns: which is which, what each says of its run, who writes to a series, the number of its next point, and the removal
of one. Must not know: how a point is made, or when one may be removed.
"""

from __future__ import annotations

import hashlib
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

ANNOUNCED = announcement.NAME
REMOVED = "manifest.removed"  # the name of the manifest of a point that was removed
_APART = b"This directory was made by a copy. Points of other directories refer to its files.\n"


@contextmanager
def writing(series: Series, doing: str = "pull") -> Iterator[None]:
    """Hold the series for one writer, its directory made where it is new; Busy if another process holds it. doing: the
    verb, for the message."""

    def holder() -> str:
        known = filter(None, (announced(series, name) for name in names(series)))
        alive = [each for each in known if each.is_alive is not False]
        return f"nbdpull {alive[-1].whose}" if alive else "another nbdpull"

    series.store.make_folder(series.folder)
    with series.store.locked(series.folder, f"{doing} {series.domain}", holder):
        yield


def names(series: Series, committed: Container[str] = ()) -> list[str]:
    """Their ids. What is no point's directory is not ours to remove. committed: ids of points that are known to be, and
    are not looked for."""
    with series.store.looking(series.folder):
        known = _without_manifest(series, committed)
        return [name for name in known if not (_is_removed(series, name) or _is_repacked(series, name))]


def removed(series: Series, committed: Container[str] = ()) -> list[str]:
    """Ids of points that were removed, of which there are files yet: other points may refer to them."""
    with series.store.looking(series.folder):
        return [name for name in _without_manifest(series, committed) if _is_removed(series, name)]


def repacked(series: Series) -> list[str]:
    """Names of the directories of files that frames were moved to."""
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
    """What that was; Damaged, FormatTooNew, FormatTooOld."""
    path = f"{series.folder}/{name}/{REMOVED}"
    data = series.store.read(path)
    return Point(manifest.decode(data, series.store.path(path), series.store.seal), hashlib.sha256(data).hexdigest())


def removed_points(series: Series, committed: Container[str] = ()) -> dict[str, Point]:
    """{name of its directory: what that was} of each removed point that still tells; a damaged one hides no other."""
    names = removed(series, committed)
    found = zip(names, series.store.several(partial(_readable, series), names))
    return {name: point for name, point in found if point}


def _readable(series: Series, name: str) -> Optional[Point]:
    with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
        return removed_point(series, name)
    return None


def next_sequence(series: Series, heads: Sequence[Head], refused: Collection[str]) -> int:
    """The number of a new point, with what Series.heads gave: no point had it, be it removed since. Copies elsewhere
    may have that one, and go by the numbers. A point that cannot be read now may be read again, and must not come after
    the points made meanwhile: the number that it seems to have counts, too."""
    gone = removed_points(series, {head.point for head in heads}).values()
    known = [*(head.sequence for head in heads), *(point.manifest.sequence for point in gone)]
    known += [_seeming_sequence(series, name) for name in refused]
    return 1 + len(refused) + max(known, default=0)


def number(series: Series, name: str) -> Optional[int]:
    """That which a committed point seems to have; None of what is none."""
    data = series.store.find(f"{series.folder}/{name}/{layout.MANIFEST}")
    return None if data is None else manifest.seeming_sequence(data)


def _seeming_sequence(series: Series, name: str) -> int:
    """Of a point that is refused; 0 where nothing tells."""
    with suppress(errors.NbdpullError):
        return manifest.seeming_sequence(series.store.read(f"{series.folder}/{name}/{layout.MANIFEST}"))
    return 0


def set_apart(series: Series, name: str) -> bool:
    """Let there be a directory for files of a point that the series has not, or not yet: it is as of one that was
    removed. Return whether it is new."""
    folder = f"{series.folder}/{name}"
    is_new = not series.store.holds(folder)
    if is_new or not series.has_point(name):
        series.store.make_folder(folder)
        if not (_is_removed(series, name) or _is_repacked(series, name)):
            series.store.publish(f"{folder}/{REMOVED}", _APART)
    return is_new


def renew(series: Series, name: str) -> None:
    """Of the directory of a removed point: have it count from now how long ago that was; else what a copy adds night by
    night goes after a day. Without locks, only of one on which a copy may count: see lock_free.require_not_doomed."""
    path = f"{series.folder}/{name}/{REMOVED}"
    with suppress(errors.Damaged):
        if _is_removed(series, name) and not series.has_point(name):
            series.store.replace(path, series.store.read(path))


def has_files(series: Series, name: str) -> bool:
    """Whether there is more in the directory of a removed point than what tells that it is one."""
    return any(
        file not in (REMOVED, layout.REPACKED, sweep_mark.NAME)
        for file in series.store.files(f"{series.folder}/{name}")
    )


def end_setting_apart(series: Series, name: str) -> None:
    """Of a committed point."""
    series.store.remove_file(f"{series.folder}/{name}/{REMOVED}")


def seconds_removed(series: Series, name: str) -> float:
    """How long ago that was, by this host's clock; in a copy of the store, how long it is there."""
    return series.store.seconds_since_change(f"{series.folder}/{name}/{REMOVED}")


def seconds_set_apart(series: Series, name: str, anew: bool = False) -> float:
    """The same of frames that were moved, too. anew: as it is now, be it `looking` or not."""
    try:
        return series.store.seconds_since_change(f"{series.folder}/{name}/{REMOVED}", anew)
    except errors.OutputError:
        return series.store.seconds_since_change(f"{series.folder}/{name}/{layout.REPACKED}", anew)


def announced(series: Series, point_id: str) -> Optional[Announcement]:
    """What a half point says of its run; None where it says nothing."""
    path = f"{series.folder}/{point_id}/{announcement.NAME}"
    found = announcement.decode(series.store.read(path)) if series.store.size(path) is not None else None
    return found if found and found.id == point_id else None


def is_copy(series: Series, half: Announcement) -> bool:
    """Whether a half point is not the one that its run made, but a copy, in which nobody works. The run's own place is
    looked at where it is on this machine; the directory's number serves for any."""
    here = f"{series.folder}/{half.id}"
    if half.is_alive is not None:
        same = series.store.is_same(here, os.path.join(half.store, half.folder))
        if same is not None:
            return not same
    return half.inode not in (None, series.store.inode(here))


def is_forsaken(series: Series, point_id: str) -> bool:
    """Whether a half point is so old that nobody can work on it, wherever that would be. Only a store without locks has
    such: there nothing else tells whose a half point of another machine is, and each of its files is made at once."""
    folder = f"{series.folder}/{point_id}"
    return not series.store.has_locks and series.store.seconds_since_change(folder) > grace.of(series.store)


def why_in_use(series: Series, point_id: str, announced: Optional[Announcement]) -> str:
    """Why a half point that no record of this machine tells of stays, "" where it may go. Without locks a clone of this
    machine, with its id, may work there; or a copy may just have begun to go on with it."""
    is_left = series.store.has_locks or (announced and is_copy(series, announced)) or is_forsaken(series, point_id)
    return "" if is_left else "somebody may work on it"


def remove(series: Series, point_id: str) -> None:
    """Remove all of a half point of this machine. If its manifest stays, so does all. Without locks, of one whose
    manifest showed for a moment the files wait for a sweep: somebody may build on it."""
    folder = f"{series.folder}/{point_id}"
    if not series.store.has_locks and _showed(series, point_id):
        return
    if withdrawn(series, point_id):
        with suppress(errors.NbdpullError):  # what says whose it is goes last
            for name in [] if series.store.has_locks else series.store.files(folder):
                if name != ANNOUNCED:
                    series.store.delete(f"{folder}/{name}")
            series.store.remove_folder(folder)


def give_to_sweep(series: Series, point_id: str) -> None:
    """The same of one that may be somebody else's. Without locks it becomes what is left of a removed point: for that
    there are rules, who else may remove its files, and who may make them again."""
    if series.store.has_locks:
        remove(series, point_id)
    else:
        with suppress(errors.OutputExists):
            series.store.publish(f"{series.folder}/{point_id}/{REMOVED}", _APART)


def give_up(series: Series, point_id: str) -> None:
    """Remove a point whose manifest has just appeared: its files go as those of any removed one. OutputError."""
    rename_manifest(series, point_id)


def rename_manifest(series: Series, point_id: str) -> bool:
    """Where nobody is kept out: whether there was a manifest yet. The new name is never without one for a moment, as
    another removal may just have made it: by it all that the point referred to stays for its time."""
    folder = f"{series.folder}/{point_id}"
    data = series.store.find(f"{folder}/{layout.MANIFEST}")
    if data is not None:
        series.store.replace(f"{folder}/{REMOVED}", data)
        series.store.delete(f"{folder}/{layout.MANIFEST}")
    return data is not None


def _showed(series: Series, point_id: str) -> bool:
    """Whether a half point had a manifest that others could see; then it has none any more, if that can be."""
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
    """Whether there is no manifest any more. A commit that failed at its very end may have left one: it has to go
    before all else, and durably, as half a removal would be a point that lacks files."""
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


def end_announcement(series: Series, point_id: str) -> None:
    """Of a committed point there is nothing to announce any more. A run that died just after its commit has left that
    of the newest one; of those before, the next run has ended it."""
    series.store.remove_file(f"{series.folder}/{point_id}/{announcement.NAME}")
