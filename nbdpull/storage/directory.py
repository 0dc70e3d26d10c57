"""Files of a store in a directory: create-only, in folders, read by ranges. base.py says what each call promises.

Owns: who may read what is made, and every way a file of a store is created, made durable, read and removed. OSError is
translated here. Paths are relative to the store, with "/" between components; none of these is ever a link: see
beneath.py.

Must not know: what makes a folder a store (repository/marker.py), what any file holds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Callable, NamedTuple, Optional, Union

from ..core import errors, file_system
from ..core.errors import Check
from ..core.os_error import translated
from . import beneath
from .base import MAX_READ

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without them say


class Access(NamedTuple):
    """Modes of what is made, whatever the umask; group: the number of the one whose bits these have; owner: whose it is
    to be. -1 for none that is told, so the process's own."""

    folder: int = 0o700
    file: int = 0o600
    group: int = -1
    owner: int = -1


OWNER = Access()
PASSABLE = Access(folder=0o711)  # QEMU is another user, and opens by name what is given to it there


def _access(root: str) -> Access:
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


def _give(descriptor: int, mode: int, access: Access) -> None:
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


def _make_folder(path: str, access: Access, within: Optional[int] = None) -> None:
    """within: descriptor of the folder that it goes into, where `path` is a mere name."""
    os.mkdir(path, 0o700, dir_fd=within)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        _give(descriptor, access.folder, access)
    finally:
        os.close(descriptor)


