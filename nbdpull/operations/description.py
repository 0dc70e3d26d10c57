"""A point as plain values, in the shape of the JSON output, which the manual documents.

Owns: that shape. Must not know: which points are asked for, how they are shown.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from typing import Any, Optional

from ..core import errors
from ..definitions import omissions
from ..format import findings, layout, ledger
from ..format.layout import Document
from ..format.manifest import DiskEntry
from ..repository import pins, series, verdict

Described = dict[str, Any]

_NOT_LOOKED_AT: Described = {"verified": None, "drilled": None, "pinned": None, "digests": {}}


def of_series(target: series.Series) -> tuple[list[Described], list[errors.NbdpullError], list[str]]:
    """Return ([description of each point, in the order of commits], [why another point cannot be read, …], [a message
    for each finding that cannot be read])."""
    with target.store.looking(target.folder):
        points, refused = target.load()
        every = findings.load(target)
        return _described(target, points, points, every), list(refused.values()), findings.left_out(target, every)


def of_point(target: series.Series, point: series.Point) -> Described:
    """Return the description of one Point of the Series."""
    [described] = _described(target, [point], target.load()[0], findings.load(target))
    return described


def _described(
    target: series.Series,
    wanted: list[series.Point],
    every: list[series.Point],
    recorded: list[Document],
) -> list[Described]:
    found = _found(target, every, recorded)
    return [describe(point, omitted, found[point.id]) for point, omitted in zip(wanted, _omitted(target, wanted))]


def _omitted(target: series.Series, points: list[series.Point]) -> list[Optional[list[omissions.Omission]]]:
    """Return for each point what it lacks of its domain; None if that is unknown.

    Most points have the same definitions, which are therefore read once: for a thousand points in a bucket, reading
    them all would take as long as everything else.
    """
    if not target.store.seal.opens:
        return [None] * len(points)
    keys = [_key(target, point) for point in points]
    first = dict(zip(reversed(keys), reversed(points)))
    by_key = dict(zip(first, target.store.several(partial(omissions.of_point, target), first.values())))
    found = [by_key[key] for key in keys]
    again = [at for at, point in enumerate(points) if found[at] is None and point is not first[keys[at]]]
    for at, each in zip(again, target.store.several(lambda at: omissions.of_point(target, points[at]), again)):
        found[at] = each  # the definitions of the first point may be damaged while those of this one are not
    return found


def _key(target: series.Series, point: series.Point) -> Hashable:
    """Return a key of what determines the omissions of a point."""
    entries = [point.file(name) for name in (layout.DOMAIN_XML, layout.LIVE_XML)]
    definitions = tuple(entry and (entry.sha256, target.size_flaw(entry) is None) for entry in entries)
    return definitions, tuple(point.disks), tuple(point.files)


def describe(
    point: series.Point,
    omitted: Optional[list[omissions.Omission]],
    found: Optional[Described] = None,
) -> Described:
    """Return the description of a Point. omitted: what it lacks of its domain; found: its value in `_found`."""
    m = point.manifest
    return {
        "id": m.point,
        "domain": m.domain,
        "uuid": m.uuid,
        "created": m.created,
        "as_of": m.as_of,
        "since": m.since,
        "checkpoint": m.checkpoint and m.checkpoint.name,
        "parent": m.parent and m.parent.point,
        "partial": bool(m.partial),
        "consistency": m.consistency,
        "consistency_reason": m.consistency_reason,
        "passwords": m.passwords,
        "disks": [_describe_disk(disk) for disk in m.disks],
        "not_in_point": None if omitted is None else [_describe_omission(each) for each in omitted],
        "seconds": m.seconds,
        "versions": m.versions,
        "locked": m.locked and {"until": m.locked.until, "mode": m.locked.mode},
        **(found or _NOT_LOOKED_AT),
    }


def _found(target: series.Series, points: list[series.Point], every: list[Document]) -> dict[str, Described]:
    """Return {point id: what was found out about it later}; points: all readable points of the Series; every: what
    findings.load returned."""
    now = datetime.now(timezone.utc)
    known = verdict.Known(points, every, ledger.load(target))
    drills = findings.newest(every, points, findings.DRILL)
    digests = findings.newest(every, points, findings.DIGEST)
    return {
        point.id: {"verified": _verified(known.verdict(point), now), "drilled": _drill(drills[point.id]),
                   "pinned": _pin(target, point), "digests": digests[point.id].get("disks", {})} for point in points
    }  # fmt: skip


def _verified(found: Optional[Described], now: datetime) -> Optional[Described]:
    if found is None:
        return None
    since = found["covered"][verdict.FILES]
    return {**found, "age": since and (now - datetime.fromisoformat(since)).total_seconds()}


def _pin(target: series.Series, point: series.Point) -> Optional[Described]:
    found = pins.of_point(target, point)
    return asdict(found) if found else None


def _drill(found: Optional[Described]) -> Optional[Described]:
    members = ("when", "who", "verdict", "seconds", "waited_for")
    return {name: found.get(name) for name in members} if found else None


def _describe_disk(disk: DiskEntry) -> Described:
    names = (
        "name",
        "mode",
        "reason",
        "size",
        "dirty_bytes",
        "zero_bytes",
        "read_bytes",
        "stored_bytes",
        "deduped_bytes",
    )
    return {name: getattr(disk, name) for name in names}


def _describe_omission(omission: omissions.Omission) -> Described:
    return {name: getattr(omission, name) for name in ("what", "why", "path", "missed")}
