"""Files recorded as damaged or missing, made again from another store that has them whole.

A file is the right one if its size and SHA-256 are those that a manifest or a directory names, so it does not matter
whose store it comes from. Its digest is checked during the copy, and it replaces the damaged file once it is durable.
If the copy is under another seal, the file is made from what the copy has of it (remaking.py).

Owns: which files are healed. The caller holds the series. Must not know: how damage is found, or settled.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from ..core import errors
from ..core.errors import Check
from ..format.manifest import FileEntry
from . import drafts, half_points, immutable, proved_copy, references, remaking
from .series import Point, Series
from .verdict import Known

log = logging.getLogger("nbdpull.store")


class _Other(Exception):
    """Raised if the copy has other bytes."""


class Outcome(enum.Enum):
    """What became of a file. SOUND: it is intact, and nothing was done; LACKING: the copy does not have it whole."""

    HEALED = "healed"
    SOUND = "sound"
    LACKING = "lacking"
    UNWRITTEN = "unwritten"


class Tried(NamedTuple):
    """A file that was to be healed. problem: why it cannot be written, or is not locked as it should be, else ""."""

    path: str
    outcome: Outcome
    problem: str = ""


class _Wanted(NamedTuple):
    """A file that may need healing. is_listed: whether it is recorded by its path; points: those that name it."""

    is_listed: bool
    points: list[Point]


def heal(
    target: Series, copy: Series, points: Iterable[Point], known: Known, tried: set[FileEntry], check: Check
) -> Iterator[Tried]:
    """Heal the recorded files that the copy has whole, and yield the outcome of each.

    known: what is known of these points of the target. tried: files not to try again, as a medium may read wrong
    whatever is written; the set grows. If a finding does not list all damage, every file is checked, and an intact one
    is not reported.
    """
    immutable.begin(target.store)  # the policy may have changed since the run started
    wanted: dict[FileEntry, _Wanted] = {}
    for point in points:
        for entry, is_listed in _damaged(target, point, known):
            before = wanted.get(entry, _Wanted(False, []))
            wanted[entry] = _Wanted(before.is_listed or is_listed, [*before.points, point])
    drafts.remove(target, {entry.folder for entry in wanted})  # of a healing that was killed
    mended: set[FileEntry] = set()
    for entry, (is_listed, named_by) in wanted.items():
        if entry in tried:
            continue
        found = _tried(target, copy, entry, named_by, mended, check)
        if found.outcome is Outcome.HEALED:
            warnings = [immutable.keep_promises(target, held.path, named_by) for held in target.holding(entry)]
            found = found._replace(problem="; ".join(text for each in warnings for text in each))
        if found.outcome is not Outcome.SOUND:
            tried.add(entry)
        if is_listed or found.outcome is not Outcome.SOUND:
            log.info("%s of %s: %s", entry.path, target.domain, found.outcome.value)
            yield found


def _tried(
    target: Series, copy: Series, entry: FileEntry, named_by: list[Point], mended: set[FileEntry], check: Check
) -> Tried:
    try:
        if _healed_where_it_is(target, copy, entry, mended, check):
            return Tried(entry.path, Outcome.HEALED)
        if not target.file_flaw(entry, check):
            return Tried(entry.path, Outcome.SOUND)
        is_healed = _healed(target, copy, entry, check) or _is_made_again(target, copy, entry, named_by, check)
        return Tried(entry.path, Outcome.HEALED if is_healed else Outcome.LACKING)
    except errors.OutputError as error:
        return Tried(entry.path, Outcome.UNWRITTEN, str(error))


def _damaged(target: Series, point: Point, known: Known) -> Iterator[tuple[FileEntry, bool]]:
    """Return (file of a point that may be damaged, whether it is recorded), as far as the point's directories can be
    read."""
    paths = {place.get("path") for each in known.recorded(point) for place in each.places or []}
    is_all = not known.lists_all([point])
    found = references.by_directories(point, references.readable(target, point)) if paths or is_all else []
    return ((entry, entry.path in paths) for entry in found if is_all or entry.path in paths)


def _healed(target: Series, copy: Series, entry: FileEntry, check: Check) -> bool:
    where, path = f"{copy.folder}/{entry.path}", f"{target.folder}/{entry.path}"
    with suppress(errors.Damaged, _Other):
        if copy.store.size(where) != entry.size:
            return False
        half_points.set_apart(target, entry.folder)
        with target.store.replacing(path) as file:
            if not proved_copy.copied(copy, entry, file, lambda count: check()):
                raise _Other
        return True
    return False


def _is_made_again(target: Series, copy: Series, entry: FileEntry, named_by: list[Point], check: Check) -> bool:
    """Make a file again from a copy with other files. What is sealed in the copy is not written into a store that is
    not."""
    here, there = target.store.seal, copy.store.seal
    if not (here.opens and there.opens) or (here.id is None and there.id is not None):
        return False
    return remaking.made_again(target, copy, entry, remaking.twins(named_by, copy), check)


def _healed_where_it_is(target: Series, copy: Series, entry: FileEntry, mended: set[FileEntry], check: Check) -> bool:
    """Heal the files to which this one was moved; several may have been moved to the same one. Return whether all of
    them are healed now, at least one of them in this run. mended: files healed so far; the set grows.

    No table is healed: the table in another store records other moves, and may lead to less.
    """
    with suppress(errors.Damaged):
        held = target.holding(entry)
        if held != [entry]:
            bad = {each for each in held if target.own_flaw(each, check)}
            mended.update(each for each in bad if _healed(target, copy, each, check))
            return bad <= mended and not mended.isdisjoint(held)
    return False
