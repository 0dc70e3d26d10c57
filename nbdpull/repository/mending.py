"""A damaged chunk file made again from what a newer point shows at the same place.

Where the disk still holds what it held then, the frame can be made again: by the digest in the file's own records it is
the same data, and zstd of the same version makes the same bytes of it. Whether it does is not trusted: the file takes
the place of the old one only if its SHA-256 is the one that was stored. So the points that refer to it are what they
were, `sha256sum -c` holds, and no moved table is needed, which a frame of another size could not be in.

Owns: which frames are made again. Who mends holds the series. Must not know: how a damage was found, or is settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy

from ..core import errors, extents
from ..core.errors import Check
from ..format import layout, reader, writer
from ..format.manifest import FileEntry
from .inspection import frame_flaw
from .lookup import RandomImage
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.layout import Records

BLOCK = 1 << 20  # bytes that are copied at once


class _Other(Exception):
    """Raised where the file would have other bytes."""


class Now(NamedTuple):
    """A disk as of a point that is sound."""

    series: Series
    point: Point
    disk: str


def mended(now: Now, entry: FileEntry, levels: Iterable[int], check: Check) -> bool:
    """Make the frames of a chunk file again that are damaged; whether it is what was stored. It stays as it is unless
    all of them can be. levels: of zstd that may have made it. Damaged, OutputError."""
    store, path = now.series.store, f"{now.series.folder}/{entry.path}"
    if store.size(path) != entry.size:
        return False
    bad = _bad_frames(now, entry, check)
    frames = _made_again(now, bad, [*levels], check) if len(bad) else None
    if frames is None:
        return False
    try:
        with store.replacing(path) as file, store.open_reader(path) as old:
            at = 0
            for position, frame in [*frames.items(), (entry.size, b"")]:
                for start in range(at, position, BLOCK):
                    check()
                    file.write(old.read(start, min(BLOCK, position - start)))
                file.write(frame)
                at = position + len(frame)
            if file.sha256() != entry.sha256:
                raise _Other
    except _Other:
        return False
    return True


def _bad_frames(now: Now, entry: FileEntry, check: Check) -> Records:
    """By the records that the file ends in, each by its position."""
    store, folder = now.series.store, now.series.folder
    page = reader.chunk_records(store, f"{folder}/{entry.path}", entry.size, now.disk)
    size = now.point.disk(now.disk).size
    if entry.path not in page.names or layout.records_flaw(page.records, size, len(page.names)):
        return page.records[:0]
    own = (page.records["kind"] == extents.DATA) & (page.records["chunk"] == page.names.index(entry.path))
    found = page.records[own].copy()
    found["chunk"] = 0
    with reader.FrameReader(store, folder, [entry]) as frames:
        bad = []
        for record in found:
            check()
            bad.append(frame_flaw(frames, record) is not None)
    damaged: Records = found[numpy.array(bad, bool)]
    return damaged[numpy.argsort(damaged["position"])]


def _made_again(now: Now, bad: Records, levels: Sequence[int], check: Check) -> Optional[dict[int, bytes]]:
    """{position: frame}; None where one cannot be made."""
    found: dict[int, bytes] = {}
    with RandomImage(now.series, now.point, now.disk, check=check) as image:
        for record in bad:
            check()
            data = image.read(int(record["offset"]), int(record["length"]))
            if reader.digest(data) != record["digest"].tobytes():
                return None
            made = (writer.compressor(level).compress(data) for level in levels)
            frame = next((each for each in made if len(each) == record["stored"]), None)
            if frame is None:
                return None
            found[int(record["position"])] = frame
    return found


def all_mended(now: Now, entries: Iterable[FileEntry], levels: Sequence[int], check: Check) -> tuple[list[str], str]:
    """(paths of those that are what was stored, why the rest was left: "" if nothing hindered)."""
    done: list[str] = []
    try:
        for entry in entries:
            with suppress(errors.Damaged):  # its records, too
                if layout.CHUNK_PATH.match(entry.path) and mended(now, entry, levels, check):
                    done.append(entry.path)
    except errors.NbdpullError as error:
        return done, str(error)
    return done, ""
