"""The place of a store, as the user names it: which Store a word means, and what can be learned of a place beforehand.

Owns: which words are URLs, and that a word means the same to every process of this machine. Must not know: what makes a
place a store (repository/marker.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Callable, Optional, Protocol, cast

from ..core import errors
from ..core.errors import Check
from . import folders
from .base import Store
from .directory import DirectoryStore
from .probed import Probed

if TYPE_CHECKING:
    from .s3 import S3Store


def is_url(word: str) -> bool:
    """Return whether a word names a place in an object store rather than a directory."""
    return word.lower().startswith("s3:")


Warn = Callable[[str], None]


def opened(word: str, patience: Optional[float] = None, cache: Optional[Warn] = None) -> Store:
    """Return the Store at a place, without reading anything from it yet. patience: seconds that a server may be
    unreachable, None: the default. cache: keep what is read on this host, if the user named a folder for it, and call
    this with any warning about it; None: read everything from the store, as needed when passing bytes on or checking
    them. UsageError if the word cannot name a place, MissingSoftware."""
    if is_url(word):
        from .cache import chosen
        from .s3 import S3Store  # an extra needs a library

        return S3Store(word, patience, None if cache is None else chosen(cache))
    return DirectoryStore(word)


def probed(store: Store) -> Optional[Probed]:
    """Try what the server of an object store can do, and return the result, which the store's `warnings` cover from
    then on; None for a directory. StoreError if the server cannot hold a store."""
    return None if isinstance(store, DirectoryStore) else cast("S3Store", store).probed()


def require_locks(store: Store) -> list[str]:
    """Raise StoreError, with advice, if the files of a store cannot be protected; return a warning if that could not be
    proved. AccessDenied."""
    if isinstance(store, DirectoryStore):
        raise errors.StoreError(
            f"{store.root}: the files of a directory cannot be locked: name a bucket with object lock, or have a "
            "second host copy the store, with rights of its own"
        )
    return cast("S3Store", store).require_locks()


def had(store: Store, path: str) -> bool:
    """Return whether a place in a bucket once had a file that has been deleted since; False if old versions do not show
    one, or these credentials may not list them."""
    with suppress(errors.Failure):
        return cast("S3Store", store).had(path)
    return False


def as_of(word: str, when: datetime) -> str:
    """Return the name of a place as of an earlier time. UsageError for a directory, which has no past."""
    if not is_url(word):
        raise errors.UsageError(f"--as-of: {word} is a directory, and only a bucket that keeps old versions has a past")
    from .s3 import normal

    return normal(word)._replace(when=when).name


def when(store: Store) -> str:
    """Return the time as of which a place in a bucket is read, for messages; "" if that is now, and for a directory."""
    if not is_url(store.root):
        return ""
    time = cast("S3Store", store).when
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S %z}" if time else ""


class Versioned(Store, Protocol):
    """The additional calls of a place in a bucket. See storage/s3.py."""

    def as_it_was(self, past: Store, paths: Iterable[str]) -> dict[str, str]: ...

    def holding(self, files: Mapping[str, tuple[int, str]], check: Check) -> dict[str, str]: ...

    def last(self, folder: str, is_sound: Callable[[str, bytes], bool], limit: int) -> dict[str, str]: ...

    def bring_back(self, versions: Mapping[str, str]) -> int: ...

    def written(self, name: str) -> dict[str, list[datetime]]: ...


def versioned(word: str) -> Versioned:
    """Return the Store at a place; UsageError for a directory, which has no old versions."""
    if not is_url(word):
        raise errors.UsageError(f"{word} is a directory, and only a bucket that keeps old versions has any")
    return cast(Versioned, opened(word))


def whole(word: str) -> str:
    """Return a word that means the same place to a process in another working directory."""
    return word if is_url(word) else os.path.abspath(word)


def names(store: Store) -> list[str]:
    """Return the names by which this machine recognises a place, whoever names it: a directory as it is named and, if
    that contains links, also with the links resolved, since either can change without the other; a place in an object
    store together with its server. UsageError if the server cannot be determined."""
    if isinstance(store, DirectoryStore):
        return list(dict.fromkeys([store.root, os.path.realpath(store.root)]))
    return [f"{store.root} at {server(store)}"]


def server(store: Store) -> Optional[str]:
    """Return the address of an object store's server, in a normal form; None for a directory. UsageError if it cannot
    be determined."""
    return cast("S3Store", store).bucket.server if is_url(store.root) else None


def is_there(word: str) -> bool:
    """Return whether a place exists; always True for an object store, where only the first request shows it."""
    return is_url(word) or folders.is_there(word)


def are_apart(word: str, other: str) -> bool:
    """Return whether two places are different and neither contains the other. They need not exist."""
    if is_url(word) and is_url(other):
        one, two = (f"{opened(each).path()}/" for each in (word, other))
        return not one.startswith(two) and not two.startswith(one)
    return is_url(word) or is_url(other) or folders.are_apart(word, other)
