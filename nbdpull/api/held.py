"""What the caller reports about its image: where it may not be zero.

Owns: that invalid ranges are refused, and that order and repetition make no difference. Must not know: what the ranges
are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable, Optional

from ..core import errors, extents
from . import callers

Held = Callable[[str, int, int], Iterable[tuple[int, int]]]


def of_disk(held: Optional[Held], disk: str) -> Optional[Callable[[int, int], Any]]:
    """Return held() for one disk, in the form that a Source calls."""
    if held is None:
        return None

    def ranges(start: int, stop: int) -> list[Any]:
        given: Any = held(disk, start, stop)
        if not isinstance(given, Iterable):
            raise _refused(given, disk)
        return list(given)

    asked = callers.wrapped(ranges)
    return lambda start, stop: extents.of(
        (offset, length, extents.DATA) for offset, length in joined(asked(start, stop), start, stop, disk)
    )


def joined(given: Iterable[Any], start: int, stop: int, disk: str) -> list[tuple[int, int]]:
    """Return ranges as (offset, length), ascending, disjoint, within start and stop. UsageError."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(_span(each, disk) for each in given):
        first, last = max(first, start), min(last, stop)
        if first >= last:
            continue
        if found and first <= sum(found[-1]):
            first, last = found[-1][0], max(last, sum(found.pop()))
        found.append((first, last - first))
    return found


def _span(given: Any, disk: str) -> tuple[int, int]:
    try:
        offset, length = given
    except (TypeError, ValueError):
        offset = length = None
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise _refused(given, disk)
    return offset, offset + length


def _refused(given: Any, disk: str) -> errors.UsageError:
    return errors.UsageError(f"held() of disk {disk} returned {given!r}: return ranges of (offset, length) in bytes")
