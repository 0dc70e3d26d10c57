"""Which sealed stores this host has pulled to, and with which master key: as ssh knows hosts.

Whoever can write to a store can put another one in its place, sealed with a key that he has, or not at all; and nothing
in it tells. Owns: the file of what is known, and what is said where a store is another one. Must not know: how a store
is opened.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ..core import errors
from ..storage import access, folders
from ..storage.base import Store
from ..storage.directory import DirectoryStore
from . import journal_files

_FILE = "known-stores"  # each line is "KEY PLACE"; of one place several keys may be known, as of disks in turn
_LOCK = f"{_FILE}.lock"


def has(store: Store) -> bool:
    """Whether there was a sealed one at this place; OutputError."""
    return bool(_keys(store.root))


def require(store: Store) -> None:
    """Foreign where this host knows the store at this place as one that is sealed with another key; OutputError."""
    key, known = store.seal.id, _keys(store.root)
    if known and key is None:
        raise _other(store, "it is not sealed", "remove its line from")
    if known and key not in known:
        raise _other(store, f"it is sealed with key {key}", f"add the line '{key} {store.root}' to")


def gone(store: Store) -> errors.Foreign:
    """Of a known place where no store is."""
    return _other(store, "nothing is there", "remove its line from")


def _other(store: Store, now: str, way: str) -> errors.Foreign:
    keys = " or ".join(_keys(store.root))
    return errors.Foreign(
        f"{store.root} was sealed with key {keys} when this host last pulled to it, and now {now}: somebody may have "
        f"replaced it; if that is as you want it, {way} {_path()}"
    )


def note(store: Store) -> None:
    """Of a sealed store that is pulled to from now on. Who can keep nothing, as in a pod, knows nothing."""
    key, place = store.seal.id, store.root
    if key is None or "\n" in place or key in _keys(place):
        return
    with suppress(errors.OutputError):
        folders.make(journal_files.folder(), access.OWNER)
        folder = DirectoryStore(journal_files.folder())
        with folder.alone(_LOCK):  # many first pulls may begin in one minute
            told = _read()
            told += b"\n" if told and not told.endswith(b"\n") else b""  # somebody has edited it
            folder.replace(_FILE, told + f"{key} {place}\n".encode(errors="surrogateescape"))


def _keys(place: str) -> list[str]:
    told = [line.partition(" ") for line in _read().decode(errors="surrogateescape").split("\n")]
    return [key for key, _, of in told if of == place]


def _read() -> bytes:
    try:
        return DirectoryStore(journal_files.folder()).find(_FILE) or b""
    except (errors.Damaged, errors.StoreError) as error:
        raise errors.OutputError(f"which stores this host knows: {error}") from error


def _path() -> str:
    return os.path.join(journal_files.folder(), _FILE)
