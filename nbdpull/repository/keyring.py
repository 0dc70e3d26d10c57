"""The master key of a sealed store, by whoever can open a key file of it.

A store is sealed if its marker says so, by the id of the master key. What opens and holds another key than the
marker's was swapped or forged, and is never used.

Owns: which key files open, what is said where none does. Must not know: where they are (key_files.py), what is sealed
with the keys, how age wraps.
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
    """key_file: which one was opened; None: the identity is the master key itself."""

    master: bytes
    identity: Identity
    key_file: Optional[str]

    def __repr__(self) -> str:
        return f"<the master key by {self.identity!r}>"


def keys_of(store: Store, tried: Sequence[Identity]) -> StoreKeys:
    """Of a sealed store. KeyNeeded where nobody opens it, Damaged where only forged or damaged copies are there.
    StoreError where it is not sealed. MissingSoftware."""
    return keys.of_master(open_master(store, tried).master)


def unlocked(root: str, master: Optional[bytes], cache: Optional[place.Warn] = None) -> Store:
    """The Store at a place; a master key that was opened before unlocks it. cache: see place.opened."""
    store = marker.open_store(root, cache)
    if master is not None:
        marker.unlock(store, keys.of_master(master))
    return store


def open_master(store: Store, tried: Sequence[Identity], without: Collection[str] = ()) -> Opened:
    """The master key of a sealed store, by the first identity that opens a copy. without: names of some that are not to
    be counted on. Errors as of keys_of; StoreError where it is not sealed."""
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
    """Whoever can replace a marker can wrap the key that it names for a recipient, so that a first pull would be sealed
    for him: only who has the identity can say that it is the right one."""
    if identity.only and master not in identity.only:
        raise errors.Damaged(
            f"{store.root} is sealed with master key {master}, and {identity.name} says that it is only for "
            f"{', '.join(identity.only)}: it is another store, or its marker was replaced"
        )


def _attempts(
    store: Store, names: list[str], tried: Sequence[Identity], flaws: list[errors.Damaged]
) -> Iterable[Opened]:
    """What opens, master keys first, and what takes a second, passphrases, last. flaws: gets what is damaged."""
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
    """For messages."""
    return ", ".join(dict.fromkeys(each.what for each in tried))
