"""The marker of a store: it makes a folder a store, identifies the store, and is how an empty folder becomes one.

Owns: the document in nbdpull.json, and which users may read a new store. Must not know: points, how a file becomes
durable.
"""

from __future__ import annotations

import grp
import logging
import re
import shlex
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import NamedTuple, Optional
from uuid import uuid4

from ..core import errors, members, secrecy
from ..crypto.keys import StoreKeys
from ..crypto.seal import Locked, Sealed
from ..format import layout
from ..storage import folders, place
from ..storage.access import OWNER, Access, of_store
from ..storage.base import DRAFT, Protection, Store
from ..storage.probed import PREFIX as PROBE
from ..storage.probed import Probed

log = logging.getLogger("nbdpull.store")
CIPHER = "XAES-256-GCM"


@dataclass(frozen=True)
class _Sealed:
    """key: id of the master key."""

    cipher: str
    key: str


@dataclass(frozen=True)
class Marker:
    """The contents of nbdpull.json. object_store: what was found out about the server when the store was made; None if
    the store is a directory."""

    uuid: str
    requires: list[str] = field(default_factory=list)
    sealed: Optional[_Sealed] = None
    object_store: Optional[Probed] = None

    @property
    def master(self) -> Optional[str]:
        """The id of the master key; None if the store is not sealed."""
        return self.sealed.key if self.sealed else None


class NewSeal(NamedTuple):
    """The seal of a new store. master: id of its master key; files: (path, bytes) of its key files."""

    master: str
    files: list[tuple[str, bytes]]


def open_store(root: str, cache: Optional[place.Warn] = None) -> Store:
    """Return the Store at an existing place, locked if it is sealed; StoreError if there is no store. cache: see
    place.opened."""
    if not place.is_there(root):
        raise errors.StoreError(f"{root}: no such directory; name the directory that a pull was given with -o")
    return _known(place.opened(root, cache=cache))


def _known(found: Store, data: Optional[bytes] = None) -> Store:
    """Set the protection and the seal of a Store as its marker records them, and return the Store. data: the bytes of
    the marker if they were read already."""
    content = of(found) if data is None else _decoded(found, data)
    found.protects = bool(content.object_store and content.object_store.object_lock)
    if content.master is not None:
        found.seal = Locked(content.master, found.root)
    log.info("opened %s, which %s", found.root, _sealed(found))
    return found


def unlock(found: Store, keys: StoreKeys) -> None:
    """Read and write a sealed Store with these keys from now on; KeyNeeded if the keys belong to another store."""
    if found.seal.id != keys.id:
        raise errors.KeyNeeded(f"{found.root} {_sealed(found)}, this is key {keys.id}")
    secrecy.begin()
    found.seal = Sealed(keys)
    log.info("unlocked %s", found.root)


def is_new(root: str, sealed: bool = False) -> bool:
    """Return whether a pull would make a store at a place; OutputError, StoreError if that cannot be determined. A
    place for a sealed store may have the key files of a run that died before it wrote the marker."""
    if place.is_url(root):
        found = place.opened(root)
        return not found.holds("") or (sealed and found.names("") == [layout.KEYS])
    return not place.is_there(root) or not _strange(root, sealed)


def create(
    root: str,
    group: Optional[str] = None,
    seal: Optional[NewSeal] = None,
    protection: Optional[Protection] = None,
) -> Store:
    """Make a place a store, and return the Store; StoreError if it is one already.

    group, seal: see open_or_create. protection: of the files that are written for it: see place.require_locks.
    """
    if place.is_url(root):
        made = _in_objects(root, group, seal, is_new=True, protection=protection)
    else:
        if place.is_there(root) and place.opened(root).holds(layout.MARKER):
            raise _is_one(root)
        made = open_or_create(root, group, seal)
    if seal and made.seal.id != seal.master:
        raise errors.StoreError(f"another run made {root} a store meanwhile, and not with the seal that you asked for")
    return made


def _is_one(root: str) -> errors.StoreError:
    return errors.StoreError(f"{root} is a store already; nothing was changed")


def open_or_create(
    root: str, group: Optional[str] = None, seal: Optional[NewSeal] = None, patience: Optional[float] = None
) -> Store:
    """Return the Store in `root`; if the place is new or empty, make the store first.

    group: name of the group that may read the store; UsageError if the store exists and that group may not. seal: that
    of a new store; an existing store is not changed. patience: see place.
    """
    if place.is_url(root):
        return _in_objects(root, group, seal, patience)
    access = OWNER if group is None else Access(0o750, 0o640, _group_number(group))
    folders.make(root, access)
    folders.require_writable(root)
    if not place.opened(root).holds(layout.MARKER):
        _create_marker(root, access, seal)
    found, is_of = open_store(root), of_store(root)
    if group is not None and (is_of.group != access.group or is_of.file & 0o040 == 0):
        where = shlex.quote(found.root)
        raise errors.UsageError(
            f"--group {group}: the store {root} exists already, and that group cannot read it; to give it access: "
            f"chgrp -R {shlex.quote(group)} {where} && chmod -R g+rX,o-rwx {where}"
        )
    return found


