"""The copy of points of another store into a series with a different seal: sealed with another key, or not at all.

Everything of a point that is sealed, or that describes sealed bytes, is made again: frames, pages, small files, and
with them directories, SHA256SUMS and the manifest. The manifest keeps the digest of the first one (`origin`), which
identifies the copy as the same point.

Owns: the base of a point in the target, and which existing files the new point refers to. Must not know: which points
are wanted, and in what order; how frames are copied (resealed_disk.py); what happens to the files in the folder of the
point (resealed_folder.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..core.throttle import Throttle
from ..format import layout, manifest, writer
from ..format.directory import Directory
from ..format.index_writer import Disk
from ..format.manifest import FULL, DiskEntry, FileEntry, ParentEntry
from ..format.sound_part import SoundPart
from . import immutable, incoming, lock_free, references, resealed_disk
from .counted_on import CountedOn
from .incoming import Progress, Taken
from .matching import Matched
from .resealed_disk import Base
from .resealed_folder import Making
from .series import Point, Series

CHUNK_SIZE = 256 << 20  # approximate bytes of a chunk file


class Pair(NamedTuple):
    """A point in two stores."""

    here: Point
    there: Point


Lacking = Callable[[Point, Container[str]], list[FileEntry]]


def is_needed(source: Series, target: Series, match: Matched) -> bool:
    """Return whether files of the source cannot be copied to the target unchanged."""
    return source.store.seal.id != target.store.seal.id or match.is_remade


def lacking(source: Series, target: Series, match: Matched, check: Check = lambda: None) -> Lacking:
    """Return a function that lists the files of a point of the source that a copy takes, except some paths.

    The function raises Damaged if a directory of the point cannot be read. If files are sealed again, it lists the
    files that no point in both stores has, which is about what is copied.
    """
    if not is_needed(source, target, match):
        return partial(incoming.lacking, source, target, check=check)
    known: set[str] = set()
    for entries in source.store.several(partial(_files_known, source), match.same):
        known |= {entry.path for entry in entries}
    return lambda point, but: [
        entry for entry in references.of_point(source, point) if entry.path not in known and entry.path not in but
    ]


def _files_known(series: Series, point: Point) -> list[FileEntry]:
    with suppress(errors.Damaged):
        return references.of_point(series, point)
    return []


class Resealing:
    """Copies points of the source to the target. Both stores must be unlocked, and the caller holds the lock of the
    target. points: those of the target; pairs: the points that both have."""

    def __init__(
        self,
        source: Series,
        target: Series,
        points: Sequence[Point],
        pairs: Iterable[Pair],
        throttle: Throttle,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        self._source, self._target, self._throttle, self._chunk_size = source, target, throttle, chunk_size
        self._counted_on = CountedOn(target, points)
        self._known = {point.id for point in points}
        self._pairs = {pair.here.id: pair for pair in pairs}

    def take(self, point: Point, progress: Progress = lambda count: None, check: Check = lambda: None) -> Taken:
        """Make the point in the target, from what the target has already and what it lacks.

        Damaged if a part of the point in the source is damaged or missing; then, and with OutputError, what was made
        for it is removed. If `check` ends the copy, complete files remain for the next time. KeyNeeded.
        """
        immutable.begin(self._target.store)
        making = Making(self._target, point.id, self._counted_on)
        try:
            made = self._made(point, making, progress, check)
        except errors.OutputExists as error:
            if self._target.store.has_locks:
                making.undo()
                raise
            raise errors.Busy(
                f"another run copies point {point.id}, or an earlier one left what cannot be used ({error}): copies "
                "and prunes remove that when it is 26 hours old, and a day later the point can be copied"
            ) from None
        except (errors.Damaged, errors.StoreError, errors.OutputError):
            making.undo()
            raise
        self._known.add(point.id)
        self._counted_on.add(made, references.of_point(self._target, made))
        self._pairs[point.id] = Pair(point, made)
        return Taken(point.id, len(making.made), sum(entry.size for entry in making.made))

    def foresee(self, point: Point, entries: Iterable[FileEntry], check: Check) -> None:
        """Raise what `take` would raise, as far as that shows without reading whole files, and without a change.
        entries: the files of the source that hold what it would copy."""
        lock_free.require_not_doomed(self._target, point.id)
        incoming.require_sizes(self._source, entries)

    def _made(self, point: Point, making: Making, progress: Progress, check: Check) -> Point:
        pair = self._base_of(point)
        making.prepare(lambda: self._require_fitting(point, making, check), check)
        disks = [self._disk(point, entry, pair, making, progress, check) for entry in point.manifest.disks]
        files = [self._file(point, name, pair, making) for name in point.files if name != layout.SUMS]
        files.append(making.sums(files, disks))
        changed = replace(
            point.manifest,
            parent=_parent(point, pair),
            disks=disks,
            files=files,
            locked=None,
            origin=point.origin,
        )
        data = manifest.encode(changed, self._target.store.seal)
        decoded = manifest.decode(data, point.id, self._target.store.seal)
        made = Point(decoded, hashlib.sha256(data).hexdigest())

        def require_still() -> None:
            making.require_set_apart()
            for name in self._counted_on.points if making.is_adopted else [pair.there.id] if pair else []:
                lock_free.require_base(self._target, name)

        require_still()
        making.publish(data, made)
        lock_free.prove(self._target, made, self._known, require_still)
        making.end()
        return made

    def _base_of(self, point: Point) -> Optional[Pair]:
        """Return the base for a point among the points that both stores have: its parent, else the last point before
        it, else the first point after it. None if there are none."""
        parent = point.manifest.parent
        self._counted_on.forget_removed()
        pairs = {name: pair for name, pair in self._pairs.items() if name in self._counted_on.points}
        if parent and parent.point in pairs:
            return pairs[parent.point]
        known = sorted(pairs.values(), key=lambda pair: pair.here.manifest.sequence)
        before = [pair for pair in known if pair.here.manifest.sequence < point.manifest.sequence]
        return next(iter([*before[-1:], *known]), None)

    def _disk(
        self, point: Point, entry: DiskEntry, pair: Optional[Pair], making: Making, progress: Progress, check: Check
    ) -> DiskEntry:
        def begin(count: int) -> None:
            check()
            making.go_on()
            self._throttle.take(count)

        here = self._source.directory(point, entry.name, partial=True)
        if found := making.found(entry.name):
            return self._adopted(found, entry, making)
        least = writer.least_chunk_size(disk.size for disk in point.manifest.disks)
        written = resealed_disk.write(
            self._source,
            here,
            self._target,
            Disk(self._target.folder, point.id, entry.name, entry.size, entry.whole, making.folder_beside()),
            self._base(entry, pair, check),
            making.left(entry.name),
            writer.chunk_size(self._target.store, self._chunk_size, least),
            begin=begin,
            done=progress,
            check=check,
        )
        making.made += [*written.made, written.directory]
        making.own += [*written.files, written.directory]
        stored = sum(each.size for each in [*written.files, written.directory])
        return replace(entry, directory=written.directory, stored_bytes=stored)

    def _require_fitting(self, point: Point, making: Making, check: Check) -> None:
        """Verify the directories that exist of the point in a store without locks, where none can be replaced. Nothing
        is changed. OutputExists."""
        for disk in point.manifest.disks:
            if found := making.found(disk.name):
                here = self._source.directory(point, disk.name, partial=True)
                self._require_usable(here, replace(disk, directory=found), making, check)

    def _require_usable(self, here: Directory, entry: DiskEntry, making: Making, check: Check) -> None:
        with suppress(errors.Damaged):
            there = Directory(self._target.store, self._target.folder, entry)
            sure = {each.path for each in there.files if self._counted_on.includes(each)}
            if (
                not self._counted_on.bad(there.files)
                and all(making.may_adopt(each.path) for each in there.files if each.path not in sure)
                and not any(self._target.own_flaw(each, check) for each in there.files if each.path not in sure)
                and resealed_disk.is_found(self._source, here, self._target, there, sure, check)
            ):
                return
        where = self._target.store.path(self._target.folder, entry.directory.path)
        raise errors.OutputExists(f"{where} exists, but differs from the source, or names files that are not intact")

    def _adopted(self, found: FileEntry, entry: DiskEntry, making: Making) -> DiskEntry:
        """Return the entry of a disk whose directory exists already, and has been verified."""
        entry = replace(entry, directory=found)
        files = Directory(self._target.store, self._target.folder, entry).files
        own = [each for each in files if not self._counted_on.includes(each)]
        for each in own:
            making.adopt(each.path)
        mine = [each for each in files if each in own or each.folder == making.point]
        making.own += [*mine, found]
        making.is_adopted = True
        return replace(entry, stored_bytes=sum(each.size for each in [*mine, found]))

    def _base(self, entry: DiskEntry, pair: Optional[Pair], check: Check) -> Optional[Base]:
        """Return the base of a disk. None if there is none, or if a range without records may differ between the
        two."""
        known = pair.there.manifest.disk(entry.name) if pair else None
        if pair is None or known is None or not (entry.whole and known.whole):
            return None
        try:
            there: Directory = self._target.directory(pair.there, entry.name)
            if bad := self._counted_on.bad(there.files):
                there = SoundPart(self._target.store, self._target.folder, known, bad, check)
        except errors.Damaged:
            return None
        here: Optional[Directory] = None
        with suppress(errors.Damaged, errors.NoSuchDisk):
            here = self._source.directory(pair.here, entry.name)
        return Base(here, there)

    def _file(self, point: Point, name: str, pair: Optional[Pair], making: Making) -> FileEntry:
        """Write a small file and return its entry, or return that of the base if it is the same file."""
        data = self._source.read_file(point, name)
        if data is None:
            raise errors.Damaged(f"point {point.id} has no {name}")
        stored = self._target.store.seal.piece(data, layout.file_piece(name))
        known = self._target.same_file(pair.there if pair else None, name, stored)
        if known and not self._counted_on.is_recorded(known) and not making.has(name, stored):
            return known
        return making.put(name, stored)


def _parent(point: Point, pair: Optional[Pair]) -> Optional[ParentEntry]:
    """Return the parent to record in the manifest. If all disks were read in full, any base can be the parent."""
    parent = point.manifest.parent
    is_it = parent is not None and pair is not None and parent.point == pair.there.id
    if pair and (is_it or all(disk.mode == FULL for disk in point.manifest.disks)):
        return ParentEntry(pair.there.id, pair.there.sha256)
    return parent
