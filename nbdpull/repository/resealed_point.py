"""The copy of points of another store into a series with a different seal: sealed with another key, or not at all.

Everything of a point that is sealed, or that describes sealed bytes, is made again: frames, pages, small files, and
with them directories, SHA256SUMS and the manifest. The manifest keeps the digest of the first one (`origin`), which
identifies the copy as the same point. As in incoming.py, a directory looks like that of a removed point until its
manifest is written, which comes last.

Owns: the base of a point in the target, which files of an interrupted copy are used, and that no file that another
point needs is removed or changed. Must not know: which points are wanted, and in what order; how frames are copied
(resealed_disk.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..core.throttle import Throttle
from ..format import layout, manifest, moved, reader, writer
from ..format.directory import Directory
from ..format.index_writer import Disk
from ..format.manifest import FULL, DiskEntry, FileEntry, ParentEntry
from ..format.sound_part import SoundPart
from . import drafts, half_points, immutable, incoming, lock_free, references, resealed_disk, sweep_mark
from .counted_on import CountedOn, is_there
from .incoming import Taken, Tell
from .matching import Matched
from .resealed_disk import Base, Left
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


def lacking(source: Series, target: Series, match: Matched) -> Lacking:
    """Return a function that lists the files of a point of the source that a copy takes, except some paths.

    The function raises Damaged if a directory of the point cannot be read. If files are sealed again, it lists the
    files that no point in both stores has, which is about what is copied.
    """
    if not is_needed(source, target, match):
        return partial(incoming.lacking, source, target)
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

    def take(self, point: Point, tell: Tell = lambda count: None, check: Check = lambda: None) -> Taken:
        """Make the point in the target, from what the target has already and what it lacks.

        Damaged if a part of the point in the source is damaged or missing; then, and with OutputError, what was made
        for it is removed. If `check` ends the copy, complete files remain for the next time. KeyNeeded.
        """
        immutable.begin(self._target.store)
        making = _Making(self._target, point.id, self._counted_on)
        try:
            made = self._made(point, making, tell, check)
        except errors.OutputExists as error:
            if self._target.store.has_locks:
                making.undo()
                raise
            raise errors.Busy(
                f"another run copies point {point.id}, or began to ({error}); copy again, and if that does not help, a "
                "day after nbdpull prune"
            ) from None
        except (errors.Damaged, errors.StoreError, errors.OutputError):
            making.undo()
            raise
        self._known.add(point.id)
        self._counted_on.add(made, references.of_point(self._target, made))
        self._pairs[point.id] = Pair(point, made)
        return Taken(point.id, len(making.made), sum(entry.size for entry in making.made))

    def _made(self, point: Point, making: _Making, tell: Tell, check: Check) -> Point:
        pair = self._base_of(point)
        making.prepare(check)
        disks = [self._disk(point, entry, pair, making, tell, check) for entry in point.manifest.disks]
        files = [self._file(point, name, pair, making) for name in point.files if name != layout.SUMS]
        files.append(making.sums(files, disks))
        told = replace(
            point.manifest,
            parent=_parent(point, pair),
            disks=disks,
            files=files,
            locked=None,
            origin=point.origin,
        )
        data = manifest.encode(told, self._target.store.seal)
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
        self, point: Point, entry: DiskEntry, pair: Optional[Pair], making: _Making, tell: Tell, check: Check
    ) -> DiskEntry:
        def begin(count: int) -> None:
            check()
            self._throttle.take(count)

        here = self._source.directory(point, entry.name, partial=True)
        if found := making.found(entry.name):
            return self._adopted(here, replace(entry, directory=found), making, check)
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
            done=tell,
            check=check,
        )
        making.made += [*written.made, written.directory]
        making.own += [*written.files, written.directory]
        stored = sum(each.size for each in [*written.files, written.directory])
        return replace(entry, directory=written.directory, stored_bytes=stored)

    def _adopted(self, here: Directory, entry: DiskEntry, making: _Making, check: Check) -> DiskEntry:
        """Return the entry of a disk whose directory exists already, once all of it is verified. OutputExists if it
        cannot be used: without locks it cannot be replaced."""
        with suppress(errors.Damaged):
            there = Directory(self._target.store, self._target.folder, entry)
            bad = self._counted_on.bad(there.files)
            sure = {each.path for each in there.files if self._counted_on.includes(each)}
            own = [each for each in there.files if each.path not in sure]
            if (
                not bad
                and all(making.adopts(each.path) and not self._target.own_flaw(each, check) for each in own)
                and resealed_disk.is_found(self._source, here, self._target, there, sure, check)
            ):
                mine = [each for each in there.files if each in own or each.path.startswith(f"{making.point}/")]
                making.own += [*mine, entry.directory]
                making.is_adopted = True
                return replace(entry, stored_bytes=sum(each.size for each in [*mine, entry.directory]))
        where = self._target.store.path(self._target.folder, entry.directory.path)
        raise errors.OutputExists(f"{where} exists, but differs from the source, or names files that are not intact")

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

    def _file(self, point: Point, name: str, pair: Optional[Pair], making: _Making) -> FileEntry:
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


def _may_go(name: str, is_unknown: bool) -> bool:
    """Return whether to remove a file to which nothing is known to refer. is_unknown: unreadable points may refer to
    it; then only a file to which no other point can refer is removed."""
    is_own = name == layout.SUMS or name.endswith(layout.directory_name(""))
    return is_own if is_unknown else name != half_points.REMOVED


class _Making:
    """A point being made.

    own: FileEntry of the files in its folder or in `beside`; made: of the files that this run made; beside: see
    index_writer.Disk, set if other points need files of the point's own folder.
    """

    def __init__(self, target: Series, point: str, counted_on: CountedOn) -> None:
        self._target, self._store, self.point, self._counted_on = target, target.store, point, counted_on
        self.beside: Optional[str] = None
        self.own: list[FileEntry] = []
        self.made: list[FileEntry] = []
        self._left: dict[str, list[Left]] = {}
        self.is_adopted = False  # whether an existing directory is used
        self._is_new = self._was_swept = self._may_be_point = False
        self._directories: dict[str, FileEntry] = {}  # existing ones, by their disks' encoded names
        self._apart: set[str] = set()  # other folders whose files are used
        self._stays: Optional[set[str]] = None  # names of the files to keep; None: not known yet

    def _path(self, name: str) -> str:
        return f"{self._target.folder}/{self.point}/{name}"

    def prepare(self, check: Check) -> None:
        """Set the folder apart. Files in it come from an interrupted copy, or from the point before it was removed:
        intact frames are not copied again; with locks, all other files that nothing needs are removed."""
        lock_free.require_not_doomed(self._target, self.point)
        self._was_swept = sweep_mark.is_there(self._target, self.point)
        self._is_new = half_points.set_apart(self._target, self.point)
        if not self._is_new:
            half_points.renew(self._target, self.point)
            self._look(check)

    def folder_beside(self) -> Optional[str]:
        """Return `beside`, and make that folder if it does not exist yet."""
        if self.beside and self.beside not in self._apart:
            half_points.set_apart(self._target, self.beside)
            self._apart.add(self.beside)
        return self.beside

    def found(self, disk: str) -> Optional[FileEntry]:
        """Return the existing directory of a disk in a store without locks; None if there is none."""
        return self._directories.get(layout.encoded(disk))

    def adopts(self, path: str) -> bool:
        """Return whether to use a file that no point has: one in the folder itself, or in the folder that an earlier
        copy had beside it. Busy if a prune may be about to remove that file."""
        name = path.partition("/")[0]
        if name == self.point or name in self._apart:
            return True
        if self._target.has_point(name):
            return False
        lock_free.require_not_doomed(self._target, name)
        half_points.renew(self._target, name)
        self._apart.add(name)
        return True

    def _look(self, check: Check) -> None:
        names = self._store.files(f"{self._target.folder}/{self.point}")
        held = self._counted_on.held_in(self.point)
        self._directories = {} if self._store.has_locks else self._found_in(names, check)
        disks = {match["disk"] for name in names if (match := layout.DISK_PATH.match(f"{self.point}/{name}"))}
        is_needed = held is None or any(map(layout.DISK_PATH.match, held))
        is_whole = not is_needed and all([self._kept(disk, names, check) for disk in sorted(disks)])
        if is_needed or not is_whole:
            self._left, self.beside = self._named(held or {}), layout.new_point_id()
        if self._store.has_locks:
            kept = {*(held or ()), *(each.entry.path for several in self._left.values() for each in several)}
            kept |= {moved.path_of(path) for path in kept}
            for name in names:
                if f"{self.point}/{name}" not in kept and _may_go(name, held is None):
                    self._store.delete(self._path(name))
            drafts.remove(self._target, [self.point])
            self._stays = {*self._store.files(f"{self._target.folder}/{self.point}")}

    def _found_in(self, names: Iterable[str], check: Check) -> dict[str, FileEntry]:
        end = layout.directory_name("")
        found = [name for name in names if name.endswith(end)]
        return {name[: -len(end)]: self._target.as_it_is(f"{self.point}/{name}", check) for name in found}

    def _named(self, held: Mapping[str, FileEntry]) -> dict[str, list[Left]]:
        """Return {encoded name of a disk: files that other points need}. A point names all files in its folder, so that
        they are removed with the last point that needs them."""
        found: dict[str, list[Left]] = {}
        bad = self._counted_on.bad(held.values())
        for path, entry in sorted(held.items()):
            if (match := layout.DISK_PATH.match(path)) and path not in bad:
                found.setdefault(match["disk"], []).append(Left(entry, 0, 0))
        return found

    def _kept(self, disk: str, names: Container[str], check: Check) -> bool:
        """Find the intact chunk files of a disk (given by its encoded name). Return whether the other chunk files and
        the index can be made under their usual names: useless files are removed, unless another run may be working on
        them."""
        found = self._left.setdefault(disk, [])
        if disk in self._directories:
            return False
        while f"{disk}.{len(found):04d}.zst" in names:
            entry = self._proved(disk, f"{disk}.{len(found):04d}.zst", check)
            if entry is None:
                return self._store.has_locks
            found.append(entry)
        return self._store.has_locks or f"{disk}.index" not in names

    def _proved(self, disk: str, name: str, check: Check) -> Optional[Left]:
        """Return a chunk file that was found, made durable; None if it is not intact."""
        path = f"{self.point}/{name}"
        full = f"{self._target.folder}/{path}"
        try:
            entry = self._target.as_it_is(path, check)
            page = reader.chunk_records(self._store, full, entry.size, layout.domain_name(disk) or "")
            entries = [entry if each == path else FileEntry(each, 0, "") for each in page.names]
            with reader.FrameReader(self._store, self._target.folder, entries) as frames:
                for record in resealed_disk.own_frames(page, path):
                    check()
                    frames.unsealed(record)
            self._store.make_durable(full)
        except errors.Damaged:
            return None
        records = page.records
        stop = int(records["offset"][-1] + records["length"][-1]) if len(records) else 0
        return Left(entry, int(records["offset"][0]) if len(records) else 0, stop)

    def left(self, disk: str) -> list[Left]:
        """Return the files of a disk that are used, or that its directory must name."""
        return self._left.get(layout.encoded(disk), [])

    def has(self, name: str, data: bytes) -> bool:
        """Return whether the folder, in a store without locks, has the same small file already: the files of an earlier
        copy may name it."""
        return not self._store.has_locks and self._store.find(self._path(name)) == data

    def put(self, name: str, data: bytes) -> FileEntry:
        """Make a small file, or use it if it exists. StoreError if another file exists and may be needed; OutputExists
        if another run may have made that file."""
        path = self._path(name)
        entry = FileEntry(f"{self.point}/{name}", len(data), hashlib.sha256(data).hexdigest())
        self.own.append(entry)
        if self._store.size(path) is not None:
            if not self._target.own_flaw(entry):
                self._store.make_durable(path)
                return entry
            if self._store.has_locks:
                raise errors.StoreError(
                    f"{self._store.root} has another {name} of point {self.point}, which may be needed there"
                )
        with self._store.create(path) as file:
            file.write(data)
        self.made.append(entry)
        return entry

    def sums(self, files: Iterable[FileEntry], disks: Iterable[DiskEntry]) -> FileEntry:
        """Make SHA256SUMS, once all other files of the point exist."""
        entries = {entry.path: entry for entry in [*self.own, *files, *(disk.directory for disk in disks)]}
        own = [entry for path, entry in entries.items() if path.startswith(f"{self.point}/")]
        digests = {each.path.partition("/")[2]: each.sha256 for each in own if is_there(self._target, each)}
        data = layout.sums(digests)
        found = None if self._store.has_locks else self._store.find(self._path(layout.SUMS))
        if found and {*found.splitlines()} < {*data.splitlines()}:
            data = found  # an earlier copy used a small file of a point that is gone: its lines are right
        return self.put(layout.SUMS, data)

    def require_set_apart(self) -> None:
        """Raise Busy if files of the folders may soon be removed."""
        for name in sorted({*self._apart, self.point}):
            lock_free.require_set_apart(self._target, name, self.point)

    def publish(self, data: bytes, made: Point) -> None:
        """Commit the point, once all its other files exist; OutputError."""
        for name in sorted({*self._apart, self.point}):
            self._store.sync_folder(f"{self._target.folder}/{name}")
        protection = immutable.secure(self._target, made)
        try:
            self._store.publish(self._path(layout.MANIFEST), data, protection)
        except errors.NbdpullError as error:
            self._may_be_point = half_points.may_be_point(self._target, self.point, error)
            raise

    def end(self) -> None:
        """Remove the records of the copy: the directory is a point's now."""
        half_points.end_setting_apart(self._target, self.point)
        if self._was_swept:
            sweep_mark.drop(self._target, self.point)

    def undo(self) -> None:
        """Remove what was made, unless it may be a point. Without locks another run may rely on it already: a later
        prune removes it."""
        if self._may_be_point or not self._store.has_locks:
            return
        if self.beside in self._apart:
            self._store.remove_folder(f"{self._target.folder}/{self.beside}")
        if self._is_new:
            self._store.remove_folder(f"{self._target.folder}/{self.point}")
            return
        if self._stays is not None:
            for name in {*self._store.files(f"{self._target.folder}/{self.point}")} - self._stays:
                self._store.remove_file(self._path(name))
