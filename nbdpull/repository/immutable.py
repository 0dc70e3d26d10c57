"""How long nobody can remove the files of points, in an object store that locks objects.

Every point is protected for the time set by the policy, from the start of the run that makes it, and so is all that it
refers to, before its manifest appears. Locking each of these files each time would cost a request per file. So a lock
ends later than necessary, by a reserve: what a point refers to was protected with its base, whose manifest says until
when. Only when the reserve is used up is everything locked anew.

Owns: when a lock ends, what is locked for a point, and when that is unnecessary. Must not know: how a file is locked
(storage/), where the time is set (policies.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, Optional

from ..core import errors
from ..format import layout
from ..format.manifest import LockedEntry, ParentEntry
from ..storage.base import Protection, Store
from . import marker, policies, references
from .policies import Immutability
from .series import Point, Series

_SHARE = 1 / 3  # of the time, as the reserve
_MOST = 10 * 86400.0  # longest reserve, in seconds


def begin(store: Store, more: timedelta = timedelta()) -> None:
    """From now on, protect the files of points that are made in a Store, if its policy demands it. more: extra time.
    Damaged if the policy cannot be read."""
    setting = None if store.has_locks else policies.immutability(store)
    store.protection = protection(setting, datetime.now(timezone.utc) + more) if setting else None
    store.protects = store.protects or setting is not None  # the bucket may have got locks after the store was made


def protection(setting: Immutability, now: datetime) -> Protection:
    """Return the protection of files made now."""
    least = now.replace(microsecond=0) + timedelta(seconds=setting.seconds + 1)
    reserve = timedelta(seconds=round(min(setting.seconds * _SHARE, _MOST)))
    return Protection(least + reserve, setting.mode, least)


def put(store: Store, wanted: Immutability) -> None:
    """From now on, protect what is made in the store, and the files without which no point can be read. If that fails,
    nothing has changed."""
    store.protect(whole(store), protection(wanted, datetime.now(timezone.utc)))
    policies.put_immutability(store, wanted)


class Promise(NamedTuple):
    """What the manifest of a point will state about locks. inherits: whether the base's locks last long enough; paths:
    of files to lock even then, apart from the point's own files."""

    entry: LockedEntry
    inherits: bool
    paths: list[str]

    @property
    def until(self) -> datetime:
        return datetime.fromisoformat(self.entry.until)


def promised(series: Series, base: Optional[ParentEntry], uuid: str) -> Optional[Promise]:
    """Return the Promise for a point that builds on a base; None if nothing is to be locked. uuid: that of the store.
    AccessDenied, StoreError."""
    store, wanted = series.store, series.store.protection
    if wanted is None:
        return None
    keys = store.files(layout.KEYS) if store.seal.id is not None else []
    known = _known(series, base, uuid, wanted) if base else None
    until = min(known.until, wanted.until) if known else wanted.until
    left = {*keys} - {*(known.keys if known else ())}
    entry = LockedEntry(until.isoformat(), wanted.mode, keys)
    return Promise(entry, known is not None, [f"{layout.KEYS}/{name}" for name in sorted(left)])


def secure(series: Series, point: Point, promise: Optional[Promise] = None) -> Optional[Protection]:
    """Protect all that a point refers to, before its manifest appears; return the protection for the manifest, None if
    it needs none. promise: what the manifest states about locks; None: nothing is inherited, as for a copied point.
    AccessDenied, StoreError, Damaged."""
    store, wanted = series.store, series.store.protection
    if wanted is None:
        return None
    if promise and promise.inherits:
        own = [each.path for each in references.of_point(series, point) if each.folder == point.id]
        store.protect([*promise.paths, *_in(series, own)], wanted)  # a resumed run may have made some earlier
        return wanted._replace(until=promise.until)
    with store.looking(series.folder):
        entries = references.of_point(series, point)
        held = {each.path: None for each in references.holding(series, entries)}
        held.update({path: None for path in references.beside(series, entries)})
    store.protect([*whole(store), *_in(series, held)], wanted)
    return wanted


