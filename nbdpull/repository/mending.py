"""The repair of a damaged chunk file from the data that a newer point shows at the same place.

Where the disk still holds the data it held then, the frame can be made again: the digest in the file's own records
proves that the data are the same, and the same version of zstd compresses them to the same bytes. That is not taken for
granted: the new file replaces the old one only if its SHA-256 is the stored one. So the points that refer to the file
are unchanged, `sha256sum -c` succeeds, and no moved table is needed, which could not list a frame of another size.

Owns: which frames are made again, and at which level. The caller holds the lock of the series. Must not know: how
damage was found, or how it is recorded as repaired.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice, product
from typing import TYPE_CHECKING, NamedTuple

import numpy

from ..core import errors, extents
from ..core.errors import Check
from ..format import layout, reader, stack, writer
from ..format.manifest import FileEntry
from ..storage.base import Reader, Store, Writer
from . import drafts
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.layout import Record, Records

log = logging.getLogger("nbdpull.store")
BLOCK = 1 << 20  # bytes that are copied at once
_TRIES = 16  # for one file, if frames of several levels have the same size
_LEVELS = {str(level): level for level in range(-1, 20)}  # those that a pull may use; a manifest can name any


class _Other(Exception):
    """Raised if the file would have other bytes than the stored ones."""


class Now(NamedTuple):
    """A disk as of an intact point."""

    series: Series
    point: Point
    disk: str


def mended(now: Now, entry: FileEntry, levels: Sequence[int], check: Check) -> bool:
    """Make the damaged frames of a chunk file again; return whether the file is intact now. It is not changed unless
    all of its frames can be made. levels: of zstd that may have been used. Damaged, OutputError."""
    store, path = now.series.store, f"{now.series.folder}/{entry.path}"
    if store.seal.id is not None or store.size(path) != entry.size:  # each frame of a sealed store has a random nonce
        return False
    bad = bad_frames(now, entry, check)
    if not len(bad):
        return False
    try:
        with _Shown(now) as shown, store.open_reader(path) as old:
            ways = []
            for record in bad:  # before anything is written
                check()
                ways.append(_fitting(shown.data(record), record, old, levels))
            for chosen in islice(product(*ways), _TRIES):
                made = (writer.compressor(level).compress(shown.data(record)) for record, level in zip(bad, chosen))
                frames = zip(bad["position"].tolist(), made)
                if _is_put(store, path, old, frames, entry.sha256, check):
                    return True
    except _Other:
        pass
    return False


def _is_put(
    store: Store, path: str, old: Reader, frames: Iterable[tuple[int, bytes]], sha256: str, check: Check
) -> bool:
    """Replace the file by one with these frames, given with their positions, if that has the stored SHA-256; return
    whether it has."""
    try:
        with store.replacing(path) as file:
            at = 0
            for position, frame in frames:
                check()
                _copy(old, file, at, position, check)
                file.write(frame)
                at = position + len(frame)
            _copy(old, file, at, old.size, check)
            if file.sha256() != sha256:
                raise _Other
    except _Other:
        return False
    return True


def _copy(old: Reader, new: Writer, start: int, stop: int, check: Check) -> None:
    for at in range(start, stop, BLOCK):
        check()
        new.write(old.read(at, min(BLOCK, stop - at)))


def bad_frames(now: Now, entry: FileEntry, check: Check) -> Records:
    """Return the records of the damaged frames, by position, according to the records at the end of the file."""
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
            bad.append(frames.flaw(record) is not None)
    damaged: Records = found[numpy.array(bad, bool)]
    return damaged[numpy.argsort(damaged["position"])]


def _fitting(data: bytes, record: Record, old: Reader, levels: Sequence[int]) -> list[int]:
    """Return the levels that make a frame of the stored size, one for each distinct frame. The level whose frame is
    most like the damaged one comes first. _Other if no level makes such a frame."""
    made: dict[bytes, int] = {}
    for level in levels:
        frame = writer.compressor(level).compress(data)
        if len(frame) == record["stored"]:
            made.setdefault(frame, level)
    if not made:
        raise _Other
    if len(made) > 1:
        left = _left(old, record)
        made = {frame: made[frame] for frame in sorted(made, key=lambda frame: _differing(frame, left))}
    return list(made.values())


def _left(old: Reader, record: Record) -> bytes:
    """Return the bytes of a damaged frame; zeros if it cannot be read."""
    with suppress(errors.Damaged):
        return old.read(int(record["position"]), int(record["stored"]))
    return bytes(int(record["stored"]))


def _differing(one: bytes, two: bytes) -> int:
    """Return the number of bytes that differ."""
    return int((numpy.frombuffer(one, numpy.uint8) != numpy.frombuffer(two, numpy.uint8)).sum())


def _recorded_levels(now: Now, entry: FileEntry) -> list[int]:
    """Return the levels at which the point that made a file compressed the disk, the most used first, according to its
    manifest; none if that cannot be read."""
    with suppress(errors.Failure):
        recorded = now.series.point_in(entry.folder).disk(now.disk).levels
        return [
            _LEVELS[level] for level in sorted(recorded, key=recorded.__getitem__, reverse=True) if level in _LEVELS
        ]
    return []


class _Shown:
    """The current data of a disk. Only one window of the map is in memory. Use as a context manager."""

    def __init__(self, now: Now) -> None:
        self._directory = now.series.directory(now.point, now.disk)
        self._frames = reader.FrameReader(now.series.store, now.series.folder, self._directory.files)
        self._start, self._map = -1, numpy.empty(0, layout.RECORD)

    def data(self, record: Record) -> bytes:
        """Return the data of the frame of a record; _Other if the disk has other bytes there now. Damaged."""
        start, stop = int(record["offset"]), int(record["offset"]) + int(record["length"])
        found = extents.meeting(self._window(start), start, stop)
        data = bytearray(stop - start)
        for each in stack.flat([found], start, stop):
            skip, length, at = int(each["skip"]), int(each["length"]), int(each["offset"]) - start
            data[at : at + length] = self._frames.read(each)[skip : skip + length]
        if reader.digest(data) != record["digest"].tobytes():
            raise _Other
        return bytes(data)

    def _window(self, offset: int) -> Records:
        start = layout.window_start(offset)
        if start != self._start:
            self._start, self._map = start, stack.data_of(self._directory.window(start).flat())
        return self._map

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *exc: object) -> None:
        self._frames.close()


def all_mended(now: Now, entries: Iterable[FileEntry], levels: Sequence[int], check: Check) -> tuple[list[str], str]:
    """Repair chunk files; return (paths of the repaired files, the error that stopped the repair or "").

    levels: those to try besides the levels that manifests record.
    """
    done: list[str] = []
    entries = [*entries]
    drafts.remove(now.series, {entry.folder for entry in entries})  # left by a repair that was killed
    try:
        for entry in entries:
            with suppress(errors.Damaged):  # the file's records may be damaged, too
                if not layout.CHUNK_PATH.match(entry.path):
                    continue
                if mended(now, entry, list(dict.fromkeys([*_recorded_levels(now, entry), *levels])), check):
                    done.append(entry.path)
                    log.info("%s of %s made again", entry.path, now.series.domain)
    except errors.NbdpullError as error:
        return done, str(error)
    return done, ""
