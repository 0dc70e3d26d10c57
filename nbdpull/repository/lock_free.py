"""A commit in a store in which no lock keeps writers apart: what has to be proved before it, and after it.

Who else writes there is not known, only what shows of it. So a point counts from when its manifest appears, as
anywhere, but its writer looks once more, and takes the manifest back where it meets another one: the later one of two
always sees the earlier one. Where locks hold, nothing is asked. Owns: these proofs. Must not know: how a point is made.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Callable

from ..core import errors
from ..format import layout, moved
from . import grace, half_points, references, sweep_mark
from .series import Point, Series


def require_alive(series: Series, point_id: str) -> None:
    """Before the last files of a point are made. Busy where nothing was made in it for so long, now or in between, that
    another machine may take it for one that nobody works on, and be about to remove it."""
    if stood(series, point_id):
        raise errors.Busy(
            f"nothing was written of point {point_id} for so long that it may be removed as dead: pull again"
        )


def stood(series: Series, point_id: str) -> bool:
    """Whether nothing was made for so long in the directory of a point that is not committed."""
    folder, store = f"{series.folder}/{point_id}", series.store
    if store.has_locks:
        return False
    with store.looking(folder):
        ages = sorted(store.seconds_since_change(f"{folder}/{name}") for name in store.names(folder))
    return any(older - newer > grace.COUNTED_ON for newer, older in zip([0.0, *ages], ages))


def require_base(series: Series, base: str) -> None:
    """Before the manifest of a point appears, and after it. base: id of a point whose files it refers to. Busy where
    that was removed so long ago that its files may be about to go; also where a copy is about to take it back."""
    if series.store.has_locks:
        return
    if sweep_mark.is_young(series, base) or (not series.has_point(base) and _is_doomed(series, base)):
        raise errors.Busy(
            f"point {base} of {series.domain}, which this one builds on, was removed while it was made, and too long "
            "ago to count on its files: try again"
        )


def _is_doomed(series: Series, name: str) -> bool:
    """Whether files of a directory without a point may be about to go: it was not set apart just now, or a sweep has
    begun. Who sets one apart and then looks for the mark of a sweep, and the sweep that has left that and then looks
    how old it is, do not miss each other."""
    try:
        is_old = half_points.seconds_set_apart(series, name) > grace.COUNTED_ON
    except errors.OutputError:  # a sweep has removed what told of it
        return True
    return is_old or sweep_mark.is_young(series, name)


def may_sweep(series: Series, name: str, age: float) -> bool:
    """Before anything goes of what is left of a removed point: whether what was seen of it still counts. age: see
    half_points.seconds_set_apart, as it was then. That is the clock, as that of a machine stands still with it. Not
    where a copy has set it apart anew, or made it a point."""
    if series.store.has_locks:
        return True
    try:
        passed = half_points.seconds_set_apart(series, name, anew=True) - age
    except errors.OutputError:
        return False
    return -grace.MARGIN <= passed <= grace.COUNTED_ON


def prove(series: Series, point: Point, known: Collection[str], require_still: Callable[[], None]) -> None:
    """When the manifest of a point is there: it refers to what is there, and has its number for itself. known: ids of
    points that have other numbers; require_still: asks for what else its writer counts on. Else it is removed, as any
    point: another run may build on it by now. Busy, Damaged."""
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
        except errors.NbdpullError:
            raise type(error)(f"{error}; and its manifest could not be taken back: remove point {point.id}") from error
        raise


def points(series: Series) -> list[str]:
    """Ids of the points that are there, be they readable or not."""
    folders = series.store.folders(series.folder)
    return [name for name in folders if layout.POINT_ID.match(name) and series.has_point(name)]


def has_more(series: Series, known: Collection[str]) -> bool:
    """Whether by now there is any other point. Who commits a point and then looks for the mark of a sweep, and the
    sweep that has left that and then looks for points, do not miss each other."""
    with series.store.looking(series.folder, anew=True):
        return any(name not in known for name in points(series))


def require_stays(series: Series, path: str) -> None:
    """Of a file that was there, and of which a point may show what no other one does, when that has its manifest. Busy
    where a sweep, which has not seen the point, has removed it, as it was moved, or may be removing it. A pull shows of
    its base's files only what the base does, and need not ask."""
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
    """Of a directory of a removed point that is to get files again: Busy where a prune may be about to empty it."""
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
    except errors.OutputError:  # it looks like what a dead run left
        age = series.store.seconds_since_change(f"{series.folder}/{name}")
    if age > grace.COUNTED_ON:
        raise _doomed(series, name)


def require_set_apart(series: Series, name: str, point_id: str) -> None:
    """The same of one that has got its files. What says that it is one may have gone with a prune that had begun
    before: then anybody may take it for what a dead run left. point_id: of the point that is made, which may have its
    manifest by now."""
    if not series.store.has_locks and (name == point_id or not series.has_point(name)) and _is_doomed(series, name):
        raise _doomed(series, name)


def _doomed(series: Series, name: str) -> errors.Busy:
    return errors.Busy(
        f"what is left of point {name} of {series.domain} may be removed any moment; copy again a day after nbdpull "
        "prune has removed it"
    )
