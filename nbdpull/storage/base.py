"""The interface of a store, wherever its files are; directory.py implements it for a directory, s3.py for a bucket.

Paths are relative to the store, with "/" between components. A file is created once and never overwritten, except the
few that `replace` and `replacing` are for; only a sealed file is referred to by another one. Callers see no descriptor
and no OSError of a store's file: every failure is an error of core/errors.py.

Owns: the names and what each call promises. Must not know: any place where files are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Callable, NamedTuple, Optional, Protocol, TypeVar

from ..core.errors import Check
from ..crypto.seal import Seal

_T = TypeVar("_T")
_R = TypeVar("_R")

MAX_READ = 1 << 26  # bytes of a file that is read as a whole, at most
DRAFT = ".draft"  # ends the name of a file that has to appear whole


def _no_check() -> None:
    pass


def _somebody() -> str:
    return "another nbdpull"


class Protection(NamedTuple):
    """A period in which nobody can remove or change a file. until: its end; mode: a word of LockMode; enough: a file
    that is already protected until this time is left unchanged. Times have a time zone, and whole seconds."""

    until: datetime
    mode: str
    enough: datetime


class Reader(Protocol):
    """A file that is open for reading, by any number of threads at once. Its size is that at the time of opening."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; Damaged if the file does not have them."""

    def close(self) -> None: ...

    def __enter__(self) -> Reader: ...

    def __exit__(self, *exc: object) -> None: ...


