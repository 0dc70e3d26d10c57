"""The frames that a disk has already, by range and digest, so that a rewrite of the same data is stored once.

Owns: the look-up, window by window, and its bound in memory. Must not know: how frames are written, or where the new
data come from.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy

from ..core import extents
from ..format import layout
from ..format.directory import Directory

if TYPE_CHECKING:
    from ..core.extents import Mask

HELD = 4  # windows


class KnownFrames:
    """The whole frames that the directory of a disk shows. May be used by several threads at once.

    Only a frame that answers for exactly its range counts: what was cut out of one by a later pull is not compared.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._held: OrderedDict[int, layout.Records] = OrderedDict()

    def find(self, records: layout.Records) -> tuple[Mask, layout.Records]:
        """records: of new data extents, ascending, with length and digest. Return (which are known, references for
        those). Damaged where the index of the older ones is."""
        found = [self._find(part) for part in extents.split(records, layout.WINDOW)]
        masks, references = [mask for mask, _ in found], [each for _, each in found]
        return numpy.concatenate([numpy.zeros(0, bool), *masks]), numpy.concatenate([records[:0], *references])

    def _find(self, records: layout.Records) -> tuple[Mask, layout.Records]:
        frames = self._frames(int(records["offset"][0]) // layout.WINDOW * layout.WINDOW)
        if not len(frames):
            return numpy.zeros(len(records), bool), records[:0]
        nearest = numpy.minimum(numpy.searchsorted(frames["offset"], records["offset"]), len(frames) - 1)
        found = frames[nearest]
        known = (found["offset"] == records["offset"]) & (found["raw"] == records["raw"])
        known &= found["digest"] == records["digest"]
        return known, found[known]

    def _frames(self, start: int) -> layout.Records:
        """The whole frames of a window; one thread makes them up at a time."""
        if not len(self._directory.refs(start)):
            return numpy.empty(0, layout.RECORD)
        with self._lock:
            if start not in self._held:
                self._held[start] = self._directory.frames(start)
                while len(self._held) > HELD:
                    self._held.popitem(last=False)
            return self._held[start]
