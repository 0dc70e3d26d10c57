"""All points of one domain in one store: which are committed, and in which order.

Owns: the directory of a domain, and the verification of a point from its manifest down. Must not know: how a point is
made (new_point.py), what an uncommitted point contains (half_points.py), libvirt, NBD.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import groupby
from typing import Callable, Optional, TypeVar

from ..core import errors
from ..core.choices import LATEST
from ..core.errors import Check
from ..format import layout, manifest, moved
from ..format.directory import Directory, ReadPage, read_page
from ..format.manifest import DiskEntry, FileEntry, Head, Manifest
from ..storage.base import Store
from . import point_choice

log = logging.getLogger("nbdpull.store")
_REFUSED = errors.Damaged, errors.FormatTooNew, errors.FormatTooOld
Refused = dict[str, errors.NbdpullError]  # by the folder of the point
_T = TypeVar("_T")


@dataclass(frozen=True)
class Point:
    """A committed point: its manifest, and the SHA-256 of the manifest's file, by which a child refers to it."""

    manifest: Manifest
    sha256: str

    @property
    def id(self) -> str:
        return self.manifest.point

    @property
    def origin(self) -> str:
        """The SHA-256 of the manifest as first made: the same in every copy, whatever its seal."""
        return self.manifest.origin or self.sha256

    @property
    def disks(self) -> list[str]:
        """The names of the disks."""
        return [disk.name for disk in self.manifest.disks]

    def disk(self, name: str) -> DiskEntry:
        """Return the entry of a disk; NoSuchDisk."""
        entry = self.manifest.disk(name)
        if entry is None:
            raise errors.NoSuchDisk(f"point {self.id} has no disk {name}; it has: {', '.join(self.disks)}")
        return entry

    @property
    def files(self) -> dict[str, FileEntry]:
        """The small files of the point, by name."""
        return {entry.name: entry for entry in self.manifest.files}

    @property
    def when(self) -> datetime:
        """The instant that the disks are as of; if the manifest does not record it, when the point was committed."""
        return datetime.fromisoformat(self.manifest.as_of or self.manifest.created)

    def file(self, name: str) -> Optional[FileEntry]:
        """Return the entry of a small file, None if the point has no file of that name."""
        return self.files.get(name)


