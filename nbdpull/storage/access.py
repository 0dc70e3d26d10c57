"""Modes, owner and group of what nbdpull creates in a store, and whether any user can read a store.

Owns: modes, owner and group of files and folders. Must not know: what a file is for, how it becomes durable.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import NamedTuple

from . import beneath


class Access(NamedTuple):
    """The modes of new folders and files, whatever the umask. group: the number of the group that the group bits are
    for; owner: the number of the owner. Both are -1 to keep those of the process."""

    folder: int = 0o700
    file: int = 0o600
    group: int = -1
    owner: int = -1


OWNER = Access()
PASSABLE = Access(folder=0o711)  # QEMU runs as another user, and opens files in this folder by name


def of_store(root: str) -> Access:
    """Return the Access of what is created in a store: the mode of its root folder without the bits for others. A root
    folder that is open to others most likely owes its group bits to the umask, so they do not count. What root adds to
    another user's store gets that user as its owner, who could not read it otherwise."""
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
    """Set the mode, owner and group of a file or folder that was just created. If the group cannot be set, the mode
    gets no group bits either."""
    status = os.fstat(descriptor)
    with suppress(OSError):  # for example on a share that squashes root
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
    """Return whether any user can enter a store; False if that cannot be determined."""
    with suppress(OSError):
        above = root
        while _lets_in(os.stat(above)) and above != os.path.dirname(above):
            above = os.path.dirname(above)
        return _lets_in(os.stat(above))
    return False


def has_file_for_all(root: str, folder: str) -> bool:
    """Return whether any user who can enter a store can reach anything in this folder of the store."""
    with suppress(OSError), beneath.opened_folder(root, folder) as descriptor, os.scandir(descriptor) as entries:
        return _lets_in(os.fstat(descriptor)) and any(_lets_in(e.stat(follow_symlinks=False)) for e in entries)
    return False


def _lets_in(status: os.stat_result) -> bool:
    """Return whether any user can enter the folder, or read the file."""
    return bool(status.st_mode & (0o001 if stat.S_ISDIR(status.st_mode) else 0o004))
