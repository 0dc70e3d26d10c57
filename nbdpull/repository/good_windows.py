"""Windows of disks that a run need not check a second time, no matter how many points share them.

Owns: when a window of one directory equals that of another. Equal pages are not enough: the directory says where the
pages are, and names the chunk files that they point into. If it does not name a file whose frames show, the disk is
damaged. Must not know: how a window is checked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING

import numpy

from ..format.directory import Directory

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Key = tuple[int, bytes]  # size of the disk; PAGE of each page, with a number of ours for the index that it is in


class GoodWindows:
    """The good windows of the disks of a series."""

    def __init__(self) -> None:
        self._numbers: Mapping[str, int] = defaultdict(count().__next__)  # of paths, in order of appearance
        self._needs: dict[_Key, int] = {}  # the files that a window may need, each a bit: sets of paths are large

    def of(self, disk: Directory) -> GoodWindowsOf:
        return GoodWindowsOf(disk, self._needs, self._numbers)


class GoodWindowsOf:
    """The good windows of a series, as seen from one directory."""

    def __init__(self, disk: Directory, needs: dict[_Key, int], numbers: Mapping[str, int]) -> None:
        self._disk, self._needs, self._number = disk, needs, numbers.__getitem__
        own = [*map(self._number, [entry.path for entry in disk.files])]
        self._files = _bits(own)
        self._keys = _keys(disk, numpy.array(own, "u4"))

    def add(self, start: int) -> None:
        """Note that the window that begins at `start` is good."""
        self._needs[self._keys[start]] = self._files  # which it needs matters only if another directory lacks one

    def has(self, start: int) -> bool:
        """Return whether the window is known to be good. Damaged, if its pages have disappeared since."""
        key = self._keys[start]
        needed = self._needs.get(key)
        if needed is None:
            return False
        if needed & ~self._files:
            needed = self._needs[key] = needed & _bits([*map(self._number, self._disk.named(start))])
        return not needed & ~self._files


def _keys(disk: Directory, numbers: NDArray[numpy.uint32]) -> dict[int, _Key]:
    """Return {start: _Key} of all windows. numbers: our numbers of the directory's files."""
    refs = disk.pages.copy()
    refs["file"] = numbers[refs["file"]]
    starts, firsts = numpy.unique(refs["offset"], return_index=True)
    ends, packed, size = [*firsts[1:].tolist(), len(refs)], refs.tobytes(), refs.itemsize
    windows = zip(starts.tolist(), firsts.tolist(), ends)
    return {start: (disk.size, packed[first * size : end * size]) for start, first, end in windows}


def _bits(numbers: list[int]) -> int:
    if not numbers:
        return 0
    found = numpy.zeros(max(numbers) + 1, bool)
    found[numbers] = True
    return int.from_bytes(numpy.packbits(found, bitorder="little").tobytes(), "little")