class DirectoryStore:
    """The files below a folder, `root`, that is there. access: the Access of what is made in it."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.access = _access(self.root)

    def path(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def warnings(self) -> list[str]:
        """What its owner should know of it, one text each."""
        if not self._is_open_to_all():
            return []
        mend = f"chmod -R go-rwx {shlex.quote(self.root)}"
        return [f"everybody on this machine can read {self.root}: close it with {mend}"]

    def _is_open_to_all(self) -> bool:
        """Whether any user can come by a file of a series. What cannot be looked at is not told."""
        with suppress(OSError):
            above = self.root
            while _lets_in(os.stat(above)) and above != os.path.dirname(above):
                above = os.path.dirname(above)
            return _lets_in(os.stat(above)) and any(map(self._has_open_file, self.folders()))
        return False

    def _has_open_file(self, folder: str) -> bool:
        with suppress(OSError), self._listed(folder) as (descriptor, entries):
            return _lets_in(os.fstat(descriptor)) and any(_lets_in(e.stat(follow_symlinks=False)) for e in entries)
        return False

    # Reading

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        """Return a whole file; Damaged if it is not there, or has more than `limit` bytes."""
        try:
            return self.read_raw(path, limit)
        except OSError as error:
            raise _unreadable(self.path(path), error) from error

    def read_raw(self, path: str, limit: int = MAX_READ) -> bytes:
        """The same; what the operating system says comes as it is, an OSError."""
        with self._reading(path) as file:
            data = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
        if len(data) > limit:
            raise errors.Damaged(f"{self.path(path)}: the file has more than {limit} bytes, which none of its kind has")
        return data

    def _reading(self, path: str) -> io.BufferedReader:
        return open(beneath.open_file(self.root, path, os.O_RDONLY), "rb")

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; Damaged if the file does not have them."""
        with self.open_reader(path) as file:
            return file.read(offset, length)

    def open_reader(self, path: str) -> Reader:
        """Return the Reader of a file; Damaged if the file is not there."""
        return Reader(self, path)

    def size(self, path: str) -> Optional[int]:
        """Size in bytes of a file, None where there is nothing of that name; Damaged if that cannot be told, or if what
        is there is no file."""
        try:
            with beneath.parent(self.root, path) as (folder, name):
                found = beneath.status(folder, name)
            beneath.require_file(found)
            return found.st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self.path(path), error) from error

    def inode(self, path: str) -> Optional[int]:
        """The number of a file, which a copy of it has not; None where there is none."""
        with suppress(OSError), beneath.parent(self.root, path) as (folder, name):
            return beneath.status(folder, name).st_ino
        return None

    def free_bytes(self) -> Optional[int]:
        return file_system.free_bytes(self.root)

    def holds(self, path: str) -> bool:
        """Whether anything has that name, be it what it may; what cannot be looked at is not there."""
        return self.inode(path) is not None

    def is_same(self, path: str, other: str) -> Optional[bool]:
        """Whether a folder is what is at an absolute path of this machine; None where nothing is."""
        return os.path.samefile(other, self.path(path)) if os.path.exists(other) else None

    def sha256(self, path: str, check: Check = lambda: None) -> str:
        """SHA-256 of a file in hex; Damaged if it cannot be read. check() is called often: a file may be large."""
        digest = hashlib.sha256()
        try:
            with self._reading(path) as file:
                buffer = memoryview(bytearray(1 << 20))
                while size := file.readinto(buffer):
                    digest.update(buffer[:size])
                    check()
        except OSError as error:
            raise _unreadable(self.path(path), error) from error
        return digest.hexdigest()

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; none where the folder is not there. Symbolic links are named with
        them: who looks into one is told that it is none, and does not believe that nothing was there."""
        return self._names(path, lambda entry: entry.is_dir(follow_symlinks=False) or entry.is_symlink())

    def files(self, path: str = "") -> list[str]:
        """Names of the files in a folder, sorted; none where there is no such directory."""
        with suppress(errors.Damaged):
            return self._names(path, lambda entry: entry.is_file(follow_symlinks=False))
        return []

    def _names(self, path: str, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        try:
            with self._listed(path) as (_, entries):
                return sorted(entry.name for entry in entries if wanted(entry))
        except FileNotFoundError:
            return []
        except beneath.Strange as error:
            raise _unreadable(self.path(path), error) from error
        except OSError as error:
            raise errors.StoreError(f"cannot read {self.path(path)}: {error.strerror}") from error

    @contextmanager
    def _listed(self, path: str) -> Iterator[tuple[int, Iterator[os.DirEntry[str]]]]:
        """Give (descriptor, entries) of a folder."""
        with _closing(beneath.open_folder(self.root, path)) as descriptor, os.scandir(descriptor) as entries:
            yield descriptor, entries

    # Creating

    def make_folder(self, path: str, fresh: bool = False) -> None:
        """Create a folder durably. With `fresh` it must not exist, else it may."""
        with translated("create the folder", self.path(path)):
            with beneath.parent(self.root, path) as (folder, name):
                try:
                    _make_folder(name, self.access, folder)
                except FileExistsError:
                    if fresh:
                        raise
                    beneath.require_folder(beneath.status(folder, name))
            self.sync_folder(os.path.dirname(path))

    def create(self, path: str) -> NewFile:
        """Return a new NewFile; OutputExists if there is one already."""
        return NewFile(self, path)

    def reopen(self, path: str) -> NewFile:
        """Return the NewFile of a file that a dead run was appending to, which goes on at its end."""
        return NewFile(self, path, os.O_APPEND)

    def publish(self, path: str, data: bytes) -> None:
        """Create a small file that appears whole, durable and at once, or not at all."""
        draft = f"{path}.{secrets.token_hex(4)}.draft"  # two runs may publish the same file: neither harms the other's
        file = self.create(draft)
        try:
            with file:
                file.write(data)
            with translated("create", self.path(path)):
                with beneath.parent(self.root, path) as (folder, name):
                    _link_or_rename(folder, os.path.basename(draft), name)
                self.sync_folder(os.path.dirname(path))
        finally:
            self.remove_file(draft)

    def sync_folder(self, path: str) -> None:
        with translated("write to", self.path(path)), _closing(beneath.open_folder(self.root, path)) as descriptor:
            _sync_folder(descriptor)

    def remove_folder(self, path: str) -> None:
        """Remove a folder that was never published, with all that is in it."""
        beneath.remove(self.root, path)

    def remove_file(self, path: str) -> None:
        """Remove a file that no point counts on; one that is not there is no error."""
        with suppress(OSError), beneath.parent(self.root, path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def names(self, path: str) -> list[str]:
        """Names of all that is in a folder; none where it cannot be read."""
        with suppress(OSError), _closing(beneath.open_folder(self.root, path)) as descriptor:
            return sorted(os.listdir(descriptor))
        return []

    @contextmanager
    def locked(self, path: str, doing: str, holder: Callable[[], str] = lambda: "another nbdpull") -> Iterator[None]:
        """Hold a folder for one writer; Busy if another process holds it. The lock goes with the process."""
        with translated("open", self.path(path)):
            descriptor = beneath.open_folder(self.root, path)
        with _closing(descriptor):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise errors.Busy(f"{holder()} writes to {self.path(path)}; {doing} when it has ended") from None
            except OSError:
                pass  # a file system without locks
            yield


def is_folder(root: str) -> bool:
    """Whether a folder is there that may hold a store."""
    return os.path.isdir(root)


def require_writable(root: str) -> None:
    """Raise OutputError unless something may be made in a folder."""
    if why := file_system.why_unwritable(root):
        raise errors.OutputError(f"cannot write to {root}: {why}")


def entries(root: str) -> list[str]:
    """Names of all that is in a folder, which need not be a store's; OutputError where they cannot be read."""
    with translated("look into", root):
        return os.listdir(root)


