"""The sound part of a directory with damaged files, over which a new point can be laid.

Owns: that nothing refers to a damaged file any more, and which ranges of the disk have to be read again for that. All
that is left is proved: a page by its digest in the directory, a frame's digest by its page. Must not know: how damage
is found, how a disk is read.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy

from ..core import errors, extents
from ..core.errors import Check
from ..storage.base import Store
from . import layout, pages, stack
from .directory import Directory, whole_frames
from .manifest import DiskEntry

if TYPE_CHECKING:
    from ..core.extents import Extents, Mask
    from .pages import Numbers


class SoundPart(Directory):
    """A directory without its damaged files. Reads every page. Damaged if the directory itself is damaged.

    bad: paths of damaged or missing files; again: the ranges whose data is in them, DATA, ascending and merged. A point
    that is laid over this directory must write all of these ranges. A window with an unreadable page is left out, and
    `again` contains all of it.
    """

    def __init__(
        self, store: Store, series: str, disk: DiskEntry, bad: Collection[str], check: Check = lambda: None
    ) -> None:
        super().__init__(store, series, disk)
        self.bad = frozenset(bad) & {entry.path for entry in self.files}
        self._bad = numpy.array(sorted(map(self.number, self.bad)), "u4")
        self._lost: set[int] = set()
        live: Counter[int] = Counter()
        again: list[Extents] = [extents.of([])]
        for start in super().starts():
            check()
            try:
                shown = self._window(start).flat()
            except errors.Damaged:
                self._lost.add(start)
                again.append(extents.of([(start, min(layout.WINDOW, self.size - start), extents.DATA)]))
                continue
            live.update(pages.total_live(shown))
            again.append(_ranges(shown[self._is_bad(shown)]))
        self.again = extents.merged(numpy.concatenate(again))
        if self._lost:  # what these windows show is unknown
            self.live = numpy.array([live[number] for number in range(len(self.files))], "u8")

    def _is_bad(self, records: layout.Records) -> Mask:
        """Return which of the records point into a damaged file."""
        mask: Mask = (records["kind"] == extents.DATA) & numpy.isin(records["chunk"], self._bad)
        return mask

    def starts(self) -> list[int]:
        return [start for start in super().starts() if start not in self._lost]

    def can_stay(self, start: int) -> bool:
        return not numpy.isin(self.refs(start)["file"], self._bad).any()

    def frames(self, start: int) -> layout.Records:
        """Return records of whole frames, also those of a lost window, if their page can be read: the digest shows
        whether the data is the same."""
        if start not in self._lost:
            shown = super().frames(start)
            return shown[~self._is_bad(shown)]
        layers = [self._readable(ref) for ref in self.refs(start)]
        shown = stack.flat(layers, start, layout.window_stop(start, self.size))
        return whole_frames(shown[numpy.isin(shown["chunk"], self._in_place)])

    @functools.cached_property
    def _in_place(self) -> Numbers:
        """The numbers of the sound files that were not repacked: a repack does not move frames that no point shows.
        Empty in a store without locks, where another run may be repacking right now."""
        if not self._store.has_locks:
            return numpy.empty(0, "u8")
        with self._store.looking(self._series):
            there = [
                entry.path not in self.bad and self._store.size(f"{self._series}/{entry.path}") is not None
                for entry in self.files
            ]
        return numpy.flatnonzero(there).astype("u8")

    def _readable(self, ref: numpy.void) -> layout.Records:
        try:
            return self.records(ref)
        except errors.Damaged:
            return numpy.empty(0, layout.RECORD)


def _ranges(records: layout.Records) -> Extents:
    """Return the ranges of data records."""
    result = numpy.zeros(len(records), extents.EXTENT)
    result["offset"], result["length"] = records["offset"], records["length"]
    return extents.merged(result)
