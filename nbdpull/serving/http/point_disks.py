"""The disks of a committed point as volumes: each disk as of the point, and what the point changed.

Owns: which parts of a disk its point changed since its parent. Must not know: HTTP, who requests it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, Optional

from ...core import errors, extents
from ...core.choices import CACHE_BYTES
from ...core.errors import Check
from ...format import manifest
from ...repository import changes
from ...repository.lookup import RandomImage
from ...repository.series import Point, Series
from . import data
from .volume import DATA, ZERO, Extent

if TYPE_CHECKING:
    from ...core.extents import Extents

READERS = 2  # decompression is work; with more threads most of the time goes into passing Python's lock around
BATCH = 4096  # runs of data looked up at once


class PointDisk:
    """A Volume: a whole disk as of the point. Use as a context manager.

    changes: what its point changed, None if it was read in full, or the parent's disk is not available.
    """

    mode = manifest.FULL

    def __init__(
        self,
        series: Series,
        point: Point,
        name: str,
        cache_bytes: int = CACHE_BYTES,
        check: Check = lambda: None,
        trouble: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Open the disk. NoSuchDisk, PartialPoint, Damaged.

        check() is called often meanwhile; trouble(text) when a read fails.
        """
        parent = None if point.disk(name).mode == manifest.FULL else series.parent(point)
        self.name, self._trouble = name, trouble
        self._image = RandomImage(series, point, name, cache_bytes, check)
        self.size, self.directory = self._image.size, self._image.directory
        before = parent.manifest.disk(name) if parent else None
        self.changes: Optional[Changes] = None
        with suppress(errors.Damaged):  # of the parent: the disk itself is not affected
            self.changes = Changes(self, series, parent) if parent and before and before.whole else None

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the extents of the whole disk, from `start` on."""
        return _extents(extents.merged_stream(self._batches(start)))

    def _batches(self, at: int) -> Iterator[Extents]:
        while at < self.size:
            found = self._image.extents(at, limit=BATCH)
            yield found
            at = int(extents.ends(found[-1:])[0])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer. Damaged if a frame is not what was stored: then ignore all of the buffer."""
        try:
            self._image.read_into(offset, buffer)
        except errors.NbdpullError as error:
            self._trouble(str(error))
            raise

    def pieces(self, begin: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes of a range: see data.py."""
        return data.by_threads(self.read_into, begin, end, READERS)

    def __enter__(self) -> PointDisk:
        return self

    def __exit__(self, *exc: object) -> None:
        self._image.close()


class Changes:
    """A Volume: the same disk, but only the parts that the point changed since its parent. since: id of that parent."""

    mode = manifest.INCREMENTAL

    def __init__(self, disk: PointDisk, series: Series, parent: Point) -> None:
        self.name, self.size, self.since = disk.name, disk.size, parent.id
        self.pieces = disk.pieces
        self._before, self._after = series.directory(parent, disk.name), disk.directory

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield what to write to the disk as of the parent, from `start` on, including everything by which it has
        grown."""
        found = (extents.clip(each, start, self.size) for each in changes.between(self._before, self._after))
        return _extents(extents.merged_stream(found))


def _extents(batches: Iterator[Extents]) -> Iterator[Extent]:
    kinds = {extents.DATA: DATA, extents.ZERO: ZERO}
    for batch in batches:
        for offset, length, kind in batch.tolist():
            yield offset, length, kinds[kind]
