"""All points of one domain in one store: which are committed, and in which order.

Owns: the directory of a domain, and the proof of a point from its manifest down. Must not know:
how a point is made (new_point.py), what is in one that is not committed (half_points.py), libvirt, NBD.
"""

from __future__ import annotations

import hashlib
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

_REFUSED = errors.Damaged, errors.FormatTooNew, errors.FormatTooOld
Refused = dict[str, errors.NbdpullError]  # by the folder of the point
_T = TypeVar("_T")


@dataclass(frozen=True)
class Point:
    """A committed point: its manifest, and the SHA-256 of the manifest's file, by which a child names it."""

    manifest: Manifest
    sha256: str

    @property
    def id(self) -> str:
        return self.manifest.point

    @property
    def origin(self) -> str:
        """SHA-256 of the manifest as it was first made: the same in every copy, whatever seals it."""
        return self.manifest.origin or self.sha256

    @property
    def disks(self) -> list[str]:
        """Their names."""
        return [disk.name for disk in self.manifest.disks]

    def disk(self, name: str) -> DiskEntry:
        """The entry of that disk; NoSuchDisk."""
        entry = self.manifest.disk(name)
        if entry is None:
            raise errors.NoSuchDisk(f"point {self.id} has no disk {name}; it has: {', '.join(self.disks)}")
        return entry

    @property
    def files(self) -> dict[str, FileEntry]:
        """Those of the domain, by their names."""
        return {entry.path.partition("/")[2]: entry for entry in self.manifest.files}

    @property
    def when(self) -> datetime:
        """The instant that the disks are as of; of points that do not tell it, when they were committed."""
        return datetime.fromisoformat(self.manifest.as_of or self.manifest.created)

    def file(self, name: str) -> Optional[FileEntry]:
        """That one, None where the point has none of that name."""
        return self.files.get(name)


