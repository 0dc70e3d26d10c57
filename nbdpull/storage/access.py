"""Who may read what is made in a store, and whom a store is open to.

Owns: modes, owner and group of files and folders. Must not know: what a file is for, how it becomes durable.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import NamedTuple

from . import beneath


class Access(NamedTuple):
    """Modes of what is made, whatever the umask; group: the number of the one whose bits these have; owner: whose it is
    to be. -1 for none that is told, so the process's own."""

    folder: int = 0o700
    file: int = 0o600
    group: int = -1
    owner: int = -1


OWNER = Access()
PASSABLE = Access(folder=0o711)  # QEMU is another user, and opens by name what is given to it there


def of_store(root: str) -> Access:
    """Of what is made in a store: its root folder's, without its other bits. A group that is one only because the umask
    let everybody in was not chosen. What root adds to another's store is that one's, who could not read it else."""
    try:
        status = os.stat(root)
    except OSError:
        return OWNER
    owner = status.st_uid if os.geteuid() == 0 else -1
    if status.st_mode & 0o007:
        return OWNER._replace(owner=owner)
    group = status.st_mode & 0o070
    return Access(status.st_mode & stat.S_ISGID | 0o700 | group, 0o600 | group & 0o060, status.st_gid, owner)


def give(descriptor: int, mode: int, access: Access) -> None:
    """Give what was just made its mode, owner and group. A group that it cannot have gets no bits either."""
    status = os.fstat(descriptor)
    with suppress(OSError):  # as on a share that trusts no root
        if access.owner not in (-1, status.st_uid):
            os.fchown(descriptor, access.owner, -1)
    try:
        if mode & 0o070 and access.group not in (-1, status.st_gid):
            os.fchown(descriptor, -1, access.group)
    except OSError:
        mode &= ~0o070
    with suppress(OSError):  # a file system without modes
        os.fchmod(descriptor, mode)


def lets_all_in(root: str) -> bool:
    """Whether any user can enter a store. What cannot be looked at is not told."""
    with suppress(OSError):
        above = root
        while _lets_in(os.stat(above)) and above != os.path.dirname(above):
            above = os.path.dirname(above)
        return _lets_in(os.stat(above))
    return False


def has_file_for_all(root: str, folder: str) -> bool:
    """Whether any user who can enter a store can come by a file in this folder of it."""
    with suppress(OSError), beneath.opened_folder(root, folder) as descriptor, os.scandir(descriptor) as entries:
        return _lets_in(os.fstat(descriptor)) and any(_lets_in(e.stat(follow_symlinks=False)) for e in entries)
    return False


def _lets_in(status: os.stat_result) -> bool:
    """Whether anybody can enter the folder, or read the file."""
    return bool(status.st_mode & (0o001 if stat.S_ISDIR(status.st_mode) else 0o004))
