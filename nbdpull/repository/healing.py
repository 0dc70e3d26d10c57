"""Files that are on record as damaged, or missing, made again from another store that has them whole.

A file is the one that is needed if its size and SHA-256 are those that a manifest or a directory names: so it does not
matter whose store it is from. Its digest is proved on the way, and it takes the place of the other one when it is
durable. Owns: which files are healed. Who heals holds the series. Must not know: how a damage is found, or settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..format.manifest import FileEntry
from . import half_points, immutable, proved_copy, references
from .series import Point, Series
from .verdict import Known


class _Other(Exception):
    """Raised where the copy has other bytes."""


class Tried(NamedTuple):
    """A file that is healed, unless there is a problem: why it cannot be written."""

    path: str
    problem: Optional[errors.OutputError] = None


def heal(
    target: Series, copy: Series, points: Iterable[Point], known: Known, tried: set[FileEntry], check: Check
) -> Iterator[Tried]:
    """Heal what the copy has whole of the files on record; tell of each as it comes. known: of these points of the
    target. tried: files that do not come again, as a medium may read wrong whatever is written; it grows."""
    immutable.begin(target.store)  # the policy may have changed since the run began
    wanted = {entry: None for point in points for entry in _damaged(target, point, known)}
    mended: set[FileEntry] = set()
    for entry in (each for each in wanted if each not in tried):
        try:
            is_healed = _healed_where_it_is(target, copy, entry, mended, check)
            if is_healed or (target.file_flaw(entry, check) and _healed(target, copy, entry, check)):
                yield Tried(entry.path)
        except errors.OutputError as error:
            yield Tried(entry.path, error)
        tried.add(entry)


def _damaged(target: Series, point: Point, known: Known) -> Iterator[FileEntry]:
    """The files of a point that are on record, as far as its directories can be read."""
    paths = {place.get("path") for each in known.recorded(point) for place in each.places or []}
    found = references.by_directories(point, references.readable(target, point)) if paths else []
    return (entry for entry in found if entry.path in paths)


def _healed(target: Series, copy: Series, entry: FileEntry, check: Check) -> bool:
    where, path = f"{copy.folder}/{entry.path}", f"{target.folder}/{entry.path}"
    with suppress(errors.Damaged, _Other):
        if copy.store.size(where) != entry.size:
            return False
        half_points.set_apart(target, entry.path.partition("/")[0])
        with target.store.replacing(path) as file:
            if not proved_copy.copied(copy, entry, file, lambda count: check()):
                raise _Other
        return True
    return False


def _healed_where_it_is(target: Series, copy: Series, entry: FileEntry, mended: set[FileEntry], check: Check) -> bool:
    """The same of the files that one was moved to; several may have been moved to one. mended: those, it grows. No
    table is healed: another store's is of other moves, and may lead to less."""
    with suppress(errors.Damaged):
        held = target.standing(entry)
        if held != [entry]:
            bad = {each for each in held if target.own_flaw(each, check)}
            mended.update(each for each in bad if _healed(target, copy, each, check))
            return bad <= mended and not mended.isdisjoint(held)
    return False
