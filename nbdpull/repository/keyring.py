"""The master key of a sealed store, for anybody who can open one of its key files.

A store is sealed if its marker contains the id of a master key. A key file that opens but contains another key was
swapped or forged, and is never used.

Owns: which key files open, and the messages if none does. Must not know: where the files are (key_files.py), what is
sealed with the keys, or how age wraps a key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Optional

from ..core import errors
from ..crypto import age, keys
from ..crypto.keys import StoreKeys
from ..crypto.recipients import MASTER, Identity
from ..storage import place
from ..storage.base import Store
from . import key_files, marker

_NAMED_BY = "name an identity that opens it: --identity FILE, or NBDPULL_IDENTITY_FILE"


class Opened(NamedTuple):
    """An opened master key. key_file: name of the file that was opened; None: the identity is the master key itself."""

    master: bytes
    identity: Identity
    key_file: Optional[str]

    def __repr__(self) -> str:
        return f"<the master key by {self.identity!r}>"


def keys_of(store: Store, tried: Sequence[Identity]) -> StoreKeys:
    """Return the keys of a sealed store. KeyNeeded if no identity opens it, Damaged if all its copies of the key are
    forged or damaged, StoreError if it is not sealed. MissingSoftware."""
    return keys.of_master(open_master(store, tried).master)


def unlocked(root: str, master: Optional[bytes], cache: Optional[place.Warn] = None) -> Store:
    """Open the Store at a place, and unlock it if its master key is already known. cache: see place.opened."""
    store = marker.open_store(root, cache)
    if master is not None:
        marker.unlock(store, keys.of_master(master))
    return store


def open_master(store: Store, tried: Sequence[Identity], without: Collection[str] = ()) -> Opened:
    """Return the master key of a sealed store, from the first identity that opens a copy. without: names of key files
    to ignore. Errors as for keys_of."""
    wanted = marker.master_of(store)
    if wanted is None:
        raise errors.StoreError(f"{store.root}: {key_files.PLAIN}")
    if not tried:
        raise errors.KeyNeeded(f"{store.root} is sealed: {_NAMED_BY}")
    flaws: list[errors.Damaged] = []
    for opened in _attempts(store, [name for name in key_files.names(store) if name not in without], tried, flaws):
        if len(opened.master) == keys.MASTER_SIZE and keys.of_master(opened.master).id == wanted:
            _require_meant(store, opened.identity, wanted)
            return opened
        flaws.append(_foreign(store, opened, wanted))
    if flaws:
        raise flaws[0]
    raise _nobody(store, tried)


def _require_meant(store: Store, identity: Identity, master: str) -> None:
    """Raise Damaged if the identity states that it is for other master keys.

    Anybody who can replace a marker can wrap the key that it names for a recipient, and a first pull would then be
    sealed for that person. Only the owner of the identity can say which key is the right one.
    """
    if identity.only and master not in identity.only:
        raise errors.Damaged(
            f"{store.root} is sealed with master key {master}, and {identity.name} says that it is only for "
            f"{', '.join(identity.only)}: it is another store, or its marker was replaced"
        )


def _attempts(
    store: Store, names: list[str], tried: Sequence[Identity], flaws: list[errors.Damaged]
) -> Iterable[Opened]:
    """Yield what opens: first identities that are master keys, and last passphrases, which take a second each. flaws:
    damaged files are appended to it."""
    yield from (Opened(bytes(each.secret), each, None) for each in tried if each.kind == MASTER)
    last: list[tuple[str, bytes, str]] = []
    for name in names:
        try:
            data, path = key_files.read(store, name)
            if age.takes_passphrase(data, path):
                last.append((name, data, path))
                continue
        except errors.Damaged as error:
            flaws.append(error)
            continue
        yield from _attempt(name, data, path, tried)
    for each in last:
        yield from _attempt(*each, tried)


def _attempt(name: str, data: bytes, path: str, tried: Sequence[Identity]) -> Iterable[Opened]:
    found = age.unwrap(data, path, tried)
    if found:
        yield Opened(found.secret, found.identity, name)


def _foreign(store: Store, opened: Opened, wanted: str) -> errors.Damaged:
    where = store.path(key_files.path_of(opened.key_file)) if opened.key_file else opened.identity.name
    return errors.Damaged(
        f"{where}: does not hold the master key of this store ({wanted}): it was swapped or forged, or is of "
        "another store"
    )


def _nobody(store: Store, tried: Sequence[Identity]) -> errors.NbdpullError:
    there = key_files.listed(store)
    if not there:
        return errors.Damaged(key_files.none_left(store))
    return errors.KeyNeeded(
        f"{store.root} does not open for {what(tried)}; it is sealed for {', '.join(each.whose for each in there)}"
    )


def what(tried: Sequence[Identity]) -> str:
    """Return the identities as named in messages."""
    return ", ".join(dict.fromkeys(each.what for each in tried))
