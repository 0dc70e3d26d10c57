"""Index: the records that make up a disk as of a point.

Owns: the shape of a record in JSON. Must not know: how records are shown.
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
from .options.points import IndexOptions as Options


@dataclass(frozen=True)
class Result:
    """The records of a disk, ascending; a large disk has millions, so each is made while they are consumed."""

    domain: str
    point: str
    disk: str
    records: Iterator[Described]


def index(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Read the records of a disk as of a point; Damaged if they are not what was stored."""
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
