"""The marker of a store: that a folder is one, which one, and how an empty folder becomes one.

Owns: the document in nbdpull.json, and whom a new store lets in. Must not know: points, how a file becomes durable.
"""

from __future__ import annotations

import grp
import shlex
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional
from uuid import uuid4

from ..core import errors, members
from ..format import layout
from ..storage import folders, place
from ..storage.access import OWNER, Access, of_store
from ..storage.base import Store


@dataclass(frozen=True)
class _Marker:
    uuid: str


def open_store(root: str) -> Store:
    """Return the Store at a place that is there; StoreError if it is none."""
    if not place.is_there(root):
        raise errors.StoreError(f"{root}: no such directory; name the directory that a pull was given with -o")
    found = place.opened(root)
    uuid_of(found)
    return found


def is_new(root: str) -> bool:
    """Whether nothing is there yet, so that a pull would make a store of it."""
    return place.is_empty(root)


def create(root: str, group: Optional[str] = None) -> Store:
    """Return the Store that a place becomes; StoreError where it is one. group: see open_or_create."""
    if place.is_there(root) and place.opened(root).holds(layout.MARKER):
        raise errors.StoreError(f"{root} is a store already; nothing was changed")
    return open_or_create(root, group)


def open_or_create(root: str, group: Optional[str] = None) -> Store:
    """Return the Store in `root`, made there first if the folder is new or empty.

    group: name of the group that may read it; UsageError where the store is there and not so.
    """
    access = OWNER if group is None else Access(0o750, 0o640, _group_number(group))
    folders.make(root, access)
    folders.require_writable(root)
    if not place.opened(root).holds(layout.MARKER):
        _create_marker(root, access)
    found, is_of = open_store(root), of_store(root)
    if group is not None and (is_of.group != access.group or is_of.file & 0o040 == 0):
        where = shlex.quote(found.root)
        raise errors.UsageError(
            f"--group {group}: the store {root} is there already and not of that group; to let it in: "
            f"chgrp -R {shlex.quote(group)} {where} && chmod -R g+rX,o-rwx {where}"
        )
    return found


def _group_number(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise errors.UsageError(f"--group {name}: this machine has no group of that name") from None


def uuid_of(found: Store) -> str:
    """That of a Store, by its marker; StoreError where there is none, Damaged where it is not one."""
    path, data = found.path(layout.MARKER), found.find(layout.MARKER)
    if data is None:
        raise errors.StoreError(
            f"{found.root} is not an nbdpull store (it has no {layout.MARKER}); name the directory "
            "that a pull was given with -o"
        )
    try:
        return members.build(_Marker, layout.unseal(data, path)).uuid
    except ValueError as error:
        raise errors.Damaged(f"{path}: not the marker of a store ({error})") from error


def _create_marker(root: str, access: Access) -> None:
    strange = [name for name in folders.entries(root) if name != "lost+found" and not name.startswith(layout.MARKER)]
    if strange and not place.opened(root).holds(layout.MARKER):  # it may be there by now
        raise errors.StoreError(f"{root} is not empty, and is not an nbdpull store; choose an empty or a new directory")
    if access.group != -1:  # the folder may be one that the operator made
        folders.let_in(root, access)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    document = {"format": layout.FORMAT, "requires": [], "uuid": str(uuid4()), "created": created}
    with suppress(errors.OutputExists):  # another run was faster, and its store is as good
        place.opened(root).publish(layout.MARKER, layout.seal(document))
