"""A damaged file made again from a copy of its points under another seal, which has other files.

The copy has the same small files and the same frames. A small file is sealed anew: equal bytes always give equal
results. A damaged frame of a chunk file is sealed with the nonce that is left of it. A nonce must never be used for
other bytes, and somebody may have put another one there: so nothing is written before the whole file is known to be
the stored one. A chunk file of which the nonce of a frame is lost, or that is missing, cannot be made again.

Owns: what of a file the copy can replace. The caller holds the series. Must not know: how damage is found, or whether
the content of the copy may be seen in the target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..format import layout, reader, stack
from ..format.manifest import FileEntry
from ..storage.base import Reader
from . import half_points, mending
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.layout import Record


MOST = 64 << 20  # bytes of damaged frames of one file: they are in memory at once


class Twin(NamedTuple):
    """A point, and the same one in the copy."""

    here: Point
    there: Point


def twins(points: Iterable[Point], copy: Series) -> list[Twin]:
    """Return the points that the copy has, too."""
    found = []
    for point in points:
        with suppress(errors.Damaged, errors.StoreError):
            there = copy.point_in(point.id)
            if there.origin == point.origin:
                found.append(Twin(point, there))
    return found


def made_again(target: Series, copy: Series, entry: FileEntry, known: Iterable[Twin], check: Check) -> bool:
    """Make a damaged file of the target again; return whether it is what was stored now. known: points that name it,
    and that the copy has. OutputError; KeyNeeded if one of the stores is locked."""
    known = [*known]
    match = layout.DISK_PATH.match(entry.path)
    with suppress(errors.Damaged):
        if match is None:
            return _small_file(target, copy, entry, known)
        disk = layout.domain_name(match["disk"]) or ""
        if layout.CHUNK_PATH.match(entry.path) and target.store.size(f"{target.folder}/{entry.path}") == entry.size:
            both = [each for each in known if each.here.manifest.disk(disk) and each.there.manifest.disk(disk)]
            return bool(both) and _chunk_file(target, copy, entry, disk, both, check)
    return False


def _small_file(target: Series, copy: Series, entry: FileEntry, known: Iterable[Twin]) -> bool:
    name = entry.name
    for here, there in known:
        data = copy.read_file(there, name) if entry in here.manifest.files else None
        stored = None if data is None else target.store.seal.piece(data, layout.file_piece(name))
        if stored is not None and hashlib.sha256(stored).hexdigest() == entry.sha256:
            half_points.set_apart(target, entry.folder)
            with target.store.replacing(f"{target.folder}/{entry.path}") as file:
                file.write(stored)
            return True
    return False


def _chunk_file(target: Series, copy: Series, entry: FileEntry, disk: str, known: Sequence[Twin], check: Check) -> bool:
    store, path = target.store, f"{target.folder}/{entry.path}"
    bad = mending.bad_frames(mending.Now(target, known[0].here, disk), entry, check)
    if int(bad["stored"].sum()) > MOST:
        return False
    with store.open_reader(path) as old:
        frames: dict[int, bytes] = {}
        for record in bad:
            check()
            frame = _frame(copy, disk, record, known)
            if frame is None:
                return False
            at, digest = int(record["position"]), record["digest"].tobytes()
            frames[at] = store.seal.frame_again(frame, digest, old.read(at, int(record["stored"])))
        if not frames or _digest(old, frames, check) != entry.sha256:
            return False
        with store.replacing(path) as file:
            for part in _parts(old, frames, check):
                file.write(part)
            if file.sha256() != entry.sha256:
                raise errors.Damaged(f"{store.path(path)}: its medium sometimes returns wrong data")
    return True


def _frame(copy: Series, disk: str, record: Record, known: Iterable[Twin]) -> Optional[bytes]:
    """Return the frame of a record, not sealed, from a point of the copy that shows it there; None if none does."""
    start = layout.window_start(int(record["offset"]))
    for _, there in known:
        with suppress(errors.Damaged):
            directory = copy.directory(there, disk, partial=True)
            if not len(directory.refs(start)):
                continue
            data = stack.data_of(directory.window(start).flat())
            found = data[(data["digest"] == record["digest"]) & (data["raw"] == record["raw"])]
            with reader.FrameReader(copy.store, copy.folder, directory.files) as frames:
                for each in found[:1]:
                    return frames.unsealed(each)
    return None


def _parts(old: Reader, frames: dict[int, bytes], check: Check) -> Iterator[bytes]:
    """Yield the bytes of a file with other frames, given by position."""
    at = 0
    for position, frame in [*sorted(frames.items()), (old.size, b"")]:
        for start in range(at, position, mending.BLOCK):
            check()
            yield old.read(start, min(mending.BLOCK, position - start))
        yield frame
        at = position + len(frame)


def _digest(old: Reader, frames: dict[int, bytes], check: Check) -> str:
    found = hashlib.sha256()
    for part in _parts(old, frames, check):
        found.update(part)
    return found.hexdigest()
