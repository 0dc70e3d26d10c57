"""Where a store is, as the user names it: which Store a word means, and what can be asked of a place before it is one.

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
    """Whether it names a place in an object store, and no directory."""
    return word.lower().startswith("s3:")


Warn = Callable[[str], None]


def opened(word: str, patience: Optional[float] = None, cache: Optional[Warn] = None) -> Store:
    """The Store at a place; nothing is looked at yet. patience: seconds that a server may be away, None: the usual.
    cache: have what is read kept on this host, if the user named a folder for that, and tell what comes of it; None:
    all is read where it is, as who passes bytes on or judges them has to. UsageError where the word cannot be one's,
    MissingSoftware."""
    if is_url(word):
        from .cache import chosen
        from .s3 import S3Store  # an extra needs a library

        return S3Store(word, patience, None if cache is None else chosen(cache))
    return DirectoryStore(word)


def probed(store: Store) -> Optional[Probed]:
    """What the server of an object store does, found by trying it, of which its `warnings` tell from then on; None of a
    directory. StoreError where no store can be there."""
    return None if isinstance(store, DirectoryStore) else cast("S3Store", store).probed()


def require_locks(store: Store) -> None:
    """StoreError where files of a Store cannot be protected, with what to do; AccessDenied."""
    if isinstance(store, DirectoryStore):
        raise errors.StoreError(
            f"{store.root}: the files of a directory cannot be locked: name a bucket with object lock, or have a "
            "second host copy the store, with rights of its own"
        )
    cast("S3Store", store).require_locks()


def had(store: Store, path: str) -> bool:
    """Whether a place in a bucket had a file that was deleted since, as far as old versions tell, and these credentials
    may ask."""
    with suppress(errors.NbdpullError):
        return cast("S3Store", store).had(path)
    return False


def as_of(word: str, when: datetime) -> str:
    """The same place as it was at a time. UsageError where nothing tells that."""
    if not is_url(word):
        raise errors.UsageError(f"--as-of: {word} is a directory, and only a bucket that keeps old versions tells")
    from .s3 import normal

    return normal(word)._replace(when=when).name


class Versioned(Store, Protocol):
    """What is more of a place in a bucket. See storage/s3.py."""

    def as_it_was(self, past: Store, paths: Iterable[str]) -> dict[str, str]: ...

    def holding(self, files: Mapping[str, tuple[int, str]], check: Check) -> dict[str, str]: ...

    def last(self, folder: str, is_sound: Callable[[str, bytes], bool], limit: int) -> dict[str, str]: ...

    def bring_back(self, versions: Mapping[str, str]) -> int: ...

    def written(self, name: str) -> dict[str, list[datetime]]: ...


def versioned(word: str) -> Versioned:
    """The Store at a place; UsageError of a directory, which has no old versions."""
    if not is_url(word):
        raise errors.UsageError(f"{word} is a directory, and only a bucket that keeps old versions has any")
    return cast(Versioned, opened(word))


def whole(word: str) -> str:
    """The same word, for a process that works in another folder."""
    return word if is_url(word) else os.path.abspath(word)


def told(store: Store) -> list[str]:
    """By what this machine knows a place again, whoever names it: a directory as it is named and, where links are in
    that, as they lead, since either can be changed without the other; a place in an object store with its server.
    UsageError where none can be."""
    if isinstance(store, DirectoryStore):
        return list(dict.fromkeys([store.root, os.path.realpath(store.root)]))
    return [f"{store.root} at {server(store)}"]


def server(store: Store) -> Optional[str]:
    """Where the one of an object store is, always spelled alike; None of a directory. UsageError where none can be."""
    return cast("S3Store", store).bucket.server if is_url(store.root) else None


def is_there(word: str) -> bool:
    """Of an object store this is told by the first request."""
    return is_url(word) or folders.is_there(word)


def is_empty(word: str) -> bool:
    """Whether nothing is in it, or it is not there; OutputError, StoreError where that cannot be told."""
    if is_url(word):
        return not opened(word).holds("")
    return not folders.is_there(word) or not folders.entries(word)


def are_apart(word: str, other: str) -> bool:
    """Whether neither of two places is the other, or in it. They need not be there."""
    if is_url(word) and is_url(other):
        one, two = (f"{opened(each).path()}/" for each in (word, other))
        return not one.startswith(two) and not two.startswith(one)
    return is_url(word) or is_url(other) or folders.are_apart(word, other)