def let_in(root: str, access: Access) -> None:
    """Give a folder, which the operator may have made, to the group of what is to be made in it."""
    with translated("give to that group", root):
        os.chown(root, -1, access.group)
        os.chmod(root, access.folder)


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def make_folders(path: str, access: Access) -> list[str]:
    """Create a folder and those above it that are missing, each durably, and return those that were; OutputError where
    that cannot be done."""
    with translated("create the folder", path):
        return _make_folders(os.path.abspath(path), access)


@contextmanager
def made_folders(path: str, access: Access) -> Iterator[None]:
    """The same for a while: left by an exception, what was made and holds nothing is removed again."""
    made = make_folders(path, access)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in reversed(made):
                os.rmdir(folder)
        raise


def _make_folders(path: str, access: Access) -> list[str]:
    made: list[str] = []
    if os.path.isdir(path):
        return made
    if not os.path.exists(os.path.dirname(path)):  # what exists and is not a directory is told by mkdir, rightly
        made = _make_folders(os.path.dirname(path), access)
    try:
        _make_folder(path, access)
        made.append(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    above = os.path.dirname(path)
    with suppress(PermissionError), _closing(beneath.open_folder(above, "")) as descriptor:  # one may create where one
        _sync_folder(descriptor)  # may not read
    return made


def _sync_folder(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync of folders
            raise


def _lets_in(status: os.stat_result) -> bool:
    """Whether anybody can enter the folder, or read the file."""
    return bool(status.st_mode & (0o001 if stat.S_ISDIR(status.st_mode) else 0o004))


def _unreadable(path: str, error: OSError) -> Union[errors.Damaged, errors.StoreError]:
    if isinstance(error, FileNotFoundError):
        return errors.Damaged(f"{path}: the file is missing")
    if error.errno in (errno.EMFILE, errno.ENFILE):  # of which the file is not to blame
        return errors.StoreError(f"{path}: cannot be opened: {error.strerror}; allow more (ulimit -n)")
    return errors.Damaged(f"{path}: cannot be read: {error.strerror}")


def _link_or_rename(folder: int, draft: str, name: str) -> None:
    """Give the draft its name; both are in the folder of this descriptor."""
    try:
        os.link(draft, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        with suppress(FileNotFoundError):
            beneath.status(folder, name)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)


class Reader:
    """A file that is open for reading; may be used by several threads at once."""

    def __init__(self, store: DirectoryStore, path: str) -> None:
        self._full_path = store.path(path)
        self._descriptor = -1
        try:
            self._descriptor = beneath.open_file(store.root, path, os.O_RDONLY)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            self.close()
            raise _unreadable(self._full_path, error) from error

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; Damaged if the file does not have them."""
        try:
            data = os.pread(self._descriptor, length, offset) if offset + length <= self.size else b""
        except OSError as error:
            raise _unreadable(self._full_path, error) from error
        if len(data) != length:
            raise errors.Damaged(f"{self._full_path}: the file is cut short")
        return data

    def close(self) -> None:
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class NewFile:
    """A file being created. After an error it refuses everything but close; only `seal` makes it durable.

    size and sha256 are of what was written by this object.
    """

    def __init__(self, store: DirectoryStore, path: str, mode: int = os.O_CREAT | os.O_EXCL) -> None:
        self.path = path
        self.size = 0
        self._full_path = store.path(path)
        self._sha256 = hashlib.sha256()
        with translated("create", self._full_path):
            self._descriptor: Optional[int] = beneath.open_file(store.root, path, os.O_WRONLY | mode, 0o600)
            if mode & os.O_CREAT:
                _give(self._descriptor, store.access.file, store.access)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        with self._writing() as descriptor:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        self._sha256.update(data)
        if self.size // file_system.WRITEBACK_STEP != (self.size + len(data)) // file_system.WRITEBACK_STEP:
            file_system.start_writeback(descriptor)
        self.size += len(data)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """Give the descriptor."""
        if self._descriptor is None:
            raise errors.OutputError(f"cannot write to {self._full_path}: it is closed, or an earlier write failed")
        try:
            with translated("write to", self._full_path):
                yield self._descriptor
        except errors.OutputError:
            self.close()  # a second fsync would tell of success, though the first one lost data
            raise

    def sync(self) -> None:
        """Make what was written so far durable; more may follow."""
        with self._writing() as descriptor:
            os.fsync(descriptor)

    def sha256(self) -> str:
        """SHA-256 in hex of what was written so far."""
        return self._sha256.hexdigest()

    def seal(self) -> None:
        """Make the file durable and close it."""
        with self._writing() as descriptor:
            os.fsync(descriptor)
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            if kind is None:
                self.seal()
        finally:
            self.close()
