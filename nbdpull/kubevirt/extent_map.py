"""The map of a volume, which KubeVirt sends page by page, as extents, with the proof that it is complete.

Owns: what a page must contain, what the numbers of `type` mean, how pages become a map, and which part of it is stored.
Must not know: HTTP, the cluster.

The numbers are flags of NBD, and collide: 1 is HOLE in the map of a full backup, and DIRTY in an incremental one. If we
confused the two, a full map would declare all data clean. So the words beside the numbers must match the type of the
backup, and nothing is clean without its word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import numpy

from ..core import errors, extents
from ..core.choices import BackupType

if TYPE_CHECKING:
    from ..core.extents import Extents, Range

    Held = Callable[[int, int], Extents]

DIRTY, ZERO = 1 << 0, 1 << 1  # DIRTY only in the map of an incremental backup: there 0 is clean, else data
_TYPES = DIRTY | ZERO
_FOREIGN = {BackupType.FULL: ("clean", "dirty"), BackupType.INCREMENTAL: ("data", "hole")}
_MAX_OFFSET = 1 << 62

SECTOR = 512  # bytes; the size of a disk is a multiple of it
WINDOW = 1 << 36  # bytes of a disk, at most, in one request
OVERLAP = 1 << 16  # bytes by which a request overlaps the known part
MAX_BRIDGED = 1 << 15  # bytes that are read and discarded to save a request
SLICE = 1 << 16  # extents yielded at once

Ask = Callable[[int, int], Any]


class Page(NamedTuple):
    """found: extents whose kind is the type; following: where the next page starts, None = this is the last one."""

    found: Extents
    following: Optional[int]


def page(document: Any, offset: int, backup_type: str) -> Page:
    """Parse the page that was requested from `offset` on; ValueError if it cannot be true."""
    if not isinstance(document, dict) or "extents" not in document:
        raise ValueError("it is not a map")
    found = list(_extents(document["extents"], offset, backup_type))
    reached = found[-1][0] + found[-1][1] if found else offset
    following = document.get("next_offset")
    if following is not None and _number(following, "next_offset") != reached:
        raise ValueError(f"the next page starts at byte {following}, but this one ends at {reached}")
    if following is not None and reached == offset:
        raise ValueError(f"it makes no progress at byte {offset}")
    return Page(extents.of(found), following)


def _extents(listed: Any, reached: int, backup_type: str) -> Iterator[tuple[int, int, int]]:
    """Yield each (offset, length, type), contiguous from `reached` on."""
    if listed is not None and not isinstance(listed, list):
        raise ValueError("its extents are not a list")
    for each in listed or []:
        if not isinstance(each, dict):
            raise ValueError("an extent is not an object")
        offset, length, kind = (_number(each.get(name), name) for name in ("offset", "length", "type"))
        if offset != reached:
            raise ValueError(f"an extent starts at byte {offset} instead of {reached}")
        if kind & ~_TYPES:
            raise ValueError(f"an extent has the unknown type {kind}")
        words = str(each.get("description") or "")
        if any(word in words for word in _FOREIGN[backup_type]):
            raise ValueError(f"it is not of {_AN[backup_type]} backup: an extent is called {words[:40]!r}")
        if backup_type == BackupType.INCREMENTAL and not kind and "clean" not in words:  # it would not be read
            raise ValueError(f"an extent of type 0 is not called clean, but {words[:40]!r}")
        reached = offset + length
        if reached > _MAX_OFFSET:
            raise ValueError(f"an extent of {length} bytes")
        if length:
            yield offset, length, kind


_AN = {BackupType.FULL: "a full", BackupType.INCREMENTAL: "an incremental"}


def _number(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return value


def _page(document: Any, offset: int, backup_type: str, what: str) -> Page:
    try:
        return page(document, offset, backup_type)
    except ValueError as error:
        raise errors.SourceError(f"{what}: the map from byte {offset} on cannot be true: {error}") from None


def whole(ask: Ask, backup_type: str, what: str, behind: Callable[[int], Any] = lambda offset: None) -> Extents:
    """Return the map of a volume, with types as kinds.

    ask(offset, length) returns a page of that range, or of a shorter one, unparsed. behind(offset) returns a page of
    what follows `offset`, None if the server has nothing.

    Nothing reports the size of the disk, and a range that starts at its end is an error of the server. So each request
    starts a little before the end of the known part. If it brings nothing new, either the disk ends or the server lost
    the rest: v1.9 merges two contexts and ends with the shorter one. So we then ask what follows. The overlap has to be
    the same in both answers.

    SourceError if a page cannot be true.
    """
    parts: list[Extents] = []
    reached = 0
    while True:
        start = reached - min(reached, OVERLAP)
        found = _range(ask, start, reached + WINDOW, backup_type, what)
        stop = int(extents.ends(found[-1:])[0]) if len(found) else start
        if stop < reached:
            raise errors.SourceError(f"{what}: the map ends at byte {stop}, but reached {reached} before")
        _require_same(parts[-1] if parts else found[:0], found, start, reached, what)
        if stop == reached:
            break
        parts.append(extents.clip(found, reached, stop))
        reached = stop
    while len(found := _found_behind(behind, reached, backup_type, what)):
        parts.append(found)
        reached = int(extents.ends(found[-1:])[0])
    if not reached or reached % SECTOR:
        raise errors.SourceError(f"{what}: the map ends at byte {reached}, inside a sector")
    return extents.merged(numpy.concatenate(parts))


def _found_behind(behind: Callable[[int], Any], reached: int, backup_type: str, what: str) -> Extents:
    """Return the extents that follow `reached`, none if the disk ends there."""
    document = behind(reached) if reached else None
    if document is None:
        return extents.of([])
    found = _page(document, reached, backup_type, what).found
    if not len(found):
        raise errors.SourceError(f"{what}: the map ends at byte {reached}, but the disk does not")
    return found


def _range(ask: Ask, start: int, stop: int, backup_type: str, what: str) -> Extents:
    """Return the extents of all pages of a range, which the end of the disk may cut short."""
    parts = [extents.of([])]
    following: Optional[int] = start
    while following is not None and following < stop:
        read = _page(ask(following, stop - following), following, backup_type, what)
        parts.append(read.found)
        following = read.following
    return extents.merged(numpy.concatenate(parts))


def _require_same(before: Extents, after: Extents, start: int, stop: int, what: str) -> None:
    same = numpy.array_equal(extents.clip(before, start, stop), extents.clip(after, start, stop))
    if len(before) and int(before["offset"][0]) <= start and not same:
        raise errors.SourceError(f"{what}: the map has changed before byte {stop}: it is not of one backup")


def size(found: Extents) -> int:
    """Return the bytes of the disk with this complete map."""
    return int(extents.ends(found[-1:])[0])


def reports_zeros(found: Extents) -> bool:
    """Return whether the map declares any range zero. Maps of v1.8's incremental backups do not."""
    return bool((found["kind"] & ZERO).any())


