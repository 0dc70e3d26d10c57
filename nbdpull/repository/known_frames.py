"""The frames that a disk already has, by range and digest, so that rewritten identical data are not stored again.

Owns: the lookup, window by window, and its limit on memory. Must not know: how frames are written, or where the new
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
    """The whole frames that the directory of a disk shows. Several threads may use it at once.

    Only a frame that supplies exactly its own range counts: one that a later pull has overwritten in part is not
    compared.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._held: OrderedDict[int, layout.Records] = OrderedDict()

    def find(self, records: layout.Records) -> tuple[Mask, layout.Records]:
        """Return (which records are known, references for those). records: of new data extents, ascending, with length
        and digest. Damaged if the index of the older frames is damaged."""
        found = [self._find(part) for part in extents.split(records, layout.WINDOW)]
        masks, references = [mask for mask, _ in found], [each for _, each in found]
        return numpy.concatenate([numpy.zeros(0, bool), *masks]), numpy.concatenate([records[:0], *references])

    def _find(self, records: layout.Records) -> tuple[Mask, layout.Records]:
        frames = self._frames(layout.window_start(int(records["offset"][0])))
        if not len(frames):
            return numpy.zeros(len(records), bool), records[:0]
        nearest = numpy.minimum(numpy.searchsorted(frames["offset"], records["offset"]), len(frames) - 1)
        found = frames[nearest]
        known = (found["offset"] == records["offset"]) & (found["raw"] == records["raw"])
        known &= found["digest"] == records["digest"]
        return known, found[known]

    def _frames(self, start: int) -> layout.Records:
        """Return the whole frames of a window; only one thread at a time assembles them."""
        if not len(self._directory.refs(start)):
            return numpy.empty(0, layout.RECORD)
        with self._lock:
            if start not in self._held:
                self._held[start] = self._directory.frames(start)
                while len(self._held) > HELD:
                    self._held.popitem(last=False)
            return self._held[start]
