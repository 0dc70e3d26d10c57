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
from ..crypto import age
from ..format import layout
from ..repository import half_points, key_files, marker, point_choice, references, series_choice
from ..repository.series import Point, Series
from ..storage import place
from ..storage.place import Versioned
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
    """A point as of a time. series: in a store as of then. files: what it refers to, {path: id of a sound version}."""

    series: Series
    point: Point
    when: datetime
    files: dict[str, str]


def undelete(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Bring points back, each as of its commit, or of the time that is told. NoSuchPoint where there is no version of
    one, Damaged where some of its files have none; UsageError, StoreError, AccessDenied, OutputError."""
    now = place.versioned(options.store)
    if ALL_POINTS in options.points and options.as_of is None:
        raise errors.UsageError("all: say as of when, with --as-of: what was removed on purpose is to stay so")
    found = [each for wanted in options.points for each in _found(options, wanted, now, check)]
    check()
    return Result([_brought_back(each, now) for each in found])


def _found(options: Options, wanted: str, now: Versioned, check: Check) -> Iterator[_Past]:
    if options.as_of is None:
        yield _as_of_its_commit(options, wanted, now, check)
        return
    when = earlier.moment(options.as_of)
    root = place.as_of(options.store, when)
    if wanted != ALL_POINTS:
        series, point = store_choice.find_point(root, wanted, options.domain)
        yield _Past(series, point, when, _held(series, point, now, check))
        return
    for series in store_choice.find_domains(root, options.domain):
        points, refused = series.load()
        for error in refused.values():
            raise error
        yield from (_Past(series, point, when, _held(series, point, now, check)) for point in points)


def _as_of_its_commit(options: Options, wanted: str, now: Versioned, check: Check) -> _Past:
    """All that a point refers to was there when its manifest was made. That may have been more than once: what counts
    is the first time of which all is left. A forged one comes later."""
    paths = now.written(layout.MANIFEST)
    known = {path.split("/")[1]: path for path in paths if len(path.split("/")) == 3 and _is_of(path, options.domain)}
    ids = point_choice.beginning_with(wanted, [name for name in known if layout.POINT_ID.match(name)])
    if len(ids) > 1:
        raise point_choice.ambiguous(wanted, ids)
    flaw: errors.NbdpullError = errors.NoSuchPoint(f"{options.store} has no version of a point {wanted}")
    for when in paths[known[ids[0]]] if ids else ():
        check()
        try:
            return _whole(known[ids[0]], when + _SECOND, now, check)
        except (errors.Damaged, errors.StoreError, errors.FormatTooNew, errors.FormatTooOld) as error:
            flaw = error
    raise flaw


def _is_of(path: str, domain: Optional[str]) -> bool:
    return domain is None or path.split("/")[0] == layout.folder_name(domain)


def _whole(path: str, when: datetime, now: Versioned, check: Check) -> _Past:
    """The point of that manifest; Damaged where some of it is nowhere."""
    folder, name, _ = path.split("/")
    store = marker.open_store(place.as_of(now.root, when))
    [series] = [each for each in series_choice.folders(store) if each.folder == folder]
    point = series.point_in(name)
    series = series_choice.renamed(series, [point])
    return _Past(series, point, when, _held(series, point, now, check))


def _held(series: Series, point: Point, now: Versioned, check: Check) -> dict[str, str]:
    """{path: id of the version to have back} of all that a point refers to: of then is only which files that is. What
    was damaged then may be sound by now, and else there may be a sound version."""
    with series.store.looking(series.folder):
        entries = references.standing(series, references.of_point(series, point))
    return now.holding({f"{series.folder}/{each.path}": (each.size, each.sha256) for each in entries}, check)


def _brought_back(past: _Past, now: Versioned) -> Back:
    """The manifest last, as of any point; and what said that it was removed goes."""
    series = past.series
    manifest = f"{series.folder}/{past.point.id}/{layout.MANIFEST}"
    of_store = {**now.as_it_was(series.store, [layout.MARKER]), **_keys(now)}
    count = now.bring_back({**of_store, **past.files})
    count += now.bring_back(now.as_it_was(series.store, [manifest]))
    back = Series(marker.open_store(now.root), series.domain, series.folder)
    half_points.end_setting_apart(back, past.point.id)
    _require_files(back, back.point_in(past.point.id))
    return Back(series.domain, past.point.id, past.when.isoformat(timespec="seconds"), count)


def _require_files(series: Series, point: Point) -> None:
    with series.store.looking(series.folder):
        for entry in references.of_point(series, point):
            if flaw := series.size_flaw(entry):
                raise errors.Damaged(flaw)


def _keys(now: Versioned) -> dict[str, str]:
    """Key files to have back: where a sound one is there, none, as who was shut out since is to stay so; else those
    that were there last."""
    return {} if any(key_files.sound(now)) else now.last(layout.KEYS, key_files.may_be, age.MAX_FILE)
