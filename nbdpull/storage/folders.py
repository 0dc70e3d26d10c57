"""Folders that the user names by a path: that of a future store, and that of restored images.

Owns: how they are created durably with their missing parents, which checks come before. Must not know: what makes a
folder a store, what is written into it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Optional

from ..core import errors, file_system
from ..core.os_error import translated
from . import access, beneath
from .access import Access


def is_there(path: str) -> bool:
    return os.path.isdir(path)


def are_apart(path: str, other: str) -> bool:
    """Return whether two folders are different and neither contains the other. They need not exist."""
    one, two = os.path.realpath(path), os.path.realpath(other)
    return os.path.commonpath([one, two]) not in (one, two)


def require_writable(path: str) -> None:
    """Raise OutputError unless files can be created in a folder."""
    if why := file_system.why_unwritable(path):
        raise errors.OutputError(f"cannot write to {path}: {why}")


def entries(path: str) -> list[str]:
    """Return the names of all entries of a folder, which need not be a store's; OutputError if they cannot be read."""
    with translated("look into", path):
        return os.listdir(path)


def let_in(path: str, wanted: Access) -> None:
    """Give a folder, which the operator may have created, to the group of the files that will be created in it."""
    with translated("change the group of", path):
        os.chown(path, -1, wanted.group)
        os.chmod(path, wanted.folder)


def make(path: str, wanted: Access) -> list[str]:
    """Create a folder and its missing parents, each durably, and return those that were created; OutputError on
    failure."""
    with translated("create the folder", path):
        return _make(os.path.abspath(path), wanted)


@contextmanager
def made(path: str, wanted: Access) -> Iterator[None]:
    """Create a folder as `make` does; if an exception leaves the block, remove the created folders that are empty."""
    new = make(path, wanted)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in reversed(new):
                os.rmdir(folder)
        raise


def _make(path: str, wanted: Access) -> list[str]:
    new: list[str] = []
    if os.path.isdir(path):
        return new
    if not os.path.exists(os.path.dirname(path)):  # if the parent is a file, mkdir fails with the right error
        new = _make(os.path.dirname(path), wanted)
    try:
        make_one(path, wanted)
        new.append(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    with suppress(PermissionError), beneath.opened_folder(os.path.dirname(path)) as above:  # a folder may be
        file_system.sync_folder(above)  # writable but not readable
    return new


def make_one(path: str, wanted: Access, within: Optional[int] = None) -> None:
    """Create a folder, not durably; OSError. within: descriptor of the parent folder, if `path` is only a name."""
    os.mkdir(path, 0o700, dir_fd=within)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        access.give(descriptor, wanted.folder, wanted)
    finally:
        os.close(descriptor)