def may_be(store: Store) -> bool:
    """Return whether files of a Store may be locked, by its policy or by a rule of the bucket."""
    with suppress(errors.Damaged, errors.FormatTooNew):
        return store.protects or not store.has_locks and policies.immutability(store) is not None
    return True


def forgotten(series: Series, newest: Optional[Point]) -> list[str]:
    """Return a warning if the newest point is locked and the next one will not be: anybody who can write to a store can
    write its policy."""
    store, locked = series.store, newest.manifest.locked if newest else None
    if newest is None or locked is None or store.protection or store.has_locks:
        return []
    with suppress(ValueError, TypeError):  # it need not have been written by us
        until = datetime.fromisoformat(locked.until)
        if until > datetime.now(timezone.utc) and newest.manifest.store == marker.uuid_of(store):
            return [
                f"the last point is locked until {until.astimezone():%Y-%m-%d}, but this one is not, as the policy of "
                f"{store.root} no longer sets a time: if you did not change it, somebody else did; see nbdpull "
                "policy --immutable-for"
            ]
    return []


def _in(series: Series, paths: Iterable[str]) -> list[str]:
    return [f"{series.folder}/{path}" for path in paths]


class _Known(NamedTuple):
    until: datetime
    keys: list[str]


def _known(series: Series, base: ParentEntry, uuid: str, wanted: Protection) -> Optional[_Known]:
    """Return what a base promises about locks, if that is enough.

    The promise counts if it was made in this store, and not for longer than the base's manifest itself is locked: the
    files may have been brought here without their locks. How long a particular file is locked proves nothing more: a
    rule of the bucket locks files, and anyone with access keys can extend any lock.
    """
    with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
        found = series.point_in(base.point)
        record = _record(series, found, uuid) if found.sha256 == base.sha256 else None
        if record and record.mode == wanted.mode and record.until >= wanted.enough:
            return _Known(record.until, record.keys)
    return None


class _Record(NamedTuple):
    until: datetime
    mode: str
    keys: list[str]


def _record(series: Series, point: Point, uuid: str) -> Optional[_Record]:
    """Return what a point promises about locks, as far as that counts."""
    locked = point.manifest.locked
    with suppress(ValueError):
        if locked and point.manifest.store == uuid and (until := datetime.fromisoformat(locked.until)).tzinfo:
            held = series.store.protected_until(f"{series.folder}/{point.id}/{layout.MANIFEST}")
            return _Record(min(until, held), locked.mode, locked.keys) if held else None
    return None


def keep_promises(series: Series, path: str, points: Optional[Iterable[Point]] = None) -> list[str]:
    """Lock a file that was made again for as long as these points, which refer to it, promise; return a warning if that
    fails. The file that it replaced may have been deleted or overwritten, and then its lock is no longer visible.

    points: None for all that refer to the file, as far as they can be read.
    """
    try:
        _keep_promises(series, path, _naming(series, path) if points is None else points)
    except errors.Failure as error:
        return [f"{path} was written again, but is not locked, although points promise that it is: {error}"]
    return []


def _keep_promises(series: Series, path: str, points: Iterable[Point]) -> None:
    if not series.store.has_locks:
        uuid = marker.uuid_of(series.store)
        records = [found for point in points if (found := _record(series, point, uuid))]
        longest = max(records, key=lambda each: each.until, default=None)
        if longest and longest.until > datetime.now(timezone.utc):
            wanted = Protection(longest.until.replace(microsecond=0), longest.mode, longest.until)
            series.store.protect([f"{series.folder}/{path}"], wanted)


def _naming(series: Series, path: str) -> list[Point]:
    """Return the points that promise locks, and refer to a file."""
    some = [] if series.store.has_locks else [each for each in series.load()[0] if each.manifest.locked]
    files = ((each, references.by_directories(each, references.readable(series, each))) for each in some)
    return [point for point, entries in files if any(entry.path == path for entry in entries)]


def whole(store: Store) -> list[str]:
    """Return the paths of the files without which no point of a store can be read."""
    return [layout.MARKER, *(f"{layout.KEYS}/{name}" for name in store.files(layout.KEYS))]
