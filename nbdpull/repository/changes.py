"""The differences between two images of a disk, found from their directories without reading a frame.

Owns: the comparison, window by window; pages that both images share are equal and not read. Two frames with the same
digest are equal. Frames with different digests are reported as different, although they may hold the same bytes. Must
not know: which points the images belong to, or what the differences are used for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy

from ..core import extents
from ..core.errors import Check
from ..format import layout, stack
from ..format.directory import Directory, same_pages

if TYPE_CHECKING:
    from ..core.extents import Extents, Indexes, Mask
    from ..format.layout import Records


def between(before: Directory, after: Directory, check: Check = lambda: None) -> Iterator[Extents]:
    """Yield, in ascending order, the extents in which `after` differs from `before`, with the data and zeros of
    `after`.

    All of what the disk grew by is included. What was cut off is not.
    """
    grown = before.size
    for start in sorted({*before.starts(), *after.starts()}):
        check()
        stop = layout.window_stop(start, after.size)
        if start >= after.size:
            break
        if grown < start:
            yield extents.of([(grown, start - grown, extents.ZERO)])
            grown = start
        found = _of_window(before, after, start, stop)
        if grown < stop:
            found = extents.filled(found, max(grown, start), stop, extents.ZERO)
            grown = stop
        yield found
    if grown < after.size:
        yield extents.of([(grown, after.size - grown, extents.ZERO)])


def _of_window(before: Directory, after: Directory, start: int, stop: int) -> Extents:
    if same_pages(before.refs(start), after.refs(start)):
        return extents.of([])
    return _differences(_data(before, start, stop), _data(after, start, stop))


def _data(directory: Directory, start: int, stop: int) -> Records:
    found: Records = extents.clip(stack.data_of(directory.window(start).flat()), start, stop)
    return found


def _differences(old: Records, new: Records) -> Extents:
    if not len(old) and not len(new):
        return extents.of([])
    edges = extents.distinct([old["offset"], extents.ends(old), new["offset"], extents.ends(new)])
    at = edges[:-1]
    mine, others = extents.answering(new, at), extents.answering(old, at)
    differ = ~_equal(new, mine, old, others) & ((mine >= 0) | (others >= 0))
    result = numpy.empty(int(differ.sum()), extents.EXTENT)
    result["offset"], result["length"] = at[differ], numpy.diff(edges)[differ]
    result["kind"] = numpy.where(mine[differ] >= 0, extents.DATA, extents.ZERO)
    return extents.merged(result)


def _equal(new: Records, mine: Indexes, old: Records, others: Indexes) -> Mask:
    """Return where both have data from the same place in the same frame."""
    both: Mask = (mine >= 0) & (others >= 0)
    one, other = new[mine[both]], old[others[both]]
    begins = [each["offset"].astype("i8") - each["skip"].astype("i8") for each in (one, other)]  # of the frame
    both[both] = (one["digest"] == other["digest"]) & (begins[0] == begins[1])
    return both
