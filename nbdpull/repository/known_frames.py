"""The frames that a disk's older points hold, by range and digest, so that a rewrite of the same data is stored once.

Owns: the look-up, and its bound in memory. Must not know: how frames are written, or where the new data come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import numpy

from ..core import extents
from ..core.errors import Check
from ..format import layout
from ..format.manifest import FileEntry
from .image import Image
from .series import Point, Series

if TYPE_CHECKING:
    from ..core.extents import Mask, Segments

BUDGET = 32 << 20  # bytes of memory that the look-up may take


class KnownFrames:
    """The whole frames of an image. chunks: FileEntry of every chunk file that they are in.

    Only a frame that answers for exactly its range counts: what was cut out of one by a later pull is not compared.
    """

    def __init__(self, records: layout.Records, chunks: list[FileEntry]) -> None:
        self._records = records
        self._offsets = numpy.ascontiguousarray(records["offset"])
        self.chunks = chunks

    def find(self, records: layout.Records) -> tuple[Mask, layout.Records]:
        """records: of new data extents, with length and digest. Return (which are known, references for those)."""
        if not len(self._offsets):
            return numpy.zeros(len(records), bool), records[:0]
        nearest = numpy.minimum(numpy.searchsorted(self._offsets, records["offset"]), len(self._offsets) - 1)
        found = self._records[nearest]
        known = (found["offset"] == records["offset"]) & (found["raw"] == records["raw"])
        known &= found["digest"] == records["digest"]
        return known, found[known]


def of_point(series: Series, point: Point, disk: str, check: Check = lambda: None) -> Optional[KnownFrames]:
    """Return the KnownFrames of a disk as of a point, or None where they do not fit BUDGET. check() is called often."""
    parts, size = [], 0
    with Image(series, point, disk, check=check) as image:
        for _, _, segments, layers in image.resolved():
            part = _whole_frames(segments, layers, image.chunk_numbers)
            size += part.nbytes + part["offset"].nbytes
            if size > BUDGET:
                return None
            parts.append(part)
        chunks = image.chunks
    return KnownFrames(numpy.concatenate(parts) if parts else numpy.empty(0, layout.RECORD), chunks)


def _whole_frames(segments: Segments, layers: list[layout.Records], chunk_numbers: list[list[int]]) -> layout.Records:
    """The records of one window that are data and visible as a whole, with chunk numbers of the whole chain."""
    parts = [numpy.empty(0, layout.RECORD)]
    for number, records in enumerate(layers):
        mine = segments[segments["layer"] == number]
        part = records[mine["record"]].copy()
        whole = (part["kind"] == extents.DATA) & (part["skip"] == 0) & (part["length"] == part["raw"])
        whole &= part["length"] == mine["length"]
        part = part[whole]
        part["chunk"] = numpy.array(chunk_numbers[number], "u4")[part["chunk"]]
        parts.append(part)
    result = numpy.concatenate(parts)
    return result[numpy.argsort(result["offset"])]