def _group_number(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise errors.UsageError(f"--group {name}: this machine has no group of that name") from None


def uuid_of(found: Store) -> str:
    """Return the UUID in the marker of a Store; errors as for `of`."""
    return of(found).uuid


def master_of(found: Store) -> Optional[str]:
    """Return the id of the master key of a Store; None if it is not sealed. Errors as for `of`."""
    return of(found).master


def of(found: Store) -> Marker:
    """Read and return the Marker of a Store; StoreError if there is no marker, Damaged if it is not valid."""
    data = found.find(layout.MARKER)
    if data is None and (when := place.when(found)):
        raise errors.StoreError(
            f"{found.path()} was not an nbdpull store at {when}, or the bucket no longer has its versions of that time"
        )
    if data is None:
        raise errors.StoreError(
            f"{found.root} is not an nbdpull store (it has no {layout.MARKER}); name the directory "
            "that a pull was given with -o"
        )
    return _decoded(found, data)


def _decoded(found: Store, data: bytes) -> Marker:
    path = found.path(layout.MARKER)
    try:
        content = members.build(Marker, layout.unseal(data, path))
        if (layout.SEALED in content.requires) != (content.sealed is not None):
            raise ValueError("it contradicts itself on whether the store is sealed")
        if content.sealed and content.sealed.cipher != CIPHER:
            raise ValueError(f"it is sealed with {members.short(content.sealed.cipher)}")
        if content.sealed and not layout.KEY_ID.match(content.sealed.key):
            raise ValueError(f"sealed.key is {members.short(content.sealed.key)}")
        return content
    except ValueError as error:
        raise errors.Damaged(f"{path}: not the marker of a store ({error})") from error


def put_keys(store: Store, files: list[tuple[str, bytes]]) -> None:
    """Write key files durably, with the protection of the Store; OutputError. An existing file with the same bytes
    counts as written: a copy that died may have written it."""
    store.make_folder(layout.KEYS)
    for path, data in files:
        try:
            store.publish(path, data, store.protection)
        except errors.OutputExists:
            if store.find(path) != data:
                raise
            if store.protection:
                store.protect([path], store.protection)


def _create_marker(root: str, access: Access, seal: Optional[NewSeal]) -> None:
    if _strange(root, bool(seal)) and not place.opened(root).holds(layout.MARKER):  # another run may have written it
        raise errors.StoreError(f"{root} is not empty, and is not an nbdpull store; choose an empty or a new directory")
    if access.group != -1:  # the user may have made the folder
        folders.let_in(root, access)
    _publish_marker(place.opened(root), seal)


def _strange(root: str, sealed: bool) -> list[str]:
    """Return the names in a directory that are neither of a new file system, nor of a run that died before it wrote the
    marker."""
    known = ["lost+found", *([layout.KEYS] if sealed else [])]
    draft = re.compile(f"{re.escape(layout.MARKER)}\\.[^.]+{re.escape(DRAFT)}")
    return [name for name in folders.entries(root) if name not in known and not draft.fullmatch(name)]


def _publish_marker(found: Store, seal: Optional[NewSeal]) -> Optional[bytes]:
    """Write the marker and return its bytes; None if another run was faster, whose store will do as well."""
    probed = place.probed(found)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    document: layout.Document = {"format": layout.FORMAT, "requires": [], "uuid": str(uuid4()), "created": created}
    dead: list[str] = []
    if seal:  # the key files must exist before anything can be sealed with the key in them
        dead = found.files(layout.KEYS)
        put_keys(found, seal.files)
        document["requires"], document["sealed"] = [layout.SEALED], {"cipher": CIPHER, "key": seal.master}
    if probed:
        document["object_store"] = asdict(probed)
    data, is_ours = layout.seal(document), True
    try:
        found.publish(layout.MARKER, data, found.protection)
        log.info("made %s a store", found.root)
    except errors.OutputExists:
        is_ours = False
    if seal:
        _drop_foreign(found, seal, dead)
    return data if is_ours else None


def _drop_foreign(found: Store, seal: NewSeal, dead: list[str]) -> None:
    """Remove key files whose master key is not that of the marker, which exists now: they seem to open the store, but
    do not. dead: names of the key files that existed before the marker."""
    ours = [path.rpartition("/")[2] for path, _ in seal.files]
    is_ours = master_of(found) == seal.master
    for name in [name for name in dead if name not in ours] if is_ours else ours:
        found.delete(f"{layout.KEYS}/{name}")


def _in_objects(
    root: str,
    group: Optional[str],
    seal: Optional[NewSeal],
    patience: Optional[float] = None,
    is_new: bool = False,
    protection: Optional[Protection] = None,
) -> Store:
    """Return the Store at a URL; make it first if there is none.

    is_new: it must not be a store yet, but may have been one before. protection: of the files of a new store.
    """
    if group is not None:
        raise errors.UsageError(f"--group {group}: an object store has no groups; its own policies say who may read")
    found = place.opened(root, patience)
    content = found.find(layout.MARKER)
    if content is not None and is_new:
        raise _is_one(root)
    if content is None:
        strange = {*found.names("")} - {*([layout.KEYS] if seal else [])}
        strange = {name for name in strange if not name.startswith(PROBE)}  # left by a probe that was killed
        if any(map(found.holds, strange)) and found.find(layout.MARKER) is None:  # it may exist by now
            raise errors.StoreError(f"{root} is not empty, and is not an nbdpull store; choose another prefix")
        if not is_new and place.had(found, layout.MARKER):
            raise errors.StoreError(
                f"{root} was a store, and its {layout.MARKER} was deleted: nbdpull undelete brings back what is left "
                "of it; to begin a new one there, run nbdpull init"
            )
        found.protection = protection
        content = _publish_marker(found, seal)
    return _known(found, content)


def _sealed(store: Store) -> str:
    return "is not sealed" if store.seal.id is None else f"is sealed with key {store.seal.id}"