class Writer(Protocol):
    """A file being created. After an error every call but `close` fails. Only `seal` makes the file durable; until then
    its name may already be visible, with only part of the data. If an exception leaves the `with` block, the file is
    closed but not sealed. OutputExists, on creation or in `seal`, if another writer was faster.

    size and sha256 cover what this object wrote.
    """

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...

    def write(self, data: bytes) -> None: ...

    def sha256(self) -> str: ...

    def seal(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Writer: ...

    def __exit__(self, *exc: object) -> None: ...


class Closing:
    """The context manager of a Reader, wherever the file is."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Sealing(Closing):
    """The context manager of a Writer, wherever the file is."""

    def seal(self) -> None:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                self.seal()
        finally:
            self.close()


class Store(Protocol):
    """Files in folders. What only a directory offers (resuming half-written files, modes) is not part of this
    interface: directory.DirectoryStore has it, and code that needs it requires that type.

    root: the place, under a name that is valid for every process of this machine: an absolute path, or a URL.
    has_locks: whether `locked` keeps out all other writers. is_remote: whether each read is a request to a server.
    chunk_size: the size in bytes for large files in this store, None: no limit. An empty folder may not be visible.
    seal: how callers must seal the frames, pages and small files that they write, and open those that they read; the
    store itself never uses it. protects: whether files can be protected, as far as is known; protection: applied to
    what `create` and `replacing` make from now on, None: no protection.
    """

    root: str
    has_locks: bool
    is_remote: bool
    chunk_size: Optional[int]
    seal: Seal
    protects: bool
    protection: Optional[Protection]

    def path(self, *names: str) -> str:
        """Return the name of a file, or of the store, for messages."""

    def proved(self, read: Callable[[], _T]) -> _T:
        """Call read() and return its result. read() must raise Damaged unless the files that it reads are right. Only
        what is read inside read() may come from the local cache or be kept in it; read() is called again if cached data
        were wrong."""

    def several(self, work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """Yield work(item) for each item, in order; an exception is raised when its item is due. If each call has to
        wait for a server, several threads work at once, a few items ahead; otherwise the calls run one after the
        other."""

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        """Return a whole file; Damaged if it is missing, or has more than `limit` bytes."""

    def find(self, path: str, limit: int = MAX_READ) -> Optional[bytes]:
        """Return a whole file as `read` does, or None if nothing has that name; StoreError if that cannot be
        determined."""

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; Damaged if the file does not have them."""

    def open_reader(self, path: str, again: bool = False, through: bool = False) -> Reader:
        """Return the Reader of a file; Damaged if the file is missing. again: the data may be read again, also by
        another run, and so are worth keeping in the local cache; through: most of the file will be read, roughly from
        its beginning to its end."""

    def size(self, path: str) -> Optional[int]:
        """Return the size of a file in bytes, None if nothing has that name; Damaged if the size cannot be determined,
        or if the name is not that of a file."""

    def sha256(self, path: str, check: Check = _no_check) -> str:
        """Return the SHA-256 of a file in hex; Damaged if it cannot be read. check() is called often, as a file may be
        large."""

    def free_bytes(self) -> Optional[int]:
        """Return how many bytes can still be written; None if that is unknown."""

    def folders(self, path: str = "") -> list[str]:
        """Return the names of the folders in a folder, sorted; an empty list if the folder does not exist. A folder
        that has become empty may remain visible for a while, as on SeaweedFS, but not inside a `looking` block; `holds`
        gives the exact answer."""

    def files(self, path: str = "") -> list[str]:
        """Return the names of the files in a folder, sorted; an empty list if there is no such folder."""

    def names(self, path: str) -> list[str]:
        """Return the names of all entries of a folder, sorted; an empty list if the folder does not exist. StoreError,
        Damaged."""

    def looking(self, path: str, anew: bool = False) -> AbstractContextManager[None]:
        """Inside this block, names and sizes in a folder and all its subfolders may be those at the start of the block,
        so that an object store is asked only once for many of them. What this object writes there is visible. anew:
        list the folder again, even inside another such block."""

    def holds(self, path: str) -> bool:
        """Return whether a file, a folder or anything else has that name. StoreError if that cannot be determined: a
        caller that takes this for a no may remove what is there."""

    def seconds_since_change(self, path: str, anew: bool = False) -> float:
        """Return the seconds since a file was created or renamed; OutputError. In a bucket, by the clock of its server;
        in a directory, from the ctime that its file system gave to now by the clock of this host. anew: ask for the
        present state of a file, even inside a `looking` block."""

    def inode(self, path: str) -> Optional[int]:
        """Return the inode number of a folder, which a copy of the folder does not share; None if the folder does not
        exist or the store has no such numbers. StoreError."""

    def is_same(self, path: str, other: str) -> Optional[bool]:
        """Return whether a folder is the one at another place, whose name begins with a store's `root`; None if that
        place does not exist."""

    def warnings(self) -> list[str]:
        """Return what the owner of the store should know about it, one text per warning."""

    def make_folder(self, path: str, fresh: bool = False) -> None:
        """Create a folder durably. With `fresh` it must not exist (OutputExists); otherwise it may."""

    def create(self, path: str) -> Writer:
        """Return a new Writer of a file that must not exist yet."""

    def publish(self, path: str, data: bytes, protection: Optional[Protection] = None) -> None:
        """Create a small file that appears at once, whole and durable, or not at all; OutputExists as with `create`."""

    def protect(self, paths: Iterable[str], protection: Protection) -> None:
        """Protect these files against removal and change; a file that is already protected for longer stays so. Several
        requests run at once, in no order. StoreError if the store cannot protect files; Damaged if a file is
        missing."""

    def protected_until(self, path: str) -> Optional[datetime]:
        """Return when the protection of a file ends; None if it is not protected, or does not exist."""

    def remove_file(self, path: str) -> None:
        """Remove a file that no point depends on, if possible; a missing file is no error."""

    def remove_folder(self, path: str) -> None:
        """Remove a folder that was never published, with all its content, as far as possible. Inside a `looking` block,
        only what was visible at its start is removed: files that another writer has added since remain."""

    def delete(self, path: str) -> None:
        """Remove a file, as `remove_file` does, when the removal matters: OutputError if it fails."""

    def rename(self, path: str, new: str) -> None:
        """Give a small file another name in its folder, durably, never the name of another file; OutputError. If the
        process is killed meanwhile, the file may have both names, but never none. Without room for a second name (tmpfs
        counts them), the caller must ensure that no other process creates a file of the new name."""

    def replace(self, path: str, data: bytes, was: Optional[bytes] = None) -> None:
        """Write a file as `publish` does, replacing the existing one: for settings only, never for a file that a point
        depends on. was: the content that the existing file must still have, where no lock keeps out others; Busy if it
        differs."""

    def replacing(self, path: str) -> AbstractContextManager[Writer]:
        """Give the Writer of a file that replaces the existing one of that name, whole and durable. If an exception
        leaves the block, the existing file remains unchanged."""

    def make_durable(self, path: str) -> None:
        """Make a whole file durable that another process wrote and may not have sealed; OutputError."""

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable; OutputError."""

    def locked(self, path: str, doing: str, holder: Callable[[], str] = _somebody) -> AbstractContextManager[None]:
        """Lock a folder for one writer; Busy if another process holds the lock. The lock ends with the process. See
        has_locks."""
