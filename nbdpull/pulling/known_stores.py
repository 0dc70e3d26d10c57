"""The sealed stores that this host has pulled to, or sealed copies for, and their master keys: like ssh's known hosts.

Anybody who can write to a store can replace it by another one, sealed with his own key or not sealed at all; and
nothing in the store shows that. Owns: the file of known stores, and the errors for a store that was replaced. Must not
know: how a store is opened.
"""

from __future__ import annotations

import os

from ..core import errors
from ..storage import access, folders, place
from ..storage.base import Store
from ..storage.directory import DirectoryStore
from . import journal_files

_FILE = "known-stores"  # each line is "KEY PLACE"; a place may have several keys, as if disks are mounted in turn
_LOCK = f"{_FILE}.lock"


def has(store: Store) -> bool:
    """Return whether this host knows a sealed store at this place; OutputError."""
    return bool(_known(store))


def require(store: Store) -> None:
    """Raise Foreign if this host knows the store at this place with other keys only; OutputError."""
    key = store.seal.id
    others = {where: keys for where, keys in _known(store).items() if key not in keys}
    if others and key is None:
        raise _other(others, "it is not sealed", _remove(others))
    if others:
        lines = " and ".join(f"'{key} {where}'" for where in others)
        raise _other(others, f"it is sealed with key {key}", f"add {_lines(others)} {lines} to")


def gone(store: Store) -> errors.Foreign:
    """Return the error for a known place that has no store."""
    known = _known(store)
    return _other(known, "nothing is there", _remove(known))


def _remove(known: dict[str, list[str]]) -> str:
    return f"remove {_lines(known)} of {' and '.join(known)} from"


def _lines(known: dict[str, list[str]]) -> str:
    return "the line" if len(known) == 1 else "the lines"


def _other(known: dict[str, list[str]], now: str, way: str) -> errors.Foreign:
    where, keys = next(iter(known.items()))
    return errors.Foreign(
        f"{where} was sealed with key {' or '.join(keys)} when this host last wrote to it, and now {now}: somebody "
        f"may have replaced it; if you intended that, {way} {os.path.join(journal_files.folder(), _FILE)}"
    )


def note(store: Store, warn: place.Warn) -> None:
    """Remember a sealed store that is about to be written to. warn: called if that is not possible, as in a pod; the
    store is not remembered then."""
    if not _new_lines(store):
        return
    try:
        _remember(store)
    except errors.OutputError as error:
        warn(
            f"this host cannot remember that {store.root} is sealed with key {store.seal.id}: {error} "
            f"({journal_files.VARIABLE} names another place); if somebody replaces the store, no pull will notice"
        )


def _remember(store: Store) -> None:
    folders.make(journal_files.folder(), access.OWNER)
    folder = DirectoryStore(journal_files.folder())
    with folder.alone(_LOCK):  # many first pulls may begin in one minute
        content = _read()
        content += b"\n" if content and not content.endswith(b"\n") else b""  # a user has edited the file
        folder.replace(_FILE, content + _new_lines(store))


def _new_lines(store: Store) -> bytes:
    key, known = store.seal.id, _known(store)
    places = [where for where in place.names(store) if "\n" not in where and key not in known.get(where, [])]
    return b"" if key is None else "".join(f"{key} {where}\n" for where in places).encode(errors="surrogateescape")


def _known(store: Store) -> dict[str, list[str]]:
    """Return {place: keys} of all names of the store's place that are known."""
    lines = [line.partition(" ") for line in _read().decode(errors="surrogateescape").split("\n") if line]
    places = place.names(store) if lines else []
    keys = {where: [key for key, _, of in lines if of == where] for where in places}
    return {where: found for where, found in keys.items() if found}


def _read() -> bytes:
    try:
        return DirectoryStore(journal_files.folder()).find(_FILE) or b""
    except (errors.Damaged, errors.StoreError) as error:
        raise errors.OutputError(f"the known stores of this host cannot be read: {error}") from error
