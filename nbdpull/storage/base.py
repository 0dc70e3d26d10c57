"""What a store can do, wherever its files are: the interface that directory.py implements for a directory.

Paths are relative to the store, with "/" between components. A file is created once, and never written over, but for
the few that `replace` and `replacing` are for; only a sealed file is referred to by another one. Nobody above sees a
descriptor or an OSError of a store's file: what goes wrong is an error of core/errors.py.

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

MAX_READ = 1 << 26  # bytes of a file that is read whole
DRAFT = ".draft"  # ends the name of a file that is to appear whole


def _no_check() -> None:
    pass


def _somebody() -> str:
    return "another nbdpull"


class Protection(NamedTuple):
    """Of a file that nobody can remove or change for a time. until: its end; mode: a word of LockMode; enough: a file
    that is protected until then is left as it is. Times have a time zone, and whole seconds."""

    until: datetime
    mode: str
    enough: datetime


class Reader(Protocol):
    """A file that is open for reading, by any number of threads at once; its size is that of when it was opened."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`; Damaged if the file does not have them."""

    def close(self) -> None: ...

    def __enter__(self) -> Reader: ...

    def __exit__(self, *exc: object) -> None: ...


class Writer(Protocol):
    """A file being created. After an error it refuses everything but close; only `seal` makes it durable, and until
    then its name may show, with less than was written. Left by an exception, a `with` closes and does not seal.
    OutputExists where another one was faster: when it is made, or when it is sealed.

    size and sha256 are of what was written by this object.
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
    """What `with` does to a Reader, wherever the file is."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Sealing(Closing):
    """The same to a Writer."""

    def seal(self) -> None:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                self.seal()
        finally:
            self.close()


