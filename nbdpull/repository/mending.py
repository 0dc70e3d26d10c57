"""A damaged chunk file made again from what a newer point shows at the same place.

Where the disk still holds what it held then, the frame can be made again: by the digest in the file's own records it is
the same data, and zstd of the same version makes the same bytes of it. Whether it does is not trusted: the file takes
the place of the old one only if its SHA-256 is the one that was stored. So the points that refer to it are what they
were, `sha256sum -c` holds, and no moved table is needed, which a frame of another size could not be in.

Owns: which frames are made again, and at which level. Who mends holds the series. Must not know: how a damage was
found, or is settled.
"""

from __future__ import annotations

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
from .inspection import frame_flaw
from .series import Point, Series

if TYPE_CHECKING:
    from ..format.layout import Record, Records

BLOCK = 1 << 20  # bytes that are copied at once
_TRIES = 16  # of one file, where frames of several levels have the same size
_LEVELS = {str(level): level for level in range(-1, 20)}  # that a pull may use; a manifest can tell of any


class _Other(Exception):
    """Raised where the file would have other bytes."""


class Now(NamedTuple):
    """A disk as of a point that is sound."""

    series: Series
    point: Point
    disk: str


def mended(now: Now, entry: FileEntry, levels: Sequence[int], check: Check) -> bool:
    """Make the frames of a chunk file again that are damaged; whether it is what was stored. It stays as it is unless
    all of them can be. levels: of zstd that may have made it. Damaged, OutputError."""
    store, path = now.series.store, f"{now.series.folder}/{entry.path}"
    if store.seal.id is not None or store.size(path) != entry.size:  # each frame of a sealed store has a random nonce
        return False
    bad = _bad_frames(now, entry, check)
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
    """Whether the file with these frames, by their positions, is what was stored, and so takes the place of the old."""
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


def _fitting(data: bytes, record: Record, old: Reader, levels: Sequence[int]) -> list[int]:
    """The levels that make a frame of that size, of those that make the same one the first; in the beginning the one
    whose frame is most like what is left of it. _Other where none makes one."""
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
    """Of a damaged frame; zeros where none of it can be read."""
    with suppress(errors.Damaged):
        return old.read(int(record["position"]), int(record["stored"]))
    return bytes(int(record["stored"]))


def _differing(one: bytes, two: bytes) -> int:
    """In how many bytes."""
    return int((numpy.frombuffer(one, numpy.uint8) != numpy.frombuffer(two, numpy.uint8)).sum())


def _told(now: Now, entry: FileEntry) -> list[int]:
    """Levels at which the point that made a file says that it compressed, as far as it can be read."""
    with suppress(errors.NbdpullError):
        told = now.series.point_in(entry.path.partition("/")[0]).disk(now.disk).levels
        return [_LEVELS[level] for level in sorted(told, key=told.__getitem__, reverse=True) if level in _LEVELS]
    return []


class _Shown:
    """What a disk has now. Of a large one a window of the map is in memory, and no more. Use as a context manager."""

    def __init__(self, now: Now) -> None:
        self._directory = now.series.directory(now.point, now.disk)
        self._frames = reader.FrameReader(now.series.store, now.series.folder, self._directory.files)
        self._start, self._map = -1, numpy.empty(0, layout.RECORD)

    def data(self, record: Record) -> bytes:
        """What the frame of a record held, Damaged; _Other where there are other bytes now."""
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
        start = offset // layout.WINDOW * layout.WINDOW
        if start != self._start:
            self._start, self._map = start, stack.data_of(self._directory.window(start).flat())
        return self._map

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *exc: object) -> None:
        self._frames.close()


def all_mended(now: Now, entries: Iterable[FileEntry], levels: Sequence[int], check: Check) -> tuple[list[str], str]:
    """(paths of those that are what was stored, why the rest was left: "" if nothing hindered). levels: that are tried
    beside those of which manifests tell."""
    done: list[str] = []
    entries = [*entries]
    drafts.remove(now.series, {entry.path.partition("/")[0] for entry in entries})  # of who was killed at it
    try:
        for entry in entries:
            with suppress(errors.Damaged):  # its records, too
                if not layout.CHUNK_PATH.match(entry.path):
                    continue
                if mended(now, entry, list(dict.fromkeys([*_told(now, entry), *levels])), check):
                    done.append(entry.path)
    except errors.NbdpullError as error:
        return done, str(error)
    return done, ""
