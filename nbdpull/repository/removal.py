"""Points that are removed, and the files that go with them.

A point is gone once its manifest has another name; that frees nothing, and can be taken back by hand until the sweep. A
file goes when no committed point refers to it, and not before readers that began earlier have had their time. Each step
is one call of the system, takes no room, and can be made again: what a killed run leaves, the next one ends.

Owns: what a removed point's directory looks like, and which files may go. Who removes holds the series. Must not know:
which points are to go, and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core import errors
from ..core.errors import Check
from ..format import layout
from . import half_points
from .series import Point, Series

GRACE = 24 * 3600.0  # seconds that a reader may take to its end


@dataclass(frozen=True)
class Swept:
    """What became of the files of removed points, in bytes. freed: gone; waiting: nothing refers to them, but it is
    too early; shared: points that stay refer to them. points: ids of those of which nothing is left."""

    freed: int = 0
    waiting: int = 0
    shared: int = 0
    points: tuple[str, ...] = ()

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.freed + other.freed,
            self.waiting + other.waiting,
            self.shared + other.shared,
            self.points + other.points,
        )


def remove(series: Series, point: Point) -> None:
    """From now on the series has no such point. OutputError."""
    folder = f"{series.folder}/{point.id}"
    series.store.remove_file(f"{folder}/{half_points.REMOVED}")  # of a removal that was taken back
    series.store.rename(f"{folder}/{layout.MANIFEST}", f"{folder}/{half_points.REMOVED}")
    half_points.end_announcement(series, point.id)


def referred(series: Series, check: Check = lambda: None) -> set[str]:
    """Paths of all files that the points of a series refer to, relative to it. Where that cannot be told of one point,
    no file may go: Damaged, FormatTooNew."""
    points, refused = series.load()
    for error in refused.values():
        raise type(error)(f"{error}; until that is settled, no file of {series.domain} can be removed") from error
    found: set[str] = set()
    for point in points:
        check()
        found |= {entry.path for entry in point.manifest.all_files()}
        for disk in point.disks:
            found |= {entry.path for entry in series.directory(point, disk, partial=True).files}
    return found


def why_stays(series: Series, name: str) -> str:
    """Of a directory without a manifest that says nothing of itself: it may be what is left of a point that others
    refer to. "" where it may go."""
    try:
        is_empty = not series.store.names(f"{series.folder}/{name}")
        is_needed = not is_empty and any(path.startswith(f"{name}/") for path in referred(series))
        return "points refer to its files" if is_needed else ""
    except errors.NbdpullError as error:
        return str(error)


def sweep(
    series: Series, grace: float = GRACE, gone: frozenset[str] = frozenset(), check: Check = lambda: None
) -> Swept:
    """Remove what nothing refers to of points that were removed so many seconds ago. gone: ids of points that are to be
    taken for removed; then only look."""
    names = [*half_points.removed(series), *gone]
    if not names:
        return Swept()
    kept = referred(series, check) if not gone else _referred_without(series, gone, check)
    total = Swept()
    for name in names:
        check()
        total += _swept(series, name, kept, grace, look=bool(gone))
    return total


def _referred_without(series: Series, gone: frozenset[str], check: Check) -> set[str]:
    return referred(_Without(series, gone), check)


class _Without(Series):
    """The same series with some points less."""

    def __init__(self, series: Series, gone: frozenset[str]) -> None:
        super().__init__(series.store, series.domain, series.folder)
        self._gone = gone

    def load(self) -> tuple[list[Point], dict[str, errors.NbdpullError]]:
        points, refused = super().load()
        return [point for point in points if point.id not in self._gone], refused


def _swept(series: Series, name: str, kept: set[str], grace: float, look: bool) -> Swept:
    """Of one removed point."""
    folder, shared, free = f"{series.folder}/{name}", 0, 0
    going = []
    for file, size in _files(series, folder):
        if f"{name}/{file}" in kept:
            shared += size
        else:
            going.append(file)
            free += size
    if look or half_points.seconds_removed(series, name) < grace:
        return Swept(waiting=free, shared=shared)
    for path in [f"{folder}/{file}" for file in going]:
        series.store.remove_file(path)
        if series.store.holds(path):
            raise errors.OutputError(f"cannot remove {series.store.path(path)}: look at its owner and mode")
    if shared:
        return Swept(freed=free, shared=shared)
    series.store.remove_folder(folder)  # with the name that the manifest has now, the last of it
    return Swept(freed=free, points=(name,))


def _files(series: Series, folder: str) -> Iterator[tuple[str, int]]:
    """(name, bytes) of the files of a directory but that which says that its point was removed."""
    for name in series.store.names(folder):
        if name != half_points.REMOVED:
            yield name, series.store.size(f"{folder}/{name}") or 0
