"""Folders that the user names by a path: that of a store, before it is one, and that of restored images.

Owns: how they are made durably with those above them, what is looked at in them before. Must not know: what makes a
folder a store, what goes into it.
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
    """Whether neither of two folders is the other, or in it. They need not be there."""
    one, two = os.path.realpath(path), os.path.realpath(other)
    return os.path.commonpath([one, two]) not in (one, two)


def require_writable(path: str) -> None:
    """Raise OutputError unless something may be made in a folder."""
    if why := file_system.why_unwritable(path):
        raise errors.OutputError(f"cannot write to {path}: {why}")


def entries(path: str) -> list[str]:
    """Names of all that is in a folder, which need not be a store's; OutputError where they cannot be read."""
    with translated("look into", path):
        return os.listdir(path)


def let_in(path: str, wanted: Access) -> None:
    """Give a folder, which the operator may have made, to the group of what is to be made in it."""
    with translated("give to that group", path):
        os.chown(path, -1, wanted.group)
        os.chmod(path, wanted.folder)


def make(path: str, wanted: Access) -> list[str]:
    """Create a folder and those above it that are missing, each durably, and return those that were; OutputError where
    that cannot be done."""
    with translated("create the folder", path):
        return _make(os.path.abspath(path), wanted)


@contextmanager
def made(path: str, wanted: Access) -> Iterator[None]:
    """The same for a while: left by an exception, what was made and holds nothing is removed again."""
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
    if not os.path.exists(os.path.dirname(path)):  # what exists and is not a directory is told by mkdir, rightly
        new = _make(os.path.dirname(path), wanted)
    try:
        make_one(path, wanted)
        new.append(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    with suppress(PermissionError), beneath.opened_folder(os.path.dirname(path)) as above:  # one may create where one
        file_system.sync_folder(above)  # may not read
    return new


def make_one(path: str, wanted: Access, within: Optional[int] = None) -> None:
    """Create a folder, not durably; OSError. within: descriptor of the folder that it goes into, where `path` is a mere
    name."""
    os.mkdir(path, 0o700, dir_fd=within)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        access.give(descriptor, wanted.folder, wanted)
    finally:
        os.close(descriptor)
