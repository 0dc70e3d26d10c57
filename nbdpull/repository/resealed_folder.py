"""The folder of a point that is being copied under another seal, and the folder beside it, if it needs one.

As in incoming.py, the folder looks like that of a removed point until its manifest is written, which comes last. It may
be such a folder, or that of an interrupted copy.

Owns: which files that are there already are used, and that no file that another point needs is removed or changed. Must
not know: what the new files contain, which base they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping
from typing import Callable, Optional

from ..core import errors
from ..core.errors import Check
from ..format import layout, moved, reader
from ..format.manifest import DiskEntry, FileEntry
from . import drafts, half_points, immutable, lock_free, resealed_disk, sweep_mark
from .counted_on import CountedOn, is_there
from .long_copy import LongCopy
from .resealed_disk import Left
from .series import Point, Series


class Making:
    """A point being made.

    own: FileEntry of the files in its folder or in `beside`; made: of the files that this run made; beside: see
    index_writer.Disk, set if not all files can be made under their usual names in the point's own folder.
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
        self._long = LongCopy(target, point)
        self._stays: Optional[set[str]] = None  # names of the files to keep; None: not known yet

    def _path(self, name: str) -> str:
        return f"{self._target.folder}/{self.point}/{name}"

    def prepare(self, require_fitting: Callable[[], None], check: Check) -> None:
        """Set the folder apart. Files in it come from an interrupted copy, or from the point before it was removed:
        intact frames are not copied again; with locks, all other files that nothing needs are removed. Without locks,
        what cannot be used must go on to age, or it would never be removed where a copy tries again each night.

        require_fitting: verifies what is found in a store without locks.
        """
        lock_free.require_not_doomed(self._target, self.point)
        self._was_swept = sweep_mark.is_there(self._target, self.point)
        self._is_new = half_points.set_apart(self._target, self.point)
        if self._is_new:
            return
        if not self._store.has_locks:
            self._look(check)
            require_fitting()
            lock_free.require_not_doomed(self._target, self.point)  # that may have taken hours
        half_points.renew(self._target, self.point)
        if self._store.has_locks:
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

    def may_adopt(self, path: str) -> bool:
        """Return whether a file that no point has can be used: one in the folder itself, or in the folder that an
        earlier copy had beside it."""
        name = path.partition("/")[0]
        return name == self.point or name in self._apart or not self._target.has_point(name)

    def adopt(self, path: str) -> None:
        """Use such a file. Busy if a prune may be about to remove it."""
        name = path.partition("/")[0]
        if name != self.point and name not in self._apart:
            lock_free.require_not_doomed(self._target, name)
            half_points.renew(self._target, name)
            self._apart.add(name)

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
        own = [entry for entry in entries.values() if entry.folder == self.point]
        digests = {each.name: each.sha256 for each in own if is_there(self._target, each)}
        data = layout.sums(digests)
        found = None if self._store.has_locks else self._store.find(self._path(layout.SUMS))
        if found and {*found.splitlines()} < {*data.splitlines()}:
            data = found  # an earlier copy used a small file of a point that is gone: its lines are right
        return self.put(layout.SUMS, data)

    def go_on(self) -> None:
        """Keep the folders as long as the copy takes: for a call before each part of it. Busy."""
        self._long.go_on({*self._apart, self.point})

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
        if self.beside and self.beside in self._apart:
            half_points.discard(self._target, self.beside)
        if self._is_new:
            half_points.discard(self._target, self.point)
            return
        if self._stays is not None:
            for name in {*self._store.files(f"{self._target.folder}/{self.point}")} - self._stays:
                self._store.remove_file(self._path(name))


def _may_go(name: str, is_unknown: bool) -> bool:
    """Return whether to remove a file to which nothing is known to refer. is_unknown: unreadable points may refer to
    it; then only a file to which no other point can refer is removed."""
    is_own = name == layout.SUMS or name.endswith(layout.directory_name(""))
    return is_own if is_unknown else name != half_points.REMOVED
