"""Index: the records of a disk of a point.

Owns: the shape of a record in JSON. Must not know: how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core import errors, extents
from ..core.errors import Check, Report
from ..format import reader
from ..format.manifest import DiskEntry
from ..repository import series
from . import store_choice
from .description import Described
from .options import IndexOptions as Options


@dataclass(frozen=True)
class Result:
    """records: of the disk, ascending; of a large disk they are millions, and each is made as it is drawn."""

    domain: str
    point: str
    disk: str
    records: Iterator[Described]


def index(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Read an index; Damaged if it is not what was stored."""
    target, point = store_choice.find_point(options.store, options.point, options.domain)
    disk = point.disk(options.disk)
    flaw = target.file_flaw(disk.index)
    if flaw:
        raise errors.Damaged(flaw)
    return Result(target.domain, point.id, disk.name, _records(target, disk, check))


def _records(target: series.Series, disk: DiskEntry, check: Check) -> Iterator[Described]:
    for batch in reader.records(target.store, target.folder, disk):
        for record in batch:
            check()
            yield _describe(record, disk)


def _describe(record: Any, disk: DiskEntry) -> Described:
    about = {"offset": int(record["offset"]), "length": int(record["length"])}
    if record["kind"] == extents.ZERO:
        return {**about, "kind": "zero"}
    fields = {name: int(record[name]) for name in ("position", "stored", "raw", "skip")}
    path = disk.chunks[int(record["chunk"])].path
    return {**about, "kind": "data", "path": path, **fields, "digest": record["digest"].tobytes().hex()}
