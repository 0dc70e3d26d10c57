"""For how long nobody can remove what points are made of, in an object store that locks objects.

Every point is protected for the time that the policy tells, from its beginning: all that it refers to, too, before its
manifest appears. To ask for that file by file, each time, would be a request a file. So a lock ends later than it has
to, by a reserve: what a point refers to was protected with its base, whose manifest says until when. Only when the
reserve is used up is everything locked anew.

Owns: when a lock ends, what is locked for a point, and when it need not be. Must not know: how a file is locked
(storage/), where the time is told (policies.py).
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

_SHARE = 1 / 3  # of the time, for the reserve
_MOST = 10 * 86400.0  # seconds of it


def begin(store: Store, more: timedelta = timedelta()) -> None:
    """From now on, what is made in a Store of what points are made of is protected, where its policy tells so. more:
    for so much longer. Damaged where that cannot be read."""
    told = None if store.has_locks else policies.immutability(store)
    store.protection = protection(told, datetime.now(timezone.utc) + more) if told else None


def protection(told: Immutability, now: datetime) -> Protection:
    """Of what is made now."""
    least = now.replace(microsecond=0) + timedelta(seconds=told.seconds + 1)
    reserve = timedelta(seconds=round(min(told.seconds * _SHARE, _MOST)))
    return Protection(least + reserve, told.mode, least)


def put(store: Store, wanted: Immutability) -> None:
    """From now on, what is made there is protected, and so is that without which no point can be read. Where that
    fails, all is as it was."""
    store.protect(whole(store), protection(wanted, datetime.now(timezone.utc)))
    policies.put_immutability(store, wanted)


class Promise(NamedTuple):
    """What the manifest of a point is to say of locks. inherits: whether the base's locks are long enough; paths: what
    is to be locked all the same, but for the point's own files."""

    entry: LockedEntry
    inherits: bool
    paths: list[str]

    @property
    def until(self) -> datetime:
        return datetime.fromisoformat(self.entry.until)


def promised(series: Series, base: Optional[ParentEntry], uuid: str) -> Optional[Promise]:
    """Of a point that builds on a base; None where nothing is to be locked. uuid: of the store. AccessDenied,
    StoreError."""
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
    """Before the manifest of a point appears: protect all that it refers to. promise: what the manifest says of that;
    None: nothing is inherited, as of a copy. Return what the manifest is to be protected with, None for nothing.
    AccessDenied, StoreError, Damaged."""
    store, wanted = series.store, series.store.protection
    if wanted is None:
        return None
    if promise and promise.inherits:
        own = [each.path for each in references.of_point(series, point) if each.path.startswith(f"{point.id}/")]
        store.protect([*promise.paths, *_in(series, own)], wanted)  # a resumed run may have made some before
        return wanted._replace(until=promise.until)
    with store.looking(series.folder):
        entries = references.of_point(series, point)
        held = {each.path: None for each in references.standing(series, entries)}
        held.update({path: None for path in references.beside(series, entries)})
    store.protect([*whole(store), *_in(series, held)], wanted)
    return wanted


def may_be(store: Store) -> bool:
    """Whether files of a Store may be locked, by its policy or by a rule of the bucket."""
    with suppress(errors.Damaged, errors.FormatTooNew):
        return store.protects or not store.has_locks and policies.immutability(store) is not None
    return True


def forgotten(series: Series, newest: Optional[Point]) -> list[str]:
    """A warning where the newest point is locked, and the next one is not to be: who can write to a store can write its
    policy."""
    store, locked = series.store, newest.manifest.locked if newest else None
    if newest is None or locked is None or store.protection or not store.protects:
        return []
    with suppress(ValueError, TypeError):  # who wrote it need not have been us
        until = datetime.fromisoformat(locked.until)
        if until > datetime.now(timezone.utc) and newest.manifest.store == marker.uuid_of(store):
            return [
                f"the last point is locked until {until.astimezone():%Y-%m-%d}, and this one is not, as the policy of "
                f"{store.root} says nothing of that any more: if you did not change it, somebody else did; see nbdpull "
                "policy --immutable-for"
            ]
    return []


def _in(series: Series, paths: Iterable[str]) -> list[str]:
    return [f"{series.folder}/{path}" for path in paths]


class _Known(NamedTuple):
    until: datetime
    keys: list[str]


def _known(series: Series, base: ParentEntry, uuid: str, wanted: Protection) -> Optional[_Known]:
    """What a base says of locks, where that is enough. It counts if it was said in this store, and not for longer than
    the base's manifest is locked itself: the files may have been brought here without their locks. How long any file is
    locked says nothing more: a rule of the bucket locks, and who has keys can make any lock longer."""
    with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
        found = series.point_in(base.point)
        told = _told(series, found, uuid) if found.sha256 == base.sha256 else None
        if told and told.mode == wanted.mode and told.until >= wanted.enough:
            return _Known(told.until, told.keys)
    return None


class _Told(NamedTuple):
    until: datetime
    mode: str
    keys: list[str]


def _told(series: Series, point: Point, uuid: str) -> Optional[_Told]:
    """What a point says of locks, as far as that counts."""
    locked = point.manifest.locked
    with suppress(ValueError):
        if locked and point.manifest.store == uuid and (until := datetime.fromisoformat(locked.until)).tzinfo:
            held = series.store.protected_until(f"{series.folder}/{point.id}/{layout.MANIFEST}")
            return _Told(min(until, held), locked.mode, locked.keys) if held else None
    return None


def keep_promises(series: Series, path: str, points: Iterable[Point]) -> None:
    """Have a file that was made again be locked for as long as these points say, which refer to it: what it replaced
    may have been deleted, or written over, and then its lock does not show. AccessDenied, StoreError."""
    if series.store.protects:
        uuid = marker.uuid_of(series.store)
        told = [found for point in points if (found := _told(series, point, uuid))]
        longest = max(told, key=lambda each: each.until, default=None)
        if longest and longest.until > datetime.now(timezone.utc):
            wanted = Protection(longest.until.replace(microsecond=0), longest.mode, longest.until)
            series.store.protect([f"{series.folder}/{path}"], wanted)


def whole(store: Store) -> list[str]:
    """Paths of the files without which no point of a store can be read."""
    return [layout.MARKER, *(f"{layout.KEYS}/{name}" for name in store.files(layout.KEYS))]
