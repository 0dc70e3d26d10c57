"""The frames that a run has checked, so that it checks none twice, no matter how many points refer to it.

Owns: the record of these frames, 48 bytes each. Must not know: the results of the checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from ..format import layout

if TYPE_CHECKING:
    from ..core.extents import Indexes, Mask
    from ..format.layout import Records

FRAME = ("position", "stored", "raw", "digest")  # where a frame is in its file, and what it must contain
_KEY = numpy.dtype([(name, layout.RECORD[name]) for name in FRAME])
_NONE = numpy.empty(0, _KEY)


class SeenFrames:
    """Frames of files, by the files' paths. Of two frames at the same position of a file, only the first is known."""

    def __init__(self) -> None:
        self._known: dict[str, Records] = {}  # of _KEY, by position
        self._new: dict[str, list[Records]] = {}

    def add(self, path: str, records: Records) -> None:
        """Add the frames of some records of a file."""
        keys = numpy.empty(len(records), _KEY)
        for name in FRAME:
            keys[name] = records[name]
        self._new.setdefault(path, []).append(keys)

    def known(self, path: str, records: Records) -> Mask:
        """Return which records of a file belong to frames that were added: an array of booleans."""
        keys = self._keys(path)
        if not len(keys):
            return numpy.zeros(len(records), bool)
        nearest = numpy.minimum(numpy.searchsorted(keys["position"], records["position"]), len(keys) - 1)
        return equal_frames(keys[nearest], records)

    def _keys(self, path: str) -> Records:
        if path in self._new:
            keys = numpy.concatenate([self._known.get(path, _NONE), *self._new.pop(path)])
            self._known[path] = keys[numpy.unique(keys["position"], return_index=True)[1]]
        return self._known.get(path, _NONE)


def equal_frames(one: Records, other: Records) -> Mask:
    """Return whether each record belongs to the same frame as its counterpart; both are records of one file."""
    mask: Mask = numpy.logical_and.reduce([one[name] == other[name] for name in FRAME])
    return mask


def one_of_each(records: Records) -> Records:
    """Return one record for each frame that some records of a disk belong to, in their order."""
    order: Indexes = numpy.lexsort((records["position"], records["chunk"]))
    ordered = records[order]
    again = (ordered["chunk"][1:] == ordered["chunk"][:-1]) & equal_frames(ordered[1:], ordered[:-1])
    first = numpy.ones(len(records), bool)
    first[order[1:][again]] = False
    found: Records = records[first]
    return found
