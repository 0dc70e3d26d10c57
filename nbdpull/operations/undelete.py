"""Undelete: points of a bucket that somebody deleted or overwrote, brought back of its old versions.

Owns: as of when a point is looked for, and that it is back whole before it shows. Must not know: how an old version
becomes the newest one (storage/s3_past.py), how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import ALL_POINTS
from ..core.errors import Check, Report
from ..format import layout
from ..repository import half_points, immutable, marker, point_choice, references, series_choice
from ..repository.series import Point, Series
from ..storage import place
from ..storage.base import Store
from . import earlier, store_choice
from .options import UndeleteOptions as Options

_SECOND = timedelta(seconds=1, microseconds=-1)  # servers tell times in seconds


class Back(NamedTuple):
    """A point that is there again. as_of: ISO 8601, when it was so; files: how many were not so."""

    domain: str
    point: str
    as_of: str
    files: int


@dataclass(frozen=True)
class Result:
    """What is there again, in the order in which it was asked for."""

    points: list[Back]


class _Past(NamedTuple):
    """A point as of a time. series: in a store as of then."""

    series: Series
    point: Point
    when: datetime


def undelete(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Bring points back, each as of its commit, or of the time that is told. NoSuchPoint where there is no version of
    one, Damaged where some of its files have none; UsageError, StoreError, AccessDenied, OutputError."""
    place.versioned(options.store)
    if ALL_POINTS in options.points and options.as_of is None:
        raise errors.UsageError("all: say as of when, with --as-of: what was removed on purpose is to stay so")
    found = [each for wanted in options.points for each in _found(options, wanted, check)]
    return Result([_brought_back(options.store, each, check) for each in found])


def _found(options: Options, wanted: str, check: Check) -> Iterator[_Past]:
    if options.as_of is None:
        yield _as_of_its_commit(options, wanted, check)
        return
    when = earlier.moment(options.as_of)
    root = place.as_of(options.store, when)
    if wanted != ALL_POINTS:
        yield _Past(*store_choice.find_point(root, wanted, options.domain), when)
        return
    for series in store_choice.find_domains(root, options.domain):
        points, refused = series.load()
        for error in refused.values():
            raise error
        yield from (_Past(series, point, when) for point in points)


def _as_of_its_commit(options: Options, wanted: str, check: Check) -> _Past:
    """All that a point refers to was there when its manifest was made. That may have been more than once: what counts
    is the first time of which all is left. A forged one comes later."""
    paths = place.versioned(options.store).written(layout.MANIFEST)
    known = {path.split("/")[1]: path for path in paths if len(path.split("/")) == 3 and _is_of(path, options.domain)}
    ids = point_choice.beginning_with(wanted, [name for name in known if layout.POINT_ID.match(name)])
    if len(ids) > 1:
        raise point_choice.ambiguous(wanted, ids)
    flaw: errors.NbdpullError = errors.NoSuchPoint(f"{options.store} has no version of a point {wanted}")
    for when in paths[known[ids[0]]] if ids else ():
        check()
        try:
            return _whole(options.store, known[ids[0]], when + _SECOND)
        except (errors.Damaged, errors.StoreError, errors.FormatTooNew, errors.FormatTooOld) as error:
            flaw = error
    raise flaw


def _is_of(path: str, domain: Optional[str]) -> bool:
    return domain is None or path.split("/")[0] == layout.folder_name(domain)


def _whole(root: str, path: str, when: datetime) -> _Past:
    """The point of that manifest; Damaged where it was not whole."""
    folder, name, _ = path.split("/")
    store = marker.open_store(place.as_of(root, when))
    [series] = [each for each in series_choice.folders(store) if each.folder == folder]
    point = series.point_in(name)
    series = series_choice.renamed(series, [point])
    _require_files(series, point)
    return _Past(series, point, when)


def _require_files(series: Series, point: Point) -> None:
    with series.store.looking(series.folder):
        for entry in references.of_point(series, point):
            if flaw := series.size_flaw(entry):
                raise errors.Damaged(flaw)


def _brought_back(root: str, past: _Past, check: Check) -> Back:
    """The manifest last, as of any point; and what said that it was removed goes."""
    series, now = past.series, place.versioned(root)
    with series.store.looking(series.folder):
        held = references.paths(series, references.of_point(series, past.point))
    check()
    files = [f"{series.folder}/{path}" for path in sorted(held)]
    count = now.bring_back(series.store, [*_of_store(series.store, now), *files])
    count += now.bring_back(series.store, [f"{series.folder}/{past.point.id}/{layout.MANIFEST}"])
    back = Series(marker.open_store(root), series.domain, series.folder)
    half_points.end_setting_apart(back, past.point.id)
    _require_files(back, back.point_in(past.point.id))
    return Back(series.domain, past.point.id, past.when.isoformat(timespec="seconds"), count)


def _of_store(past: Store, now: Store) -> list[str]:
    """The marker, and the key files: not those that were removed since, unless all are gone, as who had them is not to
    open the store any more."""
    was, left = immutable.whole(past), set(now.files(layout.KEYS))
    keys = [path for path in was if path.startswith(f"{layout.KEYS}/")]
    gone = [path for path in keys if path.rpartition("/")[2] not in left]
    return [path for path in was if path not in gone or len(gone) == len(keys)]
