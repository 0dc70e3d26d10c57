"""A commit in a store in which no lock keeps writers apart: what has to be proved before it, and after it.

Who else writes there is not known, only what shows of it. So a point counts from when its manifest appears, as
anywhere, but its writer looks once more, and takes the manifest back where it meets another one: the later one of two
always sees the earlier one. Where locks hold, nothing is asked. Owns: these proofs. Must not know: how a point is made.
"""

from __future__ import annotations

from collections.abc import Collection

from ..core import errors
from ..format import layout
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
    with store.looking(folder, anew=True):
        ages = sorted(store.seconds_since_change(f"{folder}/{name}") for name in store.names(folder))
    return any(older - newer > grace.COUNTED_ON for newer, older in zip([0.0, *ages], ages))


def require_base(series: Series, point_id: str, base: str) -> None:
    """Before the manifest of a point appears. base: id of the point whose files it refers to. Busy where that was
    removed, and so long ago, maybe, that its files are about to go."""
    if series.store.has_locks or series.has_point(base):
        return
    if series.store.seconds_since_change(f"{series.folder}/{point_id}/{half_points.ANNOUNCED}") > grace.COUNTED_ON:
        raise errors.Busy(
            f"point {base} of {series.domain}, which this one builds on, was removed while it was made, and that took "
            "too long to count on its files: pull again"
        )


def prove(series: Series, point: Point, known: Collection[str]) -> None:
    """When the manifest of a point is there: it refers to what is there, and has its number for itself. known: ids of
    points that have other numbers. Else it is removed, as any point: another run may build on it by now. Busy,
    Damaged."""
    if series.store.has_locks:
        return
    try:
        with series.store.looking(series.folder, anew=True):
            _require_alone(series, point, known)
            _require_files(series, point)
    except errors.NbdpullError as error:
        try:
            half_points.give_up(series, point.id)
        except errors.NbdpullError:
            raise type(error)(f"{error}; and its manifest could not be taken back: remove point {point.id}") from error
        raise


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


def require_set_apart(series: Series, name: str) -> None:
    """The same of one that has got its files. What says that it is one may have gone with a prune that had begun
    before: then anybody may take it for what a dead run left."""
    if series.store.has_locks:
        return
    try:
        is_old = half_points.seconds_set_apart(series, name) > grace.COUNTED_ON
    except errors.OutputError:
        is_old = True
    if is_old and not series.has_point(name):
        raise _doomed(series, name)


def require_soon(series: Series, point_id: str, began: float) -> None:
    """Before each file of a copied point appears, and its manifest. began: when it was looked at what it counts on, by
    this host's time. Busy where that is so long ago that files of points that were removed since may be about to go."""
    if grace.is_over(series.store, began):
        raise errors.Busy(
            f"the copy of point {point_id} of {series.domain} took too long to count on what was there when it began: "
            "copy again"
        )


def _doomed(series: Series, name: str) -> errors.Busy:
    return errors.Busy(
        f"what is left of point {name} of {series.domain} may be removed any moment; copy again a day after nbdpull "
        "prune has removed it"
    )
