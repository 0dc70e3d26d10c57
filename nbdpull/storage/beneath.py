"""Files and folders beneath a root, reached by no link and through nothing but folders.

Whoever can write to a store can put a symbolic link, a FIFO or a device where a file or a folder of it is expected. So
each component of a path is opened for itself, within the one before it; only the root, which the user named, may be
reached by links. Owns: that way, and the kinds of files that are refused. Raises OSError alone. Must not know: what a
file is for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, EINVAL, EISDIR, ELOOP, ENOTEMPTY
from typing import Optional

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DEEPEST = 8  # folders in folders that are removed; what nbdpull makes has none
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Strange(OSError):
    """There is something, and it is neither a file nor a folder of ours."""


@contextmanager
def parent(root: str, path: str, held: Optional[int] = None) -> Iterator[tuple[int, str]]:
    """Give (descriptor, name): of the folder that a path is in, which only serves to reach what is in it, and of the
    path in it. held: descriptor of a folder that the path begins in, where that is not the root."""
    folder, _, name = path.rpartition("/")
    descriptor = reached(root, folder, held)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)


def reached(root: str, path: str, held: Optional[int] = None) -> int:
    """Return a descriptor of a folder that only serves to reach what is in it; the caller closes it."""
    descriptor = os.open(root, _WALK) if held is None else os.dup(held)
    for name in filter(None, path.split("/")):
        try:
            inner = _entered(descriptor, name, _WALK)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


@contextmanager
def opened_folder(root: str, path: str = "") -> Iterator[int]:
    """Give a descriptor by which a folder can be listed, synced and locked."""
    descriptor = _opened_folder(root, path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _opened_folder(root: str, path: str) -> int:
    if not path:
        return os.open(root, _LIST)
    with parent(root, path) as (folder, name):
        return _entered(folder, name, _LIST)


def _entered(folder: int, name: str, flags: int) -> int:
    if name in (".", ".."):
        raise Strange(EINVAL, f"{name} is no name")
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _link() from None
        raise


def _link() -> Strange:
    return Strange(ELOOP, "it is a symbolic link, and none is followed in a store")


def open_file(root: str, path: str, flags: int, mode: int = 0, held: Optional[int] = None) -> int:
    """Return a descriptor of a regular file; the caller closes it. held: as of `parent`.

    It is looked at before: the mere opening of a device may do something.
    """
    with parent(root, path, held) as (folder, name):
        if not flags & os.O_CREAT:
            require_file(status(folder, name))
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags | os.O_NONBLOCK, mode, dir_fd=folder)  # a FIFO, just put there, hangs none
        except BlockingIOError:  # another program has a lease on the file
            descriptor = os.open(name, flags, mode, dir_fd=folder)
    try:
        require_file(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def status(folder: int, name: str) -> os.stat_result:
    """The status of what has that name in a folder, be it a link."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def require_file(found: os.stat_result) -> None:
    """Raise unless a status is that of a regular file."""
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISLNK(found.st_mode):
        raise _link()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
    raise Strange(EINVAL, f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, no file")


def require_folder(found: os.stat_result) -> None:
    """Raise unless a status is that of a folder."""
    if stat.S_ISLNK(found.st_mode):
        raise _link()
    if not stat.S_ISDIR(found.st_mode):
        raise FileExistsError(EEXIST, os.strerror(EEXIST))


def remove(root: str, path: str) -> None:
    """Remove a file, or a folder with all that is in it, as far as that can be done."""
    with suppress(OSError), parent(root, path) as (folder, name):
        _remove(folder, name, _DEEPEST)


def _remove(folder: int, name: str, depth: int) -> None:
    with suppress(IsADirectoryError):
        return os.unlink(name, dir_fd=folder)
    if not depth:
        raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY))
    inner = os.open(name, _LIST | os.O_NOFOLLOW, dir_fd=folder)
    try:
        for each in os.listdir(inner):
            with suppress(OSError):
                _remove(inner, each, depth - 1)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)
