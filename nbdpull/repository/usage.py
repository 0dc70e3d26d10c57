"""The space that the files of a series take, by point: computed from the directories only, each of which is read once.

Exclusive to a point are the files that only that point refers to: removing only that point frees this space. Dead are
the parts of existing files that no point shows. A directory records how many bytes of a file its point shows (`live`),
but not which bytes. So the point that shows most of a file determines how much of the file is live. That is exact as
long as each point was read against the one before it, because what such a series has once hidden is never shown again.
If two points were read against the same one, each may show what the other hides; then fewer bytes are dead than
reported. An exact figure would need the pages of every point to be combined: a million windows for a thousand points of
a disk of 1 TiB.

Must not know: how anything is removed, how the figures are printed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import compress, count
from typing import NamedTuple

from ..core.errors import Check
from ..format import moved
from ..format.directory import Directory
from ..format.manifest import FileEntry
from . import references, removal
from .series import Point, Series


class OfPoint(NamedTuple):
    """The space of a point, in bytes. images: size of its disks; exclusive: files that only this point refers to;
    shared: files that other points refer to, too; dead: what no point shows of the files in its folder."""

    point: Point
    images: int
    exclusive: int
    shared: int
    dead: int


@dataclass(frozen=True)
class Usage:
    """The space of a series, in bytes.

    points: in the order of commits; shared: files that several points refer to, each counted once; left: files that
    points refer to in folders without a point; dead: what no point shows of the files that points refer to, plus
    `waiting`; waiting: files in folders without a point that nothing refers to.
    """

    points: list[OfPoint]
    shared: int
    left: int
    dead: int
    waiting: int

    @property
    def exclusive(self) -> int:
        return sum(each.exclusive for each in self.points)

    @property
    def stored(self) -> int:
        return self.exclusive + self.shared + self.waiting


@dataclass
class _File:
    """A file. users: the points that refer to it, each a bit: sets of numbers are large; shown: bytes that points show,
    at least."""

    entry: FileEntry
    users: int = 0
    shown: int = 0

    @property
    def is_shared(self) -> bool:
        return bool(self.users & (self.users - 1))

    @property
    def dead(self) -> int:
        return self.entry.size - self.shown


def of_series(series: Series, check: Check = lambda: None) -> Usage:
    """Return the space of a series. Damaged or FormatTooNew if a point cannot be read: then it is unknown what is
    exclusive to the others."""
    with series.store.looking(series.folder):
        return _of_series(series, check)


def _of_series(series: Series, check: Check) -> Usage:
    points = series.points()
    named: dict[str, _File] = {}
    directories = series.store.several(partial(_directories, series), points)
    for number, (point, opened) in enumerate(zip(points, directories)):
        check()
        _note(series, point, opened, number, named)
    whose = {point.id for point in points}
    files = _held(series, named.values(), whose)
    exclusive = _by_point((file for file in files if not file.is_shared), len(points))
    shared = _by_point((file for file in files if file.is_shared), len(points))
    dead = dict.fromkeys(whose, 0)
    for file in files:
        dead[file.entry.folder] = dead.get(file.entry.folder, 0) + file.dead
    elsewhere = _elsewhere(named.values(), whose)
    kept = references.paths(series, elsewhere).difference(references.beside(series, elsewhere))
    kept |= {file.entry.path for file in files}  # what is beside one file may be all that is left of another
    waiting = removal.waiting(series, kept)
    return Usage(
        [
            OfPoint(point, sum(disk.size for disk in point.manifest.disks), alone, others, dead[point.id])
            for point, alone, others in zip(points, exclusive, shared)
        ],
        shared=sum(file.entry.size for file in files if file.is_shared),
        left=sum(entry.size for entry in _elsewhere(files, whose)),
        dead=sum(dead.values()) + waiting,
        waiting=waiting,
    )


def _directories(series: Series, point: Point) -> list[Directory]:
    return [series.directory(point, disk, partial=True) for disk in point.disks]


def _note(series: Series, point: Point, opened: list[Directory], number: int, named: dict[str, _File]) -> None:
    """Note the files that a point refers to, and how much of each it shows: of files that belong to no image, all."""
    live, user = references.live(opened), 1 << number
    for entry in references.by_directories(point, opened):
        file = named.get(entry.path)
        if file is None:
            file = named[entry.path] = _File(entry)
        file.users |= user
        file.shown = max(file.shown, min(live.get(entry.path, entry.size), entry.size))


def _by_point(files: Iterable[_File], points: int) -> list[int]:
    """Return for each point the bytes of those of the files to which it refers."""
    found = [0] * points
    for file in files:
        for number in compress(count(), bin(file.users)[:1:-1].encode().translate(_AS_BITS)):
            found[number] += file.entry.size
    return found


_AS_BITS = bytes.maketrans(b"01", b"\0\1")


def _elsewhere(files: Iterable[_File], points: Container[str]) -> list[FileEntry]:
    """Return the files in folders without a point."""
    return [file.entry for file in files if file.entry.folder not in points]


def _held(series: Series, named: Iterable[_File], points: Container[str]) -> list[_File]:
    """Return the files that are actually read; only files of removed points may have been moved."""
    found: dict[str, _File] = {}
    for file in named:
        held = [file.entry] if file.entry.folder in points else references.holding(series, [file.entry])
        if held == [file.entry]:
            found[file.entry.path] = file
        else:
            _move(series, file, held, found)
    return list(found.values())


def _move(series: Series, file: _File, held: Iterable[FileEntry], found: dict[str, _File]) -> None:
    """Count a moved file where its frames are now. held: the table of its move, and the files that contain its frames.
    If there are several, each may show all that the others do not."""
    table = moved.read(series.store, series.folder, file.entry)
    parts = {entry.path: table.bytes_in(entry.path) for entry in table.files} if table else {}
    for entry in held:
        into = found.setdefault(entry.path, _File(entry))
        into.users |= file.users
        others = sum(parts.values()) - parts.get(entry.path, 0)
        into.shown += max(file.shown - others, 0) if entry.path in parts else entry.size
