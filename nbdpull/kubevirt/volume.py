"""One volume of a KubeVirt backup as the source of a disk: its size, its extents, its bytes.

Owns: that the map is read first, as only it shows the size, and how ranges become requests. Must not know: HTTP, what
the disk is compared with, where the bytes go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Optional

import numpy

from ..core import errors, extents
from ..core.choices import BackupType
from . import extent_map
from .endpoint import Endpoint

if TYPE_CHECKING:
    from ..core.extents import Extents, Range, Ranges
    from .extent_map import Held

MAX_REQUEST = 16 << 20  # bytes: at 1 MB/s half of what a route lets through
READ_DATA = 8 << 20  # bytes that a thread reads at once: each request costs KubeVirt a connection to QEMU


class Volume:
    """One volume of a backup.

    type: of BackupType; size: bytes; allocated: bytes that are not zero, according to the map; reports_zeros: whether
    the map declares any zeros; presumed: see nbd.source.
    """

    def __init__(self, endpoint: Endpoint, name: str, backup_type: str) -> None:
        """Read the map."""
        self._endpoint, self.name, self.type, self.presumed = endpoint, name, backup_type, 0
        self._map = extent_map.whole(self._ask, backup_type, name, self._behind)
        self.size = extent_map.size(self._map)
        self.reports_zeros = extent_map.reports_zeros(self._map)
        self.allocated = extents.total(extent_map.stored(self._map, BackupType.FULL, 0, None), extents.DATA)
        self._stored = extent_map.stored(self._map, backup_type, 0, None)

    def _ask(self, offset: int, length: int) -> Any:
        return self._endpoint.map_page(self.name, offset, length)

    def _behind(self, offset: int) -> Any:
        return self._endpoint.map_behind(self.name, offset)

    def changed(self, dirty_from: int, held: Optional[Held], again: Ranges) -> None:
        """Restrict the extents to what is laid over an older image; see extent_map.stored. By default they cover
        everything.

        again: ranges that are included in any case, dirty or not.
        """
        stored = extent_map.stored(self._map, self.type, dirty_from, held)
        every = extent_map.stored(self._map, BackupType.FULL, 0, None)
        more = extents.without(extents.intersect(every, again), stored)
        self.presumed = extents.total(more)
        both = numpy.concatenate([stored, more])
        self._stored = extents.merged(both[numpy.argsort(both["offset"], kind="stable")])

    def extents(self, start: int = 0) -> Iterator[Extents]:
        found = extents.clip(self._stored, start, self.size)
        for first in range(0, len(found), extent_map.SLICE):
            yield found[first : first + extent_map.SLICE]

    @contextmanager
    def reading(self) -> Iterator[Volume]:
        yield self

    def read_batch(self, ranges: Sequence[Range]) -> list[memoryview]:
        """Return the bytes of each of these ascending ranges."""
        views: list[memoryview] = [memoryview(b"")] * len(ranges)
        for request in extent_map.requests(ranges, MAX_REQUEST):
            buffer = memoryview(bytearray(request.length))
            self._endpoint.read_into(self.name, request.offset, buffer)
            for number in request.wanted:
                offset, length = ranges[number]
                views[number] = buffer[offset - request.offset :][:length]
        return views

    def require_same(self) -> None:
        """Raise JobLost if the map no longer ends as it did: what was read is not, or may not be, of one backup."""
        start = self.size - min(self.size, extent_map.OVERLAP)
        document = self._ask(start, 2 * extent_map.OVERLAP)
        try:
            found = extent_map.page(document, start, self.type).found
        except ValueError:
            found = extents.of([])
        if not numpy.array_equal(extents.merged(found), extents.clip(self._map, start, self.size)):
            raise errors.JobLost(f"volume {self.name}: the backup is no longer the one that was read")