class Store(Protocol):
    """Files in folders. What only a directory has (half-written files to go on with, modes) is not here:
    directory.DirectoryStore has it, and who needs it says so by its type.

    root: the place, as every process of this machine can name it: an absolute path, or a URL. has_locks: whether
    `locked` keeps out every other writer. chunk_size: bytes that a large file is to have there, None: as many as one
    likes. A folder in which there is nothing may not show. seal: what who writes frames, pages and small
    files into it has to do with them first, and who reads them then; the store itself never looks at it. protects:
    whether its files may be protected, as far as is known; protection: of what `create` and `replacing` make from now
    on, None: none.
    """

    root: str
    has_locks: bool
    chunk_size: Optional[int]
    seal: Seal
    protects: bool
    protection: Optional[Protection]

    def path(self, *names: str) -> str:
        """How a message names a file, or the store."""

    def proved(self, read: Callable[[], _T]) -> _T:
        """Return what read() makes of the files of this store, raising Damaged unless they are right. Only what is read
        in it may come from nearby, or be kept there; it is called again if that was wrong."""

    def several(self, work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """Yield what work(item) gives, in the order of the items; what one raises is raised in its turn. Where each has
        to wait for a server, several threads do it at once, some items ahead; else it is done in its turn."""

    def read(self, path: str, limit: int = MAX_READ) -> bytes:
        """Return a whole file; Damaged if it is not there, or has more than `limit` bytes."""

    def find(self, path: str, limit: int = MAX_READ) -> Optional[bytes]:
        """The same, None where nothing has that name; StoreError where that cannot be told."""

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; Damaged if the file does not have them."""

    def open_reader(self, path: str, again: bool = False, through: bool = False) -> Reader:
        """Return the Reader of a file; Damaged if the file is not there. again: what is read of it may be read again,
        also by another run, so that it is worth to be kept nearby; through: most of it will be read, about from its
        beginning to its end."""

    def size(self, path: str) -> Optional[int]:
        """Size in bytes of a file, None where there is nothing of that name; Damaged if that cannot be told, or if what
        is there is no file."""

    def sha256(self, path: str, check: Check = _no_check) -> str:
        """SHA-256 of a file in hex; Damaged if it cannot be read. check() is called often: a file may be large."""

    def free_bytes(self) -> Optional[int]:
        """How much more may be made; None where nothing tells."""

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; none where the folder is not there. One that has become empty may
        show for a while, as on SeaweedFS, but not while somebody looks; `holds` tells."""

    def files(self, path: str = "") -> list[str]:
        """Names of the files in a folder, sorted; none where there is no such directory."""

    def names(self, path: str) -> list[str]:
        """Names of all that is in a folder, sorted; none where the folder is not there. StoreError, Damaged."""

    def looking(self, path: str, anew: bool = False) -> AbstractContextManager[None]:
        """While it lasts, names and sizes in a folder, and in those in it, may be told as they were when it began: who
        asks for many asks an object store once. What this object writes there shows. anew: not as they were when
        another such block began, in which this one is."""

    def holds(self, path: str) -> bool:
        """Whether anything has that name, be it what it may. StoreError where that cannot be told: who takes it for a
        no may remove what is there."""

    def seconds_since_change(self, path: str, anew: bool = False) -> float:
        """Since a file was made, or got its name, by the clock of the store; OutputError. anew: of a file, as it is
        now, be it `looking` or not."""

    def inode(self, path: str) -> Optional[int]:
        """The number of a folder, which a copy of it has not; None where there is none, or no such number.
        StoreError."""

    def is_same(self, path: str, other: str) -> Optional[bool]:
        """Whether a folder is what is at another place, which a `root` begins; None where nothing is."""

    def warnings(self) -> list[str]:
        """What its owner should know of it, one text each."""

    def make_folder(self, path: str, fresh: bool = False) -> None:
        """Create a folder durably. With `fresh` it must not exist (OutputExists), else it may."""

    def create(self, path: str) -> Writer:
        """Return a new Writer of a file that is not to be there."""

    def publish(self, path: str, data: bytes, protection: Optional[Protection] = None) -> None:
        """Create a small file that appears whole, durable and at once, or not at all; OutputExists as with `create`."""

    def protect(self, paths: Iterable[str], protection: Protection) -> None:
        """Have nobody remove or change these files for a time; where one is protected for longer, that stays. Several
        are done at once, in no order. StoreError where there is no such thing; Damaged where one is not there."""

    def protected_until(self, path: str) -> Optional[datetime]:
        """None of a file that is not protected, or not there."""

    def remove_file(self, path: str) -> None:
        """Remove a file that no point counts on; one that is not there is no error."""

    def remove_folder(self, path: str) -> None:
        """Remove a folder that was never published, with all that is in it. Where names are told as they were when a
        `looking` began, only what showed then: what another writer has put there since stays."""

    def delete(self, path: str) -> None:
        """As `remove_file`, where it matters that the file is gone: OutputError if it is not."""

    def rename(self, path: str, new: str) -> None:
        """Give a small file another name in its folder, durably, never that of another file; OutputError. Who is
        killed meanwhile may leave it with both names, never with none. Where there is no room for a second name (tmpfs
        counts them), who calls must know that nobody else makes that one."""

    def replace(self, path: str, data: bytes, was: Optional[bytes] = None) -> None:
        """As `publish`, in the place of the file that has that name: of a setting, never of what a point counts on.
        was: what that has to hold yet where no lock keeps others out; else Busy."""

    def replacing(self, path: str) -> AbstractContextManager[Writer]:
        """Give the Writer of a file that takes the place of what has its name, whole and durable; left by an exception,
        that stays as it was."""

    def make_durable(self, path: str) -> None:
        """Of a whole file that somebody else wrote, who may have died before it was sealed; OutputError."""

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable; OutputError."""

    def locked(self, path: str, doing: str, holder: Callable[[], str] = _somebody) -> AbstractContextManager[None]:
        """Hold a folder for one writer; Busy if another process holds it. The lock goes with the process. See
        has_locks."""
