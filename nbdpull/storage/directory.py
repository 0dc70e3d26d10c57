"""The files of a store in a directory: create-only, in folders, read by ranges. base.py documents each call.

Owns: how files and folders are named, listed, published and removed there, and the lock. No component of a path may be
a link: see beneath.py. Must not know: what makes a folder a store (repository/marker.py), what any file contains.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shlex
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from typing import Callable, Optional, TypeVar

from ..core import errors, file_system
from ..core.errors import Check
from ..core.os_error import FULL, reason, translated
from ..crypto.seal import PLAIN, Seal
from . import access, beneath, folders
from .base import DRAFT, MAX_READ, Protection
from .directory_file import DirectoryReader, DirectoryWriter, unreadable

log = logging.getLogger("nbdpull.store")
_T = TypeVar("_T")
_R = TypeVar("_R")

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # errors of file systems without hard links


class DirectoryStore:
    """The files below an existing folder, `root`. access: the Access of what is created in it."""

    has_locks = True
    is_remote = False
    chunk_size: Optional[int] = None
    protects = False
    protection: Optional[Protection] = None

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.access = access.of_store(self.root)
        self.seal: Seal = PLAIN
        self._held: list[beneath.Held] = []
        self._is_unlocked = False  # whether its file system has refused a lock

    def path(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    # Reading

    def proved(self, read: Callable[[], _T]) -> _T:
        return read()

    def several(self, work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        return map(work, items)

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        try:
            return self.read_raw(path, limit)
        except OSError as error:
            raise unreadable(self.path(path), error) from error

    def find(self, path: str, limit: int = MAX_READ) -> Optional[bytes]:
        try:
            return self.read_raw(path, limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.StoreError(f"cannot read {self.path(path)}: {reason(error)}") from error

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        with self.open_reader(path) as file:
            return file.read(offset, length)

    def open_reader(self, path: str, again: bool = False, through: bool = False) -> DirectoryReader:
        held, rest = self._begun(path)
        return DirectoryReader(self.root, rest, self.path(path), held)

    def size(self, path: str) -> Optional[int]:
        try:
            held, rest = self._begun(path)
            with beneath.parent(self.root, rest, held) as (folder, name):
                found = beneath.status(folder, name)
            beneath.require_file(found)
            return found.st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(self.path(path), error) from error

    def sha256(self, path: str, check: Check = lambda: None) -> str:
        digest = hashlib.sha256()
        try:
            held, rest = self._begun(path)
            descriptor, known = beneath.open_known(self.root, rest, os.O_RDONLY, held=held)
            try:
                # most files are small, and a new buffer is filled with zeros
                buffer = memoryview(bytearray(min(max(known.st_size, 1), 1 << 20)))
                while size := os.readv(descriptor, [buffer]):
                    digest.update(buffer[:size])
                    check()
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unreadable(self.path(path), error) from error
        return digest.hexdigest()

    def free_bytes(self) -> Optional[int]:
        return file_system.free_bytes(self.root)

    def folders(self, path: str = "") -> list[str]:
        """Return the names of folders, and of symbolic links: a caller that opens a link learns that it is not a
        folder, rather than taking it for absent."""
        return self._names(path, lambda entry: entry.is_dir(follow_symlinks=False) or entry.is_symlink())

    def files(self, path: str = "") -> list[str]:
        with suppress(errors.Damaged):
            return self._names(path, lambda entry: entry.is_file(follow_symlinks=False))
        return []

    def _names(self, path: str, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        try:
            with beneath.opened_folder(self.root, path) as folder, os.scandir(folder) as entries:
                return sorted(entry.name for entry in entries if wanted(entry))
        except FileNotFoundError:
            return []
        except beneath.Strange as error:
            raise unreadable(self.path(path), error) from error
        except OSError as error:
            raise errors.StoreError(f"cannot read {self.path(path)}: {reason(error)}") from error

    # Creating and removing

    def make_folder(self, path: str, fresh: bool = False) -> None:
        with translated("create the folder", self.path(path)):
            with beneath.parent(self.root, path) as (folder, name):
                try:
                    folders.make_one(name, self.access, folder)
                except FileExistsError:
                    if fresh:
                        raise
                    beneath.require_folder(beneath.status(folder, name))
            self.sync_folder(os.path.dirname(path))

    def create(self, path: str) -> DirectoryWriter:
        file = DirectoryWriter(self.root, path, self.access)
        self._log(path, "created")
        return file

    def _log(self, path: str, what: str) -> None:
        if not path.endswith(DRAFT):
            log.debug("%s %s", self.path(path), what)

    def publish(self, path: str, data: bytes, protection: Optional[Protection] = None) -> None:
        self._put(path, data, _link_or_rename)

    def protect(self, paths: Iterable[str], protection: Protection) -> None:
        raise errors.StoreError(f"{self.root}: the files of a directory cannot be locked")

    def protected_until(self, path: str) -> Optional[datetime]:
        return None

    def _put(self, path: str, data: bytes, name_it: Callable[[int, str, str], None]) -> None:
        with self._drafted(path, name_it) as file:
            file.write(data)

    @contextmanager
    def _drafted(self, path: str, name_it: Callable[[int, str, str], None]) -> Iterator[DirectoryWriter]:
        """Give the writer of a file that gets its name at the end; if an exception leaves the block, no file is
        created."""
        draft = f"{path}.{secrets.token_hex(4)}{DRAFT}"  # two runs may publish the same file: each has its draft
        file = self.create(draft)
        try:
            with file:
                yield file
            with translated("create", self.path(path)):
                with beneath.parent(self.root, path) as (folder, name):
                    name_it(folder, os.path.basename(draft), name)
                self.sync_folder(os.path.dirname(path))
            self._log(path, "written")
        finally:
            self.remove_file(draft)

    def remove_file(self, path: str) -> None:
        try:
            with beneath.parent(self.root, path) as (folder, name):
                os.unlink(name, dir_fd=folder)
            self._log(path, "removed")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log(path, f"cannot be removed: {reason(error)}")

    def remove_folder(self, path: str) -> None:
        beneath.remove(self.root, path)
        self._log(path, "removed, as far as possible")

    def replace(self, path: str, data: bytes, was: Optional[bytes] = None) -> None:
        self._put(path, data, _rename)

    def replacing(self, path: str) -> AbstractContextManager[DirectoryWriter]:
        return self._drafted(path, _rename)

    def make_durable(self, path: str) -> None:
        with self.reopen(path):
            pass

    def rename(self, path: str, new: str) -> None:
        with translated("rename", self.path(path)):
            with beneath.parent(self.root, path) as (folder, name):
                _link_or_rename(folder, name, os.path.basename(new), (*_NO_HARD_LINKS, *FULL))
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
            self.sync_folder(os.path.dirname(path))
        self._log(path, f"renamed to {os.path.basename(new)}")

    def delete(self, path: str) -> None:
        opened = beneath.parent(self.root, path)
        with translated("remove", self.path(path)), opened as (folder, name), suppress(FileNotFoundError):
            beneath.status(folder, name)  # a missing file is no error, even on a read-only file system
            os.unlink(name, dir_fd=folder)
            self._log(path, "removed")

    def seconds_since_change(self, path: str, anew: bool = False) -> float:
        with translated("look at", self.path(path)), beneath.parent(self.root, path) as (folder, name):
            return time.time() - beneath.status(folder, name).st_ctime

    def warnings(self) -> list[str]:
        found = []
        if access.lets_all_in(self.root) and any(map(self._has_file_for_all, self.folders())):
            mend = f"chmod -R go-rwx {shlex.quote(self.root)}"
            found.append(f"everybody on this machine can read {self.root}: close it with {mend}")
        if self._is_unlocked:
            found.append(
                f"the file system of {self.root} has no locks: while a pull of a domain runs, let no other run remove "
                "or prune points of that domain there"
            )
        return found

    def _has_file_for_all(self, folder: str) -> bool:
        return access.has_file_for_all(self.root, folder)

    # Beyond the interface of Store

    def read_raw(self, path: str, limit: int = MAX_READ) -> bytes:
        """Return a whole file as `read` does, but let an OSError through untranslated."""
        held, rest = self._begun(path)
        descriptor, known = beneath.open_known(self.root, rest, os.O_RDONLY, held=held)
        try:
            data = _read(descriptor, min(known.st_size, limit + 1))
        finally:
            os.close(descriptor)
        if len(data) > limit:
            raise errors.Damaged(f"{self.path(path)}: the file has more than {limit} bytes, the maximum for its kind")
        return data

    def reopen(self, path: str) -> DirectoryWriter:
        """Return the DirectoryWriter that appends to a file that an interrupted run was writing."""
        return DirectoryWriter(self.root, path, None)

    @contextmanager
    def alone(self, path: str) -> Iterator[None]:
        """Wait until no other thread or process is in such a block, each of which lasts only a moment. The lock is on a
        file of its own, which remains: a lock on a folder could be held forever by any process that can read the
        folder. OutputError. On a file system without locks, nobody is kept out."""
        with translated("open", self.path(path)):
            descriptor = beneath.open_file(self.root, path, os.O_RDWR | os.O_CREAT, access.OWNER.file)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            with suppress(OSError):  # a child forked meanwhile has the descriptor, and with it the lock
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def sync_folder(self, path: str) -> None:
        with translated("write to", self.path(path)), beneath.opened_folder(self.root, path) as folder:
            file_system.sync_folder(folder)

    def names(self, path: str) -> list[str]:
        return self._names(path, lambda entry: True)

    @contextmanager
    def looking(self, path: str, anew: bool = False) -> Iterator[None]:
        """Keep the folder open: reaching the manifests of a thousand points in it takes a third less time."""
        try:
            mine = beneath.Held(self.root, f"{path}/")
        except OSError:  # reported when the folder is read
            yield
            return
        self._held.append(mine)
        try:
            yield
        finally:
            self._held.remove(mine)

    def _begun(self, path: str) -> tuple[Optional[beneath.Held], str]:
        """Return (open folder that contains a path, path within it); (None, path) if there is none."""
        for held in self._held:  # a thread that appends or removes one meanwhile makes this miss one at most
            if path.startswith(held.path):
                return held, path[len(held.path) :]
        return None, path

    def holds(self, path: str) -> bool:
        return self.inode(path) is not None

    def inode(self, path: str) -> Optional[int]:
        """Return the inode number of a folder or a file. What is behind a link is not in the store."""
        try:
            with beneath.parent(self.root, path) as (folder, name):
                return beneath.status(folder, name).st_ino
        except (FileNotFoundError, NotADirectoryError, beneath.Strange):
            return None
        except OSError as error:
            raise errors.StoreError(f"cannot inspect {self.path(path)}: {error.strerror}") from error

    def is_same(self, path: str, other: str) -> Optional[bool]:
        return os.path.samefile(other, self.path(path)) if os.path.exists(other) else None

    @contextmanager
    def locked(self, path: str, doing: str, holder: Callable[[], str] = lambda: "another nbdpull") -> Iterator[None]:
        with ExitStack() as opened:
            with translated("open", self.path(path)):
                folder = opened.enter_context(beneath.opened_folder(self.root, path))
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise errors.Busy(f"{holder()} writes to {self.path(path)}; {doing} when it has ended") from None
            except OSError:  # a file system without locks
                self._is_unlocked = True
            yield


def _rename(folder: int, draft: str, name: str) -> None:
    os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)


def _link_or_rename(folder: int, draft: str, name: str, without_links: Collection[int] = _NO_HARD_LINKS) -> None:
    """Give a draft its final name; both are in the folder of this descriptor. without_links: errno values of a failed
    link on which the draft is renamed instead."""
    try:
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in without_links:
            raise
        with suppress(FileNotFoundError):
            beneath.status(folder, name)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
        _rename(folder, draft, name)


def _read(descriptor: int, size: int) -> bytes:
    """Return a file from its beginning, of which `size` bytes are wanted, and one more if it has grown. With a file
    object, reading a thousand manifests takes a seventh longer, as it first asks for the file's status, kind and
    position; so does a read that only shows that nothing follows."""
    data = os.read(descriptor, size + 1)
    while len(data) < size and (more := os.read(descriptor, size + 1 - len(data))):
        data += more
    return data
