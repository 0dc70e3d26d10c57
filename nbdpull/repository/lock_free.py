"""A commit in a store where no lock separates writers: what must be proved before and after the commit.

A writer does not know the other writers, only what they have written. So a point counts from when its manifest appears,
as in any store, but its writer checks once more afterwards, and withdraws the manifest if it finds another writer: the
later one of two always sees the earlier one. In a store with locks these functions check nothing. Owns: these proofs.
Must not know: how a point is made.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Callable

from ..core import errors
from ..format import layout, moved
from . import grace, half_points, references, sweep_mark
from .series import Point, Series


def require_alive(series: Series, point_id: str) -> None:
    """Raise Busy if nothing was written in a point for so long, until now or in between, that another machine may take
    it for abandoned and be about to remove it. For use before the last files of the point are made."""
    if stood(series, point_id):
        raise errors.Busy(
            f"nothing was written of point {point_id} for so long that it may be removed as dead: pull again"
        )


def stood(series: Series, point_id: str) -> bool:
    """Return whether the directory of an uncommitted point was unchanged for too long, until now or between two of its
    files."""
    folder, store = f"{series.folder}/{point_id}", series.store
    if store.has_locks:
        return False
    with store.looking(folder):
        ages = sorted(store.seconds_since_change(f"{folder}/{name}") for name in store.names(folder))
    return any(older - newer > grace.COUNTED_ON for newer, older in zip([0.0, *ages], ages))


def require_base(series: Series, base: str) -> None:
    """Raise Busy if the base was removed so long ago that its files may soon be removed, even if a copy is about to
    restore the base. For use before the manifest of a point appears, and after that.

    base: id of a point whose files the new point refers to.
    """
    if series.store.has_locks:
        return
    if sweep_mark.is_young(series, base) or (not series.has_point(base) and _is_doomed(series, base)):
        raise errors.Busy(
            f"point {base} of {series.domain}, which this one builds on, was removed meanwhile, and its files may soon "
            "be removed, too: try again"
        )


def _is_doomed(series: Series, name: str) -> bool:
    """Return whether files of a directory without a point may soon be removed: it was not set apart recently, or a
    sweep has begun. One run sets a directory apart and then looks for the mark of a sweep; a sweep leaves its mark and
    then checks the directory's age: so the two do not miss each other."""
    try:
        is_old = half_points.seconds_set_apart(series, name) > grace.COUNTED_ON
    except errors.OutputError:  # a sweep has removed the record of it
        return True
    return is_old or sweep_mark.is_young(series, name)


def may_sweep(series: Series, name: str, age: float) -> bool:
    """Return whether what was seen of a removed point's directory still holds, so that its files may be removed. It
    does not if a copy has set the directory apart again, or made it a point.

    age: what half_points.seconds_set_apart returned then. This age serves as the clock, because a machine's own clock
    stops when the machine is suspended.
    """
    if series.store.has_locks:
        return True
    try:
        passed = half_points.seconds_set_apart(series, name, anew=True) - age
    except errors.OutputError:
        return False
    return -grace.MARGIN <= passed <= grace.COUNTED_ON


def prove(series: Series, point: Point, known: Collection[str], require_still: Callable[[], None]) -> None:
    """Prove, once the manifest of a point exists, that the files it refers to exist and that no other point has its
    number. If that fails, the point is removed like any point, because another run may build on it already.

    known: ids of points that have other numbers; require_still: checks whatever else the writer relies on. Busy,
    Damaged.
    """
    if series.store.has_locks:
        return
    try:
        with series.store.looking(series.folder, anew=True):
            _require_alone(series, point, known)
            _require_files(series, point)
            require_still()
    except errors.NbdpullError as error:
        try:
            half_points.give_up(series, point.id)
        except errors.NbdpullError:  # not a new error: that of a signal is made with its number
            error.args = (f"{error}; and its manifest could not be taken back: remove point {point.id}",)
        raise


def points(series: Series) -> list[str]:
    """Return the ids of the existing points, readable or not."""
    folders = series.store.folders(series.folder)
    return [name for name in folders if layout.POINT_ID.match(name) and series.has_point(name)]