class Series:
    """The points of one domain. Reading it never changes anything."""

    def __init__(self, store: Store, domain: str, folder: Optional[str] = None) -> None:
        """folder: where the points are; None: in the folder named after the domain."""
        self.store = store
        self.domain = domain
        self.folder = folder or layout.folder_name(domain)

    @property
    def is_at_home(self) -> bool:
        return self.folder == layout.folder_name(self.domain)

    def is_where_it_began(self) -> bool:
        """Return whether the folder is named after the domain in one of its points; if not, it was renamed, or is a
        copy."""
        return any(map(self._bears_its_name, self.load()[0]))

    def _bears_its_name(self, point: Point) -> bool:
        return layout.folder_name(point.manifest.domain) == self.folder

    def some_point(self) -> Optional[Point]:
        """Return the first point that can be read; None if there are no points. Foreign if a point before it was not
        made with the key of the store; Damaged or StoreError if no point can be read."""
        flaw: Optional[errors.NbdpullError] = None
        for name in self.store.folders(self.folder):
            try:
                return self.point_in(name)
            except errors.Foreign:
                raise
            except _REFUSED as error:
                flaw = flaw if self._lacks_manifest(name) else error
        if flaw:
            raise flaw
        return None

    def uuid(self) -> Optional[str]:
        """Return the UUID of the domain from the first point that can be read; None if there is none."""
        with suppress(errors.Damaged, errors.StoreError):
            for name in self.store.folders(self.folder):
                with suppress(errors.Damaged, errors.StoreError):
                    return self.point_in(name).manifest.uuid
        return None

    def require_of(self, points: Iterable[Point], uuid: str) -> None:
        """Raise OtherDomain unless these points of the series all belong to the domain with this UUID."""
        for other in (point.manifest for point in points if point.manifest.uuid != uuid):
            raise errors.OtherDomain(
                f"{self.store.path(self.folder)} holds points of another domain, {other.domain} (uuid {other.uuid}, "
                f"this one is {uuid}); choose another store"
            )

    def load(self) -> tuple[list[Point], Refused]:
        """Return ([Point, …] in the order of their commits, {folder of a point that must be refused: its error}). The
        error is Foreign for points of another domain; for all points if it is unknown which domain owns the series."""
        points, refused = self._each(self.point_in)
        if strangers := self._strangers(points):
            refused.update(strangers)
            points = [point for point in points if point.id not in strangers]
        return sorted(points, key=lambda point: point.manifest.sequence), refused

    def heads(self) -> tuple[list[Head], Refused]:
        """Return what `load` returns, with heads for points. A point is refused only if its manifest is not intact or
        belongs to another domain. Decoding every manifest of a thousand points takes longer than all the rest."""
        found, refused = self._each(self._head)
        if len({head.uuid for head in found}) > 1:
            refused = self.load()[1]
            found = [head for head in found if head.point not in refused]
        return sorted(found, key=lambda head: head.sequence), refused

    def _strangers(self, points: list[Point]) -> dict[str, errors.Foreign]:
        """Return the errors of the points of other domains, by id. No writer mixes points with several UUIDs: somebody
        put some there. The series belongs to the UUID of the points that have the folder's name, and so do all points
        with that UUID, whatever the domain's name was."""
        if len({point.manifest.uuid for point in points}) < 2:
            return {}
        owners = {point.manifest.uuid for point in points if self._bears_its_name(point)}
        return {point.id: self._stranger(point) for point in points if owners != {point.manifest.uuid}}

    def _stranger(self, point: Point) -> errors.Foreign:
        return errors.Foreign(
            f"{self.store.path(self.folder, point.id)}: a point of domain {point.manifest.domain} (uuid "
            f"{point.manifest.uuid}) among those of another one: somebody put it there; move away the points that "
            "do not belong there"
        )

    def _each(self, look: Callable[[str], _T]) -> tuple[list[_T], Refused]:
        with self.store.looking(self.folder):
            return self._each_now(look)

    def _each_now(self, look: Callable[[str], _T]) -> tuple[list[_T], Refused]:
        found: list[_T] = []
        refused: Refused = {}
        try:
            names = self.store.folders(self.folder)
        except errors.Damaged as error:
            return [], {self.folder: error}
        for name, (seen, flaw) in zip(names, self.store.several(partial(self._looked_at, look), names)):
            if seen is not None:
                found.append(seen)
            if flaw:
                refused[name] = flaw
        log.info("points in %s: %d; unreadable: %d", self.store.path(self.folder), len(found), len(refused))
        return found, refused

    def _looked_at(self, look: Callable[[str], _T], name: str) -> tuple[Optional[_T], Optional[errors.NbdpullError]]:
        """Return (result of look(name), None) or (None, why it is refused); (None, None) if the directory contains no
        point."""
        try:
            return look(name), None
        except _REFUSED as error:
            return None, None if self._lacks_manifest(name) else error

    def begun_last(self) -> list[Point]:
        """Return the points that were begun last according to their names: one, or all of one second. The newest point
        is usually among them, unless a clock went back. Raises the error of an unreadable point."""
        names = sorted(filter(layout.POINT_ID.match, self.store.folders(self.folder)), reverse=True)
        for _, second in groupby(names, lambda name: name.partition("-")[0]):
            seen = [self._looked_at(self.point_in, name) for name in second]
            for flaw in (flaw for _, flaw in seen if flaw):
                raise flaw
            if points := [point for point, _ in seen if point]:
                return points
        return []

    def points(self) -> list[Point]:
        """Return every Point in the order of their commits; raises the error of an unreadable one."""
        points, refused = self.load()
        for error in refused.values():
            raise error
        return points

    def _lacks_manifest(self, name: str) -> bool:
        """Return whether a directory contains no committed point, possibly because it was removed after the listing."""
        with suppress(errors.Failure):
            return self.store.find(f"{self.folder}/{name}/{layout.MANIFEST}") is None
        return False

    def newest(self) -> Optional[Point]:
        """Return the point that was committed last, of those that can be read; None if there is none."""
        return self.newest_of(self.newest_first())

    def newest_of(self, newest_first: Iterable[str]) -> Optional[Point]:
        with suppress(*_REFUSED):
            for name in newest_first:
                return self.point_in(name)
        return next(reversed(self.load()[0]), None)

    def newest_first(self) -> list[str]:
        """Return the names of the points, the last committed first; [] if one of the points is refused."""
        found, refused = self.heads()
        return [] if refused else [head.point for head in reversed(found)]

    def _head(self, name: str) -> Head:
        return self.store.proved(lambda: self._proved_head(name))

    def _proved_head(self, name: str) -> Head:
        data = self.store.read(f"{self.folder}/{name}/{layout.MANIFEST}")
        if found := manifest.head(data, name, self.store.seal):
            return found
        decoded = self.point_in(name).manifest
        return Head(name, decoded.sequence, decoded.uuid)

    def point_in(self, name: str) -> Point:
        """Return the point in the directory of this name; Damaged, FormatTooNew, FormatTooOld."""
        return self.store.proved(lambda: self._proved_point(name))

    def _proved_point(self, name: str) -> Point:
        path = f"{self.folder}/{name}/{layout.MANIFEST}"
        data = self.store.read(path)
        decoded = manifest.decode(data, self.store.path(path), self.store.seal)
        if decoded.point != name:
            raise errors.Damaged(f"{self.store.path(path)}: the directory was renamed; its point is {decoded.point}")
        return Point(decoded, hashlib.sha256(data).hexdigest())

    def named(self, wanted: str) -> list[str]:
        """Return the ids of committed points that begin with `wanted`; only `wanted` if a directory has exactly that
        name, committed or not. [] if the directories cannot be listed."""
        with suppress(errors.Damaged):
            found = point_choice.beginning_with(wanted, self.store.folders(self.folder))
            return found if found == [wanted] else [each for each in found if self.has_point(each)]
        return []

    def has_point(self, name: str) -> bool:
        """Return whether a committed point with this id exists, sound or not. A point whose manifest is not a regular
        file counts, because it is no half point either."""
        try:
            known = layout.POINT_ID.match(name)
            return bool(known) and self.store.size(f"{self.folder}/{name}/{layout.MANIFEST}") is not None
        except errors.Damaged:
            return True

    def point(self, wanted: str = LATEST) -> Point:
        """Return the Point with that id, the only one whose id begins with `wanted`, the newest at or before a time, or
        the latest. Among several by time, partial points are returned only if there are no others.

        NoSuchPoint; Foreign for an id only if the point belongs to another domain and does not have the folder's name.
        """
        if wanted == LATEST:
            return self.latest_of(self.newest_first())
        try:
            until = point_choice.moment(wanted, datetime.now(timezone.utc))
        except ValueError as error:
            raise errors.NoSuchPoint(str(error)) from None
        return self._last(until) if until else self._by_name(wanted)

    def _by_name(self, wanted: str) -> Point:
        found = self.named(wanted)
        if len(found) > 1:
            raise point_choice.ambiguous(wanted, found)
        if not found:
            known = point_choice.listed([point.id for point in self.load()[0]])
            raise errors.NoSuchPoint(f"no point {wanted} of {self.domain} in {self.store.root}; it has: {known}")
        if self.store.size(f"{self.folder}/{found[0]}/{layout.MANIFEST}") is None:
            raise errors.NoSuchPoint(
                f"{wanted} of {self.domain} is no point: it was removed, or never completed (no {layout.MANIFEST})"
            )
        point = self.point_in(found[0])
        if not self._bears_its_name(point) and isinstance(error := self.load()[1].get(point.id), errors.Foreign):
            raise error
        return point

    def latest_of(self, newest_first: Iterable[str]) -> Point:
        """Return what `_last` returns, which decodes every manifest, but decode only the newest if possible."""
        with suppress(*_REFUSED):
            for name in newest_first:
                point = self.point_in(name)
                if not point.manifest.partial:
                    return point
        return self._last()

    def _last(self, until: Optional[datetime] = None) -> Point:
        points, refused = self.load()
        for error in refused.values():
            raise type(error)(f"{error}; it may be the point that you ask for: name another by its id") from error
        if not points:
            raise errors.NoSuchPoint(f"{self.store.root} holds no completed point of {self.domain}")
        if until is not None:
            points = sorted((point for point in points if point.when <= until), key=lambda point: point.when)
        if not points:
            asked = until.isoformat(" ", "seconds") if until else ""
            raise errors.NoSuchPoint(f"{self.store.root} holds no point of {self.domain} at or before {asked}")
        return next((point for point in reversed(points) if not point.manifest.partial), points[-1])

    def parent(self, point: Point) -> Optional[Point]:
        """Return the Point that this one was read against, None if there was none or it is no longer in the store."""
        entry = point.manifest.parent
        with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
            parent = self.point_in(entry.point) if entry else None
            return parent if parent and entry and parent.sha256 == entry.sha256 else None
        return None

    def directory(self, point: Point, disk: str, partial: bool = False, read: ReadPage = read_page) -> Directory:
        """Return the verified directory of a disk of a Point. partial: allow a partial point; read: how the directory
        reads its pages. NoSuchDisk, Damaged, PartialPoint."""
        entry = point.disk(disk)
        if not entry.whole and not partial:
            raise errors.PartialPoint(
                f"point {point.id} of {self.domain} holds only what changed on {disk} since checkpoint "
                f"{point.manifest.since}: by itself it is not a whole image (restore --onto applies it to one)"
            )
        try:
            return Directory(self.store, self.folder, entry, read)
        except errors.Damaged as error:
            raise errors.Damaged(f"{error}; nbdpull index --rebuild may rebuild it") from error

    def read_file(self, point: Point, name: str) -> Optional[bytes]:
        """Return the verified bytes of a small file of a Point; None if it has no file of that name. Damaged."""
        entry = point.file(name)
        if entry is None:
            return None
        flaw = self._own_size_flaw(entry)
        if flaw:
            raise errors.Damaged(flaw)
        return self.store.proved(lambda: self._proved_file(entry, name))

    def same_file(self, point: Optional[Point], name: str, stored: bytes) -> Optional[FileEntry]:
        """Return the entry of a small file of a Point if the file is intact and has these bytes, which are sealed if
        the store is; else None."""
        entry = point.file(name) if point else None
        same = entry and (entry.size, entry.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
        return entry if entry and same and not self.file_flaw(entry) else None

    def _proved_file(self, entry: FileEntry, name: str) -> bytes:
        data = self.store.read(f"{self.folder}/{entry.path}", entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise errors.Damaged(_not_stored(self.store.path(f"{self.folder}/{entry.path}")))
        try:
            return self.store.seal.opened_piece(data, layout.file_piece(name))
        except ValueError as error:
            raise errors.Damaged(f"{self.store.path(f'{self.folder}/{entry.path}')}: {error}") from None

    def definition(self, point: Point) -> str:
        """Return the domain's definition as it was stored, as text; Damaged if there is none."""
        text = self._text(point, layout.DOMAIN_XML)
        if text is None:
            raise errors.Damaged(f"point {point.id} of {self.domain} has no {layout.DOMAIN_XML}")
        return text

    def live_definition(self, point: Point) -> Optional[str]:
        """Return the live definition of the running domain, as text; None if the point has none. Damaged."""
        return self._text(point, layout.LIVE_XML)

    def _text(self, point: Point, name: str) -> Optional[str]:
        data = self.read_file(point, name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise errors.Damaged(f"{name} of point {point.id} of {self.domain} is not text") from None

    def holding(self, entry: FileEntry) -> list[FileEntry]:
        """Return the files that hold the contents of a FileEntry's file: the file itself, or those that it was moved
        to. Damaged."""
        if layout.CHUNK_PATH.match(entry.path) and self.store.size(f"{self.folder}/{entry.path}") is None:
            table = moved.read(self.store, self.folder, entry)
            return [entry] if table is None else [*table.files]
        return [entry]

    def file_flaw(self, entry: FileEntry, check: Check = lambda: None) -> Optional[str]:
        """Return why the file of a FileEntry, or one that it was moved to, is damaged or missing; None if it is intact.
        check() is called often."""
        return self.flaw(entry, lambda each: self.own_flaw(each, check))

    def size_flaw(self, entry: FileEntry) -> Optional[str]:
        """Return why a FileEntry's file, or one that it was moved to, is missing or has the wrong size; None if all
        sizes are right."""
        return self.flaw(entry, self._own_size_flaw)

    def flaw(self, entry: FileEntry, of: Callable[[FileEntry], Optional[str]]) -> Optional[str]:
        """Return the first flaw that `of` finds in the files that hold the contents of a FileEntry's file; None if it
        finds none. If another run moves the file meanwhile, the new files are checked."""
        held = [entry]
        try:
            while flaw := next(filter(None, map(of, held)), None):
                before, held = held, self.holding(entry)
                if held == before:  # otherwise another run has moved it meanwhile
                    return flaw
        except errors.Damaged as error:
            return str(error)
        return None

    def own_flaw(self, entry: FileEntry, check: Check = lambda: None) -> Optional[str]:
        """Return what `file_flaw` returns, but only for the file itself, not for files that it was moved to."""
        path = f"{self.folder}/{entry.path}"
        try:
            flaw = self._own_size_flaw(entry)
            intact = flaw or self.store.sha256(path, check) == entry.sha256
        except errors.Damaged as error:
            return str(error)
        return flaw or (None if intact else _not_stored(self.store.path(path)))

    def as_it_is(self, path: str, check: Check) -> FileEntry:
        """Return the FileEntry of a file of the series, with the size and SHA-256 that the file has now; Damaged."""
        full = f"{self.folder}/{path}"
        return FileEntry(path, self.store.size(full) or 0, self.store.sha256(full, check))

    def _own_size_flaw(self, entry: FileEntry) -> Optional[str]:
        full = self.store.path(f"{self.folder}/{entry.path}")
        try:
            size = self.store.size(f"{self.folder}/{entry.path}")
        except errors.Damaged as error:
            return str(error)
        if size is None:
            return f"{full}: the file is missing"
        return None if size == entry.size else f"{full}: the file has {size} bytes, {entry.size} were stored"


def _not_stored(path: str) -> str:
    return f"{path}: the file is damaged (its SHA-256 is not the stored one)"
