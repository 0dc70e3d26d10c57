"""Rebuild: a lost index, from the records that every chunk file ends in.

Owns: finding those records, and that the index made of them is the very one that the manifest names. Must not know:
frames, libvirt, what is printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..core import errors
from ..core.errors import Check, Report
from ..format import reader, writer
from ..format.manifest import DiskEntry
from ..repository.series import Point, Series
from . import store_choice
from .options import IndexOptions as Options


@dataclass(frozen=True)
class Result:
    """path: of the index."""

    domain: str
    point: str
    disk: str
    path: str


def rebuild(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make the index of a disk of a point again. OutputExists where there is one."""
    target, point = store_choice.find_point(options.store, options.point, options.domain)
    return Result(target.domain, point.id, options.disk, _rebuilt(target, point, options.disk, check))


def _rebuilt(target: Series, point: Point, name: str, check: Check) -> str:
    disk = point.disk(name)
    path = f"{target.folder}/{disk.index.path}"
    if target.store.size(path) is not None:
        flaw = target.file_flaw(disk.index)
        what = "it is damaged: move it away first" if flaw else "and is what was stored"
        raise errors.OutputExists(f"{target.store.path(path)} is there, {what}")
    data = writer.compressed_records(_records(target, point, disk, check))
    if hashlib.sha256(data).hexdigest() != disk.index.sha256:
        raise errors.Damaged(
            f"{target.store.path(path)}: the records of the chunk files do not make the index that the manifest names; "
            "either some of its chunk files are those of another point, or this zstd compresses otherwise than the one "
            "that made it: try on the machine that made the point"
        )
    target.store.publish(path, data)
    return target.store.path(path)


def _records(target: Series, point: Point, disk: DiskEntry, check: Check) -> Iterator[Any]:
    """Yield the records of each of the point's own chunk files, as arrays."""
    for chunk in disk.chunks:
        if chunk.path.partition("/")[0] != point.id:
            continue
        flaw = target.file_flaw(chunk, check)
        if flaw:
            raise errors.Damaged(flaw)
        yield reader.chunk_records(target.store, f"{target.folder}/{chunk.path}", chunk.size)
