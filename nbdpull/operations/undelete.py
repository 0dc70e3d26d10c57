"""Undelete: bring deleted or overwritten points of a bucket back from old versions of their objects.

Owns: the time as of which a point is searched, and that it is complete before it becomes visible. Must not know: how an
old version becomes the newest one (see storage/s3_past.py), how the result is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import ALL_POINTS
from ..core.errors import Check, Report
from ..crypto import identity_files
from ..crypto.recipients import Identity
from ..format import layout
from ..repository import (
    half_points,
    key_files,
    key_past,
    marker,
    point_choice,
    references,
    series_choice,
    sweep_mark,
)
from ..repository.series import Point, Series
from ..storage import place
from ..storage.place import Versioned
from . import earlier, store_choice, unlocking
from .options.points import UndeleteOptions as Options

_SECOND = timedelta(seconds=1, microseconds=-1)  # servers give times in whole seconds


class Back(NamedTuple):
    """A point that exists again. as_of: the time of the versions that were searched, ISO 8601; files: number of files
    that were brought back."""

    domain: str
    point: str
    as_of: str
    files: int


@dataclass(frozen=True)
class Result:
    """The points that exist again, in the order in which they were asked for. warnings: about the keys."""

    points: list[Back]
    warnings: list[str]


class _Past(NamedTuple):
    """A point as of a time. series: in the store as of `when`; files: {path: id of a sound version} of what the point
    refers to."""

    series: Series
    point: Point
    when: datetime
    files: dict[str, str]


def undelete(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Bring points back, each as of its commit, or as of the given time.

    NoSuchPoint if there is no version of a point, Damaged if there is no sound version of one of its files; UsageError,
    StoreError, AccessDenied, OutputError.
    """
    now = place.versioned(options.store)
    if ALL_POINTS in options.points and options.as_of is None:
        raise errors.UsageError("all: give a time with --as-of: points removed on purpose should remain removed")
    found = [each for wanted in options.points for each in _found(options, wanted, now, check)]
    for store in {each.series.store.root: each.series.store for each in found}.values():
        unlocking.require_sealed(store, options.identities)
    tried = identity_files.given(options.identities)
    check()
    back = [_brought_back(each, now, tried) for each in found]
    return Result(back, _warnings(found, now, tried))


def _found(options: Options, wanted: str, now: Versioned, check: Check) -> Iterator[_Past]:
    if options.as_of is None:
        yield _as_of_its_commit(options, wanted, now, check)
        return
    when = earlier.moment(options.as_of)
    root = place.as_of(options.store, when)
    if wanted != ALL_POINTS:
        series, point = store_choice.find_point(root, wanted, options.domain, options.identities)
        yield _Past(series, point, when, _held(series, point, now, check))
        return
    for series in store_choice.find_domains(root, options.domain, options.identities):
        points, refused = series.load()
        for error in refused.values():
            raise error
        yield from (_Past(series, point, when, _held(series, point, now, check)) for point in points)


def _as_of_its_commit(options: Options, wanted: str, now: Versioned, check: Check) -> _Past:
    """Return a point as of its commit: everything that a point refers to existed when its manifest was written.

    A manifest may have been written more than once. The first time whose files all still have versions counts, as a
    forged manifest comes later.
    """
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
    """Return the point of the manifest at a path as of a time; Damaged if a part of it has no sound version."""
    folder, name, _ = path.split("/")
    store = marker.open_store(place.as_of(now.root, when))
    [series] = [each for each in series_choice.folders(store) if each.folder == folder]
    point = series.point_in(name)
    series = series_choice.renamed(series, [point])
    return _Past(series, point, when, _held(series, point, now, check))


def _held(series: Series, point: Point, now: Versioned, check: Check) -> dict[str, str]:
    """Return {path: id of the version to bring back} of everything that a point refers to.

    Only the list of files is as of the time of the series: a file that was damaged then may be sound by now, or another
    version of it may be.
    """
    with series.store.looking(series.folder):
        entries = references.holding(series, references.of_point(series, point))
    return now.holding({f"{series.folder}/{each.path}": (each.size, each.sha256) for each in entries}, check)


def _brought_back(past: _Past, now: Versioned, tried: Sequence[Identity]) -> Back:
    """Bring the point back, its manifest last, as for any point, and remove the marks of its removal."""
    series = past.series
    manifest = f"{series.folder}/{past.point.id}/{layout.MANIFEST}"
    of_store = now.as_it_was(series.store, [layout.MARKER])
    if series.store.seal.id is not None:
        of_store.update(key_past.lost(now, series.store.seal.id, tried))
    count = now.bring_back({**of_store, **past.files})
    count += now.bring_back(now.as_it_was(series.store, [manifest]))
    back = Series(marker.open_store(now.root), series.domain, series.folder)
    half_points.end_setting_apart(back, past.point.id)
    sweep_mark.drop(back, past.point.id)  # for a day, no pull would build on the point
    _require_files(back, back.point_in(past.point.id))
    return Back(series.domain, past.point.id, past.when.isoformat(timespec="seconds"), count)


def _require_files(series: Series, point: Point) -> None:
    with series.store.looking(series.folder):
        for entry in references.of_point(series, point):
            if flaw := series.size_flaw(entry):
                raise errors.Damaged(flaw)


def _warnings(found: Sequence[_Past], now: Versioned, tried: Sequence[Identity]) -> list[str]:
    """Return a warning if, for all that is known without an identity, the key files may be somebody else's."""
    then = {name for each in found if each.series.store.seal.id for name in key_files.names(each.series.store)}
    if tried or not then or then.intersection(name for name, _ in key_files.sound(now)):
        return []
    return [
        f"{now.path(layout.KEYS)}: none of the key files of that time is left: if you did not replace them, somebody "
        "else did; with --identity FILE, undelete brings back those that were made with the key of the store"
    ]
