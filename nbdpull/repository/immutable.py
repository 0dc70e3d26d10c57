"""For how long nobody can remove what points are made of, in an object store that locks objects.

Every point is protected for the time that the policy tells, from its beginning: all that it refers to, too, before its
manifest appears. To ask for that file by file, each time, would be a request a file. So a lock ends later than it has
to, by a reserve: what a point refers to was protected with its base, and for as long as the base's manifest is, as
that was locked last. Only when the reserve is used up is everything locked anew.

Owns: when a lock ends, what is locked for a point, and when it need not be. Must not know: how a file is locked
(storage/), where the time is told (policies.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Optional

from ..core import errors
from ..format import layout
from ..storage.base import Protection, Store
from . import marker, policies, references
from .policies import Immutability
from .series import Point, Series

_SHARE = 1 / 3  # of the time, for the reserve
_MOST = 10 * 86400.0  # seconds of it


def begin(store: Store) -> None:
    """From now on, what is made in a Store of what points are made of is protected, where its policy tells so. Damaged
    where that cannot be read."""
    told = None if store.has_locks else policies.immutability(store)
    store.protection = protection(told, datetime.now(timezone.utc)) if told else None


def protection(told: Immutability, now: datetime) -> Protection:
    """Of what is made now."""
    least = now.replace(microsecond=0) + timedelta(seconds=told.seconds + 1)
    reserve = timedelta(seconds=round(min(told.seconds * _SHARE, _MOST)))
    return Protection(least + reserve, told.mode, least)


def put(store: Store, wanted: Immutability) -> None:
    """From now on, what is made there is protected, and so is that without which no point can be read."""
    policies.put_immutability(store, wanted)
    store.protect(whole(store), protection(wanted, datetime.now(timezone.utc)))


def secure(series: Series, point: Point, base: Optional[str] = None) -> Optional[Protection]:
    """Before the manifest of a point appears: protect all that it refers to. base: id of the point that it builds on.
    Return what its manifest is to be protected with, None for nothing. AccessDenied, StoreError, Damaged."""
    store, wanted = series.store, series.store.protection
    if wanted is None:
        return None
    entries = [entry.path for entry in references.of_point(series, point)]
    own = [path for path in entries if path.startswith(f"{point.id}/")]
    others = sorted({*entries} - {*own})
    known = _known(series, base, others[0] if others else None) if base else None
    if known is not None and known >= wanted.enough:
        store.protect(_in(series, own), wanted)  # a resumed run may have made some before
        return wanted._replace(until=min(known, wanted.until))
    with store.looking(series.folder):
        held = references.paths(series, references.of_point(series, point))
    store.protect([*whole(store), *_in(series, held)], wanted)
    return wanted


def may_be(store: Store) -> bool:
    """Whether files of a Store may be locked, by its policy or by a rule of the bucket."""
    with suppress(errors.Damaged, errors.FormatTooNew):
        return store.protects or not store.has_locks and policies.immutability(store) is not None
    return True


def forgotten(series: Series, newest: Optional[Point]) -> list[str]:
    """A warning where the newest point is locked, and the next one is not to be: who can write to a store can write its
    policy. A bucket that locks everything tells nothing of that."""
    store = series.store
    if newest is None or store.protection or not store.protects:
        return []
    with suppress(errors.AccessDenied):
        until = store.protected_until(f"{series.folder}/{newest.id}/{layout.MANIFEST}")
        found = marker.of(store).object_store
        if until and not (found and found.default_retention):
            return [
                f"the last point is locked until {until.astimezone():%Y-%m-%d}, and this one is not, as the policy of "
                f"{store.root} says nothing of that any more: if you did not change it, somebody else did; see nbdpull "
                "policy --immutable-for"
            ]
    return []


def _in(series: Series, paths: Iterable[str]) -> list[str]:
    return [f"{series.folder}/{path}" for path in paths]


def _known(series: Series, base: str, oldest: Optional[str]) -> Optional[datetime]:
    """Until when what a point has of its base is protected: what was locked last tells it. Where that was not for the
    base, but by a rule of the bucket, what was made first tells. oldest: path of that file."""
    found = [series.store.protected_until(f"{series.folder}/{base}/{layout.MANIFEST}")]
    if found[0] is not None and oldest is not None:
        found.append(series.store.protected_until(f"{series.folder}/{oldest}"))
    return min((each for each in found if each is not None), default=None) if None not in found else None


def whole(store: Store) -> list[str]:
    """Paths of the files without which no point of a store can be read."""
    return [layout.MARKER, *(f"{layout.KEYS}/{name}" for name in store.files(layout.KEYS))]
