"""A store as a verb needs it: opened, and unlocked where it is sealed and there are identities.

Who has an identity expects a sealed store. One that is not may be another one, or a forged one in its place, which
nothing in it tells: so it is refused. Owns: that, and when identities are looked for. Must not know: what opens a store
(repository/keyring.py), what is done with it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Optional

from ..core import errors
from ..crypto import identity_files
from ..pulling import known_stores
from ..repository import immutable, keyring, marker
from ..storage import place
from ..storage.base import Store


def opened(root: str, named: Sequence[str], cache: Optional[place.Warn] = None) -> Store:
    """The Store at a place. One that is sealed stays locked where there is no identity: who needs the key asks for it.
    named: files of identities; cache: see place.opened. KeyNeeded where they do not open it; StoreError where it is not
    sealed, and there are some; UsageError, Damaged, MissingSoftware."""
    store = marker.open_store(root, cache)
    unlock(store, named)
    return store


def unlock(store: Store, named: Sequence[str]) -> None:
    """The same of a Store that is open."""
    _require_sealed(store, named)
    tried = identity_files.given(named)
    if tried:
        marker.unlock(store, keyring.keys_of(store, tried))


def _require_sealed(store: Store, named: Sequence[str]) -> None:
    """Where there is an identity."""
    meant = [name for _, name in identity_files.meant(named)]
    if meant and store.seal.id is None:
        raise errors.StoreError(
            f"{store.root} is not sealed, and there is an identity ({meant[0]}): if it was sealed, somebody replaced "
            "its marker, and perhaps its points; for a store that is not, name no identity"
        )


def for_pull(root: str, group: Optional[str], named: Sequence[str], patience: Optional[float] = None) -> Store:
    """The Store that a pull is to write into, made where there is none, and what is made in it is protected as its
    policy tells. KeyNeeded where it is sealed and stays locked; Foreign where this host knows it as one with another
    key. patience: see storage/place.py. Further errors: see `opened`."""
    meant = [name for _, name in identity_files.meant(named)]
    is_known = known_stores.has(here := place.opened(root))
    is_new = (is_known or meant) and marker.is_new(root)
    if is_known and is_new:
        raise known_stores.gone(here)
    if meant and is_new:
        raise errors.UsageError(
            f"{root} is no store yet, and a pull makes none that is sealed: first run nbdpull init {shlex.quote(root)} "
            f"--recipient …, or name no identity ({meant[0]})"
        )
    store = marker.open_or_create(root, group, patience=patience)
    known_stores.require(store)
    unlock(store, named)
    store.seal.require()
    known_stores.note(store)
    immutable.begin(store)
    return store


def master(root: str, named: Sequence[str]) -> Optional[bytes]:
    """The master key of a sealed store, for a process of ours that serves it; None where there is no identity. Errors
    as of `opened`."""
    if not identity_files.meant(named):
        return None
    store = marker.open_store(root)
    _require_sealed(store, named)
    return keyring.open_master(store, identity_files.given(named)).master