def stored(found: Extents, backup_type: str, dirty_from: int, held: Optional[Held]) -> Extents:
    """Return what is stored of a map, as extents of data to read and of zeros.

    Of an incremental backup: dirty ranges, everything from `dirty_from` on, and clean ranges that are zero where
    held(start, stop) reports data in the older image below. Only ZERO means zero: a hole may contain anything.
    """
    result = found.copy()
    result["kind"] = numpy.where(found["kind"] & ZERO, extents.ZERO, extents.DATA)
    if backup_type == BackupType.FULL:
        return extents.merged(result)
    dirty = (found["kind"] & DIRTY) != 0
    clean = result[~dirty]
    parts = [result[dirty], extents.clip(clean, dirty_from, _MAX_OFFSET)]
    zero = extents.clip(clean[clean["kind"] == extents.ZERO], 0, dirty_from)
    if len(zero) and held:
        parts.append(extents.intersect(zero, held(int(zero["offset"][0]), int(extents.ends(zero[-1:])[0]))))
    result = numpy.concatenate(parts)
    return extents.merged(result[numpy.argsort(result["offset"], kind="stable")])


class Request(NamedTuple):
    """Bytes to request at once. wanted: numbers of the ranges that it contains."""

    offset: int
    length: int
    wanted: list[int]


def requests(ranges: Sequence[Range], limit: int) -> list[Request]:
    """Combine ascending ranges into few requests of at most `limit` bytes (a longer range gets its own): neighbours,
    with the small gaps between them."""
    result: list[Request] = []
    for number, (offset, length) in enumerate(ranges):
        last = result[-1] if result else None
        if last and offset - last.offset - last.length <= MAX_BRIDGED and offset + length - last.offset <= limit:
            result[-1] = Request(last.offset, offset + length - last.offset, [*last.wanted, number])
        else:
            result.append(Request(offset, length, [number]))
    return result
