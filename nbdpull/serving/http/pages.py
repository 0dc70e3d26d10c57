"""A part of a map: contiguous, complete, at most so many extents.

Owns: that what is in no extent of a volume is told, too, and where the next page begins. Must not know: how it is
written.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing
from typing import Optional

from ...core import errors
from .volume import Extent, Volume

CLEAN = "clean"


def page(volume: Volume, offset: int, stop: int, most: int) -> tuple[list[Extent], Optional[int]]:
    """At most so many extents, which cover [offset, stop) from its begin on; and where the next page begins, None: it
    is covered."""
    found: list[Extent] = []
    with closing(complete(volume, offset, stop)) as told:
        for each in told:
            if len(found) == most:
                return found, each[0]
            found.append(each)
    return found, None


def complete(volume: Volume, offset: int, stop: int) -> Generator[Extent, None, None]:
    """Extents that cover [offset, stop), with what is CLEAN."""
    at = offset
    with ExitStack() as opened:
        told = volume.extents(offset)
        if isinstance(told, Generator):  # it may read ahead
            opened.callback(told.close)
        for start, length, kind in told:
            if start < at or length <= 0:
                raise errors.SourceError(f"the map of disk {volume.name} goes back at byte {start}")
            if start >= stop:
                break
            if start > at:
                yield at, start - at, CLEAN
            end = min(start + length, stop)
            yield start, end - start, kind
            at = end
    if at < stop:
        yield at, stop - at, CLEAN
