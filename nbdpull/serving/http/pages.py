"""A part of a map: contiguous, complete, with a limited number of extents.

Owns: that ranges in no extent of a volume are listed, too, and where the next page starts. Must not know: how it is
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
    """Return at most `most` extents, which cover [offset, stop) from its start on; and where the next page starts.

    None: the range is covered.
    """
    found: list[Extent] = []
    with closing(complete(volume, offset, stop)) as listed:
        for each in listed:
            if len(found) == most:
                return found, each[0]
            found.append(each)
    return found, None


def complete(volume: Volume, offset: int, stop: int) -> Generator[Extent, None, None]:
    """Yield extents that cover [offset, stop), including those that are CLEAN."""
    at = offset
    with ExitStack() as opened:
        found = volume.extents(offset)
        if isinstance(found, Generator):  # it may read ahead
            opened.callback(found.close)
        for start, length, kind in found:
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
