"""What a store holds, as plain values: points, and the records of a disk. The shapes are those of the JSON output.

Must not know: how they are shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Optional

from ..core import errors, extents
from ..definitions import omissions
from ..format import findings, reader
from ..format.manifest import DiskEntry
from ..repository import marker, point_choice, series, verdict

Described = dict[str, Any]  # plain values, documented in the manual

_NOT_LOOKED_AT: Described = {"verified": None, "drilled": None, "digests": {}}


def describe(
    point: series.Point,
    partial: Collection[str],
    omitted: Optional[list[omissions.Omission]],
    found: Optional[Described] = None,
) -> Described:
    """A Point as a dict of plain values; documented in the manual. partial: its disks of which no whole image can be
    made; omitted: what of its domain it does not have; found: what `_found` tells of it."""
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
        "partial": bool(partial),
        "consistency": m.consistency,
        "consistency_reason": m.consistency_reason,
        "passwords": m.passwords,
        "disks": [_describe_disk(disk) for disk in m.disks],
        "not_in_point": None if omitted is None else [_describe_omission(each) for each in omitted],
        "seconds": m.seconds,
        "versions": m.versions,
        **(found or _NOT_LOOKED_AT),
    }


def _found(
    target: series.Series, points: list[series.Point], refused: dict[str, errors.NbdpullError]
) -> dict[str, Described]:
    """{point id: what was found about it later}; points: all of the Series that can be read."""
    every = findings.load(target)
    unproved = {name for name, error in refused.items() if isinstance(error, errors.FormatTooNew)}
    known = verdict.Known(points, every, unproved)
    drills = findings.newest(every, points, findings.DRILL)
    digests = findings.newest(every, points, findings.DIGEST)
    return {
        point.id: {"verified": known.verdict(point), "drilled": _drill(drills[point.id]),
                   "digests": digests[point.id].get("disks", {})} for point in points
    }  # fmt: skip


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


def points(root: str, domain: Optional[str] = None) -> tuple[list[Described], list[errors.NbdpullError]]:
    """Return ([dict of each point of each domain, in the order of commits], [error of each unreadable point]); domain:
    only this one's."""
    opened = marker.open_store(root)
    found: list[Described] = []
    refused: list[errors.NbdpullError] = []
    for each in [series.only_series(opened, domain)] if domain is not None else series.all_series(opened):
        good, bad = each.load()
        about = _found(each, good, bad)
        partial = series.partial_disks(good)
        for point in good:
            omitted = omissions.of_point(each, point)
            found.append(describe(point, partial[point.id], omitted, about[point.id]))
        refused += bad.values()
    return found, refused


def short_ids(points: list[Described]) -> dict[str, str]:
    """{id of each of these points: as much of it as no other one begins with}"""
    return point_choice.short([point["id"] for point in points])


def point(root: str, wanted: str, domain: Optional[str] = None) -> Described:
    """Return the dict of one point, as `points` does; wanted, domain: as of find_point."""
    target, found = find_point(root, wanted, domain)
    every, refused = target.load()
    partial, omitted = series.partial_disks(every)[found.id], omissions.of_point(target, found)
    return describe(found, partial, omitted, _found(target, every, refused)[found.id])


def only_domain(root: str) -> str:
    """Name of the domain of a store that holds one; StoreError for another store."""
    return series.only_series(marker.open_store(root)).domain


def find_point(root: str, wanted: str, domain: Optional[str] = None) -> tuple[series.Series, series.Point]:
    """Return (Series, Point) of what Series.point takes; an id is looked for in all domains. NoSuchPoint, StoreError"""
    opened = marker.open_store(root)
    if domain is None and wanted != series.LATEST:
        found = [(each, name) for each in series.all_series(opened) for name in each.named(wanted)]
        ids = list(dict.fromkeys(name for _, name in found))
        if len(ids) > 1:
            raise point_choice.ambiguous(wanted, ids)
        for each, _ in found[:1]:
            return each, each.point(wanted)
    target = series.only_series(opened, domain)
    return target, target.point(wanted)


def records(target: series.Series, point: series.Point, name: str) -> Iterator[Described]:
    """Yield the records of a disk of a point as dicts, ascending; Damaged if the index is not what was stored."""
    disk = point.disk(name)
    flaw = target.file_flaw(disk.index)
    if flaw:
        raise errors.Damaged(flaw)
    for batch in reader.records(target.store, target.folder, disk):
        for record in batch:
            yield _describe_record(record, disk)


def _describe_record(record: Any, disk: DiskEntry) -> Described:
    about = {"offset": int(record["offset"]), "length": int(record["length"])}
    if record["kind"] == extents.ZERO:
        return {**about, "kind": "zero"}
    fields = {name: int(record[name]) for name in ("position", "stored", "raw", "skip")}
    path = disk.chunks[int(record["chunk"])].path
    return {**about, "kind": "data", "path": path, **fields, "digest": record["digest"].tobytes().hex()}
