"""A point being made: its directory, its small files, and the commit.

Owns: that a point counts from when its manifest appears, and that an uncommitted point leaves nothing behind. Must not
know: how chunk files are made, libvirt, NBD.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Optional

from ..format import layout, manifest
from ..format.manifest import DiskEntry, FileEntry, Manifest
from . import announcement, half_points, immutable, lock_free
from .announcement import Announcement
from .series import Point, Series

log = logging.getLogger("nbdpull.store")


@contextmanager
def begun(series: Series, point_id: str, announced: Optional[Announcement] = None) -> Iterator[NewPoint]:
    """Yield a NewPoint in a new directory; the directory is removed unless the point was committed.

    announced: the record of the run that makes the point, written to the directory first.
    """
    series.store.make_folder(f"{series.folder}/{point_id}", fresh=True)
    with _committed(NewPoint(series, point_id), announced) as new:
        yield new


@contextmanager
def resumed(series: Series, announced: Announcement) -> Iterator[NewPoint]:
    """Yield a NewPoint in the directory of a dead run; the directory is removed unless the point was committed. For the
    files in it, see NewPoint.remove_all_but."""
    half_points.end_announcement(series, announced.id)
    with _committed(NewPoint(series, announced.id), announced) as new:
        yield new


@contextmanager
def _committed(new: NewPoint, announced: Optional[Announcement]) -> Iterator[NewPoint]:
    try:
        if announced:
            new.announce(announced)
        yield new
    finally:
        if new.committed:
            half_points.end_announcement(new.series, new.id)
        else:
            half_points.remove(new.series, new.id)


class Stored(NamedTuple):
    """A disk whose files are written. files: those made for it, except the directory, which the entry names."""

    entry: DiskEntry
    files: Sequence[FileEntry]


class NewPoint:
    """A point being made: add its files, then commit. Nothing of it counts before `commit` returns."""

    def __init__(self, series: Series, point_id: str) -> None:
        self.id = point_id
        self.committed = False
        self.series = series
        self._folder = f"{series.folder}/{point_id}"
        self._files: list[FileEntry] = []

    def fits(self, name: str, size: int) -> bool:
        """Return whether the point can have a small file with this name and size in bytes."""
        return layout.fits_point(name, size + self.series.store.seal.overhead)

    def add_file(self, name: str, data: bytes, parent: Optional[Point] = None) -> None:
        """Add a small file, such as the domain's XML. parent: a Point; if it has the same file, intact, the new point
        refers to that file instead."""
        self._add_stored(name, self.series.store.seal.piece(data, layout.file_piece(name)), parent)

    def _add_stored(self, name: str, data: bytes, parent: Optional[Point] = None) -> None:
        """Do as `add_file` with the bytes to store, which are sealed if the store is."""
        if known := self.series.same_file(parent, name, data):
            self._files.append(known)
            return
        with self.series.store.create(f"{self._folder}/{name}") as file:
            file.write(data)
        self._files.append(FileEntry(f"{self.id}/{name}", file.size, file.sha256()))

    def commit(self, fields: Mapping[str, Any], stored: Sequence[Stored], known: Collection[str] = ()) -> Point:
        """Publish the point, and return the Point. fields: the other members of its Manifest; known: ids of the points
        that existed when its sequence was chosen."""
        store, disks = self.series.store, [each.entry for each in stored]
        lock_free.require_alive(self.series, self.id)
        entries = [*(disk.directory for disk in disks), *(file for each in stored for file in each.files), *self._files]
        digests = {entry.name: entry.sha256 for entry in entries if entry.folder == self.id}
        self._add_stored(layout.SUMS, layout.sums(digests))
        store.sync_folder(self._folder)
        promise = immutable.promised(self.series, fields.get("parent"), fields["store"])
        values = {**fields, "locked": promise.entry if promise else None}
        data = manifest.encode(Manifest(point=self.id, disks=disks, files=self._files, **values), store.seal)
        decoded = manifest.decode(data, self.id, store.seal)  # never publish what a reader would refuse
        made = Point(decoded, hashlib.sha256(data).hexdigest())
        if decoded.parent:
            lock_free.require_base(self.series, decoded.parent.point)
        protection = immutable.secure(self.series, made, promise)
        store.publish(f"{self._folder}/{layout.MANIFEST}", data, protection)
        lock_free.prove(self.series, made, known, lambda: self._require_still(made))
        self.committed = True
        log.info("point %s of %s committed", made.id, decoded.domain)
        return made

    def _require_still(self, made: Point) -> None:
        """Repeat the checks made before the manifest appeared: the machine may have been suspended since."""
        lock_free.require_alive(self.series, self.id)
        if made.manifest.parent:
            lock_free.require_base(self.series, made.manifest.parent.point)

    def announce(self, announced: Announcement) -> None:
        store = self.series.store
        here = replace(announced, inode=store.inode(self._folder))
        store.publish(f"{self._folder}/{announcement.NAME}", announcement.encode(here))

    def remove_all_but(self, kept: Iterable[FileEntry]) -> None:
        """Remove the files that a dead run left, except the useful ones. kept: their FileEntry."""
        stay = {announcement.NAME, *(entry.name for entry in kept)}
        for name in set(self.series.store.names(self._folder)) - stay:
            self.series.store.remove_file(f"{self._folder}/{name}")
