"""Index: the records that make up a disk at a point.

Owns: the shape of a record in JSON. Must not know: how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core import extents
from ..core.errors import Check, Report
from ..format.directory import Directory
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
    """Read them; Damaged if they are not what was stored."""
    target, point = store_choice.find_point(options.store, options.point, options.domain, options.identities)
    directory = target.directory(point, options.disk, partial=True)
    return Result(target.domain, point.id, directory.disk, _records(directory, check))


def _records(directory: Directory, check: Check) -> Iterator[Described]:
    for window in directory.windows(check):
        for record in window.flat():
            check()
            yield _describe(record, directory)


def _describe(record: Any, directory: Directory) -> Described:
    about = {"offset": int(record["offset"]), "length": int(record["length"])}
    if record["kind"] == extents.ZERO:
        return {**about, "kind": "zero"}
    fields = {name: int(record[name]) for name in ("position", "stored", "raw", "skip")}
    path = directory.files[int(record["chunk"])].path
    return {**about, "kind": "data", "path": path, **fields, "digest": record["digest"].tobytes().hex()}
