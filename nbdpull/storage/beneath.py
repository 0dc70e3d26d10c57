"""Files and folders beneath a root, reached without symbolic links and only through folders.

Anyone who can write to a store can put a symbolic link, a FIFO or a device where nbdpull expects a file or a folder. So
each component of a path is opened on its own, relative to the one before it; only the root, which the user named, may
be reached through links. Owns: this way of opening, and the kinds of files that are refused. Raises only OSError. Must
not know: what a file is for.
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
_DEEPEST = 8  # levels of subfolders that are removed; the folders that nbdpull removes have none of their own
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Strange(OSError):
    """Something exists under the name that is neither a regular file nor a folder of the store."""


@contextmanager
def parent(root: str, path: str, held: Optional[Held] = None) -> Iterator[tuple[int, str]]:
    """Give (descriptor, name): the folder that contains a path, as a descriptor that only serves to reach its entries,
    and the last component of the path. held: the folder that the path is relative to, if that is not the root."""
    folder, _, name = path.rpartition("/")
    descriptor = reached(root, folder, held)
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)


class Held:
    """A folder that is held open, to reach many files in it. It is closed when the last thread is done with it.

    path: of the folder below the root. descriptor: only serves to reach its entries.
    """

    def __init__(self, root: str, path: str) -> None:
        self.path = path
        self.descriptor = reached(root, path)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # not if the folder could not be opened
            os.close(self.descriptor)


def reached(root: str, path: str, held: Optional[Held] = None) -> int:
    """Return a descriptor of a folder that only serves to reach its entries; the caller closes it. held: as for
    `parent`."""
    names = [*filter(None, path.split("/"))]
    if held is not None and not names:
        return os.dup(held.descriptor)
    descriptor = os.open(root, _WALK) if held is None else held.descriptor
    for number, name in enumerate(names):
        try:
            inner = _entered(descriptor, name, _WALK)
        finally:
            if held is None or number:
                os.close(descriptor)
        descriptor = inner
    return descriptor


@contextmanager
def opened_folder(root: str, path: str = "") -> Iterator[int]:
    """Give a descriptor with which a folder can be listed, synced and locked."""
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
        raise Strange(EINVAL, f"{name} is not a name")
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _link() from None
        raise


def _link() -> Strange:
    return Strange(ELOOP, "it is a symbolic link, and none is followed in a store")


def open_file(root: str, path: str, flags: int, mode: int = 0, held: Optional[Held] = None) -> int:
    """Return a descriptor of a regular file; the caller closes it. held: as for `parent`.

    The kind of the file is checked before it is opened: merely opening a device may have an effect.
    """
    return open_known(root, path, flags, mode, held)[0]


def open_known(
    root: str, path: str, flags: int, mode: int = 0, held: Optional[Held] = None
) -> tuple[int, os.stat_result]:
    """Return what `open_file` does, and the file's status."""
    inside, _, name = path.rpartition("/")
    folder = reached(root, inside, held)  # not by `parent`, as this is done for each of thousands of files
    try:
        if not flags & os.O_CREAT:
            require_file(status(folder, name))
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags | os.O_NONBLOCK, mode, dir_fd=folder)  # else a new FIFO would block
        except BlockingIOError:  # another program has a lease on the file
            descriptor = os.open(name, flags, mode, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        found = os.fstat(descriptor)
        require_file(found)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, found


def status(folder: int, name: str) -> os.stat_result:
    """Return the status of an entry of a folder, without following a link."""
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def require_file(found: os.stat_result) -> None:
    """Raise an OSError unless this is the status of a regular file."""
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISLNK(found.st_mode):
        raise _link()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
    raise Strange(EINVAL, f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, not a file")


def require_folder(found: os.stat_result) -> None:
    """Raise an OSError unless this is the status of a folder."""
    if stat.S_ISLNK(found.st_mode):
        raise _link()
    if not stat.S_ISDIR(found.st_mode):
        raise FileExistsError(EEXIST, os.strerror(EEXIST))


def remove(root: str, path: str) -> None:
    """Remove a file, or a folder with all its content, as far as possible."""
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