def has_more(series: Series, known: Collection[str]) -> bool:
    """Return whether any point exists now that is not known. One run commits a point and then looks for the mark of a
    sweep; a sweep leaves its mark and then looks for points: so the two do not miss each other."""
    with series.store.looking(series.folder, anew=True):
        return any(name not in known for name in points(series))


def require_stays(series: Series, path: str) -> None:
    """Raise Busy if a sweep that has not seen a new point has removed a file that was moved, or may be removing it.

    For use once the manifest of the point exists, on each file that existed before and of which the point may show
    frames that no other point shows. A pull shows only those frames of its base's files that the base shows, and need
    not check this.
    """
    name, table = path.partition("/")[0], f"{series.folder}/{moved.path_of(path)}"
    if series.store.has_locks:
        return
    if not series.store.holds(f"{series.folder}/{path}"):
        raise errors.Busy(f"{path} of {series.domain} was repacked meanwhile: copy again")
    if not (sweep_mark.is_young(series, name) and series.store.holds(table)):
        return
    was_moved = series.store.seconds_since_change(table) - sweep_mark.age(series, name)
    if was_moved > grace.of(series.store) - grace.MARGIN:
        raise errors.Busy(
            f"a prune may be removing {path} of {series.domain}, which was repacked: copy again when that began "
            f"{grace.MARKED / 3600:g} h ago"
        )


def _require_alone(series: Series, point: Point, known: Collection[str]) -> None:
    for name in series.store.folders(series.folder):
        if name == point.id or name in known or not layout.POINT_ID.match(name):
            continue
        if half_points.number(series, name) == point.manifest.sequence:
            raise errors.Busy(f"another run made point {name} of {series.domain} meanwhile: this one is given up")


def _require_files(series: Series, point: Point) -> None:
    for entry in references.of_point(series, point):
        if flaw := series.size_flaw(entry):
            raise errors.Damaged(f"{flaw}: somebody removed it while point {point.id} was made")


def require_not_doomed(series: Series, name: str) -> None:
    """Raise Busy if a prune may be about to empty a removed point's directory, to which files are to be added again;
    StoreError if none can be added for as long as points refer to files there: until then the directory remains."""
    if series.store.has_locks or series.has_point(name):
        return
    if sweep_mark.is_young(series, name):
        raise errors.Busy(
            f"a prune may be removing files of what is left of point {name} of {series.domain}; copy again when that "
            f"began {grace.MARKED / 3600:g} h ago"
        )
    if not half_points.has_files(series, name):
        return
    try:
        age = half_points.seconds_set_apart(series, name)
    except errors.OutputError:  # it looks like the directory of a dead run
        age = series.store.seconds_since_change(f"{series.folder}/{name}")
    if age > grace.COUNTED_ON and _is_needed(series, name):
        raise errors.StoreError(
            f"point {name} was removed from {series.store.root}, and points there still need some of its files: while "
            "they do, the rest of its files cannot be brought back; copy to another store"
        )
    if age > grace.COUNTED_ON:
        raise _doomed(series, name)


def _is_needed(series: Series, name: str) -> bool:
    """Return whether points refer to files in a directory, or to files that were moved from there."""
    with suppress(errors.Damaged):
        for point in series.load()[0]:
            entries = references.of_point(series, point)
            if any(path.startswith(f"{name}/") for path in references.paths(series, entries)):
                return True
    return False


def require_set_apart(series: Series, name: str, point_id: str) -> None:
    """Raise Busy if a prune may be about to empty a removed point's directory, to which files were added again.

    A prune that had begun before may have removed the record that the directory was set apart: then any other run may
    take it for the directory of a dead run. point_id: of the point being made, whose manifest may exist by now.
    """
    if not series.store.has_locks and (name == point_id or not series.has_point(name)) and _is_doomed(series, name):
        raise _doomed(series, name)


def _doomed(series: Series, name: str) -> errors.Busy:
    return errors.Busy(
        f"what is left of point {name} of {series.domain} may be removed at any moment: copies and prunes remove it "
        "when it is 26 hours old, and a day later the point can be copied"
    )
