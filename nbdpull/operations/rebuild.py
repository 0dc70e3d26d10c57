"""Rebuild: a lost index, from the records that every chunk file ends in.

Owns: finding those records, and that the index made of them is the very one that the manifest names. Must not know:
frames, libvirt, what is printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from ..core import errors
from ..format import reader, writer
from ..format.manifest import DiskEntry
from ..repository.series import Point, Series


def rebuild(target: Series, point: Point, name: str) -> str:
    """Make the index of a disk of a point again; return its path. OutputExists where there is one."""
    disk = point.disk(name)
    path = f"{target.folder}/{disk.index.path}"
    if target.store.size(path) is not None:
        flaw = target.file_flaw(disk.index)
        what = "it is damaged: move it away first, nothing is ever overwritten" if flaw else "and is what was stored"
        raise errors.OutputExists(f"{target.store.path(path)} is there, {what}")
    data = writer.compressed_records(_records(target, point, disk))
    if hashlib.sha256(data).hexdigest() != disk.index.sha256:
        raise errors.Damaged(
            f"{target.store.path(path)}: the records of the chunk files do not make the index that the manifest names; "
            "either some of its chunk files are those of another point, or this zstd compresses otherwise than the one "
            "that made it: try on the machine that made the point"
        )
    target.store.publish(path, data)
    return target.store.path(path)


def _records(target: Series, point: Point, disk: DiskEntry) -> Iterator[Any]:
    """Yield the records of each of the point's own chunk files, as arrays."""
    for chunk in disk.chunks:
        if chunk.path.partition("/")[0] != point.id:
            continue
        flaw = target.file_flaw(chunk)
        if flaw:
            raise errors.Damaged(flaw)
        yield reader.chunk_records(target.store, f"{target.folder}/{chunk.path}", chunk.size)