class Series:
    """The points of one domain. Reading it never changes anything."""

    def __init__(self, store: Store, domain: str, folder: Optional[str] = None) -> None:
        """folder: where the points are, unless that is the domain's own folder."""
        self.store = store
        self.domain = domain
        self.folder = folder or layout.folder_name(domain)

    @property
    def is_at_home(self) -> bool:
        return self.folder == layout.folder_name(self.domain)

    def is_where_it_began(self) -> bool:
        """Whether the folder has the name that one of its points tells; another one was renamed, or is a copy."""
        return any(map(self._bears_its_name, self.load()[0]))

    def _bears_its_name(self, point: Point) -> bool:
        return layout.folder_name(point.manifest.domain) == self.folder

    def some_point(self) -> Optional[Point]:
        """The first of its points that can be read; None where it has none. Foreign where one before it was not made
        with the key of the store; Damaged, StoreError where none can be read."""
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
        """That of the domain, by the first of its points that can be read; None where there is none."""
        with suppress(errors.Damaged, errors.StoreError):
            for name in self.store.folders(self.folder):
                with suppress(errors.Damaged, errors.StoreError):
                    return self.point_in(name).manifest.uuid
        return None

    def require_of(self, points: Iterable[Point], uuid: str) -> None:
        """OtherDomain unless these points of the series are all of the domain with this uuid."""
        for other in (point.manifest for point in points if point.manifest.uuid != uuid):
            raise errors.OtherDomain(
                f"{self.store.path(self.folder)} holds points of another domain, {other.domain} (uuid {other.uuid}, "
                f"this one is {uuid}); choose another store"
            )

    def load(self) -> tuple[list[Point], Refused]:
        """Return ([Point, …] in the order of their commits, {folder of a point that must be refused: its error}).
        Foreign is the error of points of another domain; where nothing tells whose the series is, of all."""
        points, refused = self._each(self.point_in)
        if strangers := self._strangers(points):
            refused.update(strangers)
            points = [point for point in points if point.id not in strangers]
        return sorted(points, key=lambda point: point.manifest.sequence), refused

    def heads(self) -> tuple[list[Head], Refused]:
        """The same of their heads, of which one is refused only if it is not intact, or of another domain. Of a
        thousand points it takes longer than all else to decode every manifest."""
        found, refused = self._each(self._head)
        if len({head.uuid for head in found}) > 1:
            refused = self.load()[1]
            found = [head for head in found if head.point not in refused]
        return sorted(found, key=lambda head: head.sequence), refused

    def _strangers(self, points: list[Point]) -> dict[str, errors.Foreign]:
        """No writer mixes points of several uuids: somebody brought some there. Those that bear the name of the folder
        were there before, and those of the same uuid, whatever the domain was called then."""
        if len({point.manifest.uuid for point in points}) < 2:
            return {}
        owners = {point.manifest.uuid for point in points if self._bears_its_name(point)}
        return {point.id: self._stranger(point) for point in points if owners != {point.manifest.uuid}}

    def _stranger(self, point: Point) -> errors.Foreign:
        return errors.Foreign(
            f"{self.store.path(self.folder, point.id)}: a point of domain {point.manifest.domain} (uuid "
            f"{point.manifest.uuid}) among those of another one: somebody brought it there; move away the points of "
            "the one that does not belong there"
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
        return found, refused

    def _looked_at(self, look: Callable[[str], _T], name: str) -> tuple[Optional[_T], Optional[errors.NbdpullError]]:
        """(what look(name) gives, why that is refused); neither of a directory that is no point's."""
        try:
            return look(name), None
        except _REFUSED as error:
            return None, None if self._lacks_manifest(name) else error

    def begun_last(self) -> list[Point]:
        """The points that were begun last by their names: the one, or all of one second. As a rule the newest is among
        them, but a clock may have gone back. Raises what makes one unreadable."""
        names = sorted(filter(layout.POINT_ID.match, self.store.folders(self.folder)), reverse=True)
        for _, second in groupby(names, lambda name: name.partition("-")[0]):
            seen = [self._looked_at(self.point_in, name) for name in second]
            for flaw in (flaw for _, flaw in seen if flaw):
                raise flaw
            if points := [point for point, _ in seen if point]:
                return points
        return []

    def points(self) -> list[Point]:
        """Return every Point in the order of their commits; raises what makes one unreadable."""
        points, refused = self.load()
        for error in refused.values():
            raise error
        return points

    def _lacks_manifest(self, name: str) -> bool:
        """Whether a directory is that of no point, or not any more: what was listed may be gone since."""
        with suppress(errors.NbdpullError):
            return self.store.find(f"{self.folder}/{name}/{layout.MANIFEST}") is None
        return False

    def newest(self) -> Optional[Point]:
        """The point that was committed last, of those that can be read; None where there is none."""
        return self.newest_of(self.newest_first())

    def newest_of(self, newest_first: Iterable[str]) -> Optional[Point]:
        with suppress(*_REFUSED):
            for name in newest_first:
                return self.point_in(name)
        return next(reversed(self.load()[0]), None)

    def newest_first(self) -> list[str]:
        """Names of the points by the order of their commits; none where one of them is refused."""
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
        """That of the directory of this name; Damaged, FormatTooNew, FormatTooOld."""
        return self.store.proved(lambda: self._proved_point(name))

    def _proved_point(self, name: str) -> Point:
        path = f"{self.folder}/{name}/{layout.MANIFEST}"
        data = self.store.read(path)
        decoded = manifest.decode(data, self.store.path(path), self.store.seal)
        if decoded.point != name:
            raise errors.Damaged(f"{self.store.path(path)}: the directory was renamed; its point is {decoded.point}")
        return Point(decoded, hashlib.sha256(data).hexdigest())

    def named(self, wanted: str) -> list[str]:
        """Ids that begin so, of committed points; what is there by that very name comes alone, committed or not. Where
        it cannot be told, there is none to be found."""
        with suppress(errors.Damaged):
            found = point_choice.beginning_with(wanted, self.store.folders(self.folder))
            return found if found == [wanted] else [each for each in found if self.has_point(each)]
        return []

    def has_point(self, name: str) -> bool:
        """Whether there is a committed one of that very name, sound or not; one whose manifest is something strange is
        no half one either."""
        try:
            known = layout.POINT_ID.match(name)
            return bool(known) and self.store.size(f"{self.folder}/{name}/{layout.MANIFEST}") is not None
        except errors.Damaged:
            return True

    def point(self, wanted: str = LATEST) -> Point:
        """Return the Point with that id, or the only one whose id begins so; of a time the newest at or before it; or
        the latest. Of several by time, the last one that is whole, where there is any. NoSuchPoint; Foreign of an id
        only where the point is of another domain, and was never called as the folder is.
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
            raise errors.NoSuchPoint(f"{wanted} of {self.domain} was never completed (it has no {layout.MANIFEST})")
        point = self.point_in(found[0])
        if not self._bears_its_name(point) and isinstance(error := self.load()[1].get(point.id), errors.Foreign):
            raise error
        return point

    def latest_of(self, newest_first: Iterable[str]) -> Point:
        """As `_last`, which decodes every manifest."""
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
        """The Point that this one was read against, None if there was none, or it is not in the store any more."""
        entry = point.manifest.parent
        with suppress(errors.Damaged, errors.FormatTooNew, errors.FormatTooOld):
            parent = self.point_in(entry.point) if entry else None
            return parent if parent and entry and parent.sha256 == entry.sha256 else None
        return None

    def directory(self, point: Point, disk: str, partial: bool = False, read: ReadPage = read_page) -> Directory:
        """That of a disk of a Point, proved. partial: PartialPoint is no error; read: how it reads its pages.
        NoSuchDisk, Damaged."""
        entry = point.disk(disk)
        if not entry.whole and not partial:
            raise errors.PartialPoint(
                f"point {point.id} of {self.domain} holds only what changed on {disk} since checkpoint "
                f"{point.manifest.since}: by itself it is no whole image (restore --onto applies it to one)"
            )
        try:
            return Directory(self.store, self.folder, entry, read)
        except errors.Damaged as error:
            raise errors.Damaged(f"{error}; nbdpull index --rebuild may rebuild it") from error

    def read_file(self, point: Point, name: str) -> Optional[bytes]:
        """The bytes of that file of a Point, proved; None where it has none of that name. Damaged."""
        entry = point.file(name)
        if entry is None:
            return None
        flaw = self._own_size_flaw(entry)
        if flaw:
            raise errors.Damaged(flaw)
        return self.store.proved(lambda: self._proved_file(entry, name))

    def _proved_file(self, entry: FileEntry, name: str) -> bytes:
        data = self.store.read(f"{self.folder}/{entry.path}", entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise errors.Damaged(_not_stored(self.store.path(f"{self.folder}/{entry.path}")))
        try:
            return self.store.seal.opened_piece(data, layout.file_piece(name))
        except ValueError as error:
            raise errors.Damaged(f"{self.store.path(f'{self.folder}/{entry.path}')}: {error}") from None

    def definition(self, point: Point) -> str:
        """The domain's definition as it was stored, as text; Damaged where there is none."""
        text = self._text(point, layout.DOMAIN_XML)
        if text is None:
            raise errors.Damaged(f"point {point.id} of {self.domain} has no {layout.DOMAIN_XML}")
        return text

    def live_definition(self, point: Point) -> Optional[str]:
        """The domain's definition as it ran, as text; None where the point has none. Damaged."""
        return self._text(point, layout.LIVE_XML)

    def _text(self, point: Point, name: str) -> Optional[str]:
        data = self.read_file(point, name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise errors.Damaged(f"{name} of point {point.id} of {self.domain} is not text") from None

    def standing(self, entry: FileEntry) -> list[FileEntry]:
        """The files that hold what the file of a FileEntry did: itself, or those that it was moved to. Damaged."""
        if layout.CHUNK_PATH.match(entry.path) and self.store.size(f"{self.folder}/{entry.path}") is None:
            table = moved.read(self.store, self.folder, entry)
            return [entry] if table is None else [*table.files]
        return [entry]

    def file_flaw(self, entry: FileEntry, check: Check = lambda: None) -> Optional[str]:
        """Say why the file of a FileEntry, or one that it was moved to, is not the one that was stored, or None.
        check() is called often."""
        return self.flaw(entry, lambda each: self.own_flaw(each, check))

    def size_flaw(self, entry: FileEntry) -> Optional[str]:
        """Say why a FileEntry has no file of its size, nor files that it was moved to, or None."""
        return self.flaw(entry, self._own_size_flaw)

    def flaw(self, entry: FileEntry, of: Callable[[FileEntry], Optional[str]]) -> Optional[str]:
        """What `of` says of the first file, among those that hold what that of a FileEntry did, of which it says
        anything; None if it does of none. What another run moves meanwhile is asked about where it is then."""
        held = [entry]
        try:
            while flaw := next(filter(None, map(of, held)), None):
                before, held = held, self.standing(entry)
                if held == before:  # else another run moved it meanwhile
                    return flaw
        except errors.Damaged as error:
            return str(error)
        return None

    def own_flaw(self, entry: FileEntry, check: Check = lambda: None) -> Optional[str]:
        """As `file_flaw`, of the very file: not of what it was moved to."""
        path = f"{self.folder}/{entry.path}"
        try:
            flaw = self._own_size_flaw(entry)
            intact = flaw or self.store.sha256(path, check) == entry.sha256
        except errors.Damaged as error:
            return str(error)
        return flaw or (None if intact else _not_stored(self.store.path(path)))

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
