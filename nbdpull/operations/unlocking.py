"""A store as a verb needs it: opened, and unlocked if it is sealed and there are identities.

A user with an identity expects a sealed store. One that is not sealed may be the wrong store, or a forged one in its
place, and nothing in it shows that: so it is refused. Owns: this refusal, and when to look for identities. Must not
know: what opens a store (see repository/keyring.py), what is done with it.
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
    """Return the Store at a place. Without an identity, a sealed one remains locked, and its key is required later.

    named: files of identities; cache: see place.opened. KeyNeeded if the identities do not open it; StoreError if there
    are identities and the store is not sealed; UsageError, Damaged, MissingSoftware.
    """
    store = marker.open_store(root, cache)
    unlock(store, named)
    return store


def unlock(store: Store, named: Sequence[str]) -> None:
    """Unlock an open Store as `opened` does, with the same errors."""
    require_sealed(store, named)
    tried = identity_files.given(named)
    if tried:
        marker.unlock(store, keyring.keys_of(store, tried))


def require_sealed(store: Store, named: Sequence[str]) -> None:
    """Raise StoreError if there is an identity, but the store is not sealed."""
    meant = [name for _, name in identity_files.meant(named)]
    if meant and store.seal.id is None:
        raise errors.StoreError(
            f"{store.root} is not sealed, but there is an identity ({meant[0]}): if it was sealed, somebody replaced "
            "its marker, and perhaps its points; for a store that is not sealed, name no identity"
        )


def for_pull(
    root: str, group: Optional[str], named: Sequence[str], warn: place.Warn, patience: Optional[float] = None
) -> Store:
    """Return the Store that a pull will write into, created if there is none; its policy protects what is made in it.

    KeyNeeded if it is sealed and remains locked; Foreign if this host knows it with another key. warn: called with
    warnings; patience: see storage/place.py. Further errors: see `opened`.
    """
    meant = [name for _, name in identity_files.meant(named)]
    is_known = known_stores.has(here := place.opened(root))
    is_new = (is_known or meant) and marker.is_new(root)
    if is_known and is_new:
        raise known_stores.gone(here)
    if meant and is_new:
        raise errors.UsageError(
            f"{root} is not a store yet, and a pull does not create a sealed one: first run nbdpull init "
            f"{shlex.quote(root)} --recipient …, or name no identity ({meant[0]})"
        )
    store = marker.open_or_create(root, group, patience=patience)
    known_stores.require(store)
    unlock(store, named)
    store.seal.require()
    known_stores.note(store, warn)
    immutable.begin(store)
    return store


def master(root: str, named: Sequence[str]) -> Optional[bytes]:
    """Return the master key of a sealed store, for a process of ours that serves it; None if there is no identity.

    Errors: see `opened`.
    """
    if not identity_files.meant(named):
        return None
    store = marker.open_store(root)
    require_sealed(store, named)
    return keyring.open_master(store, identity_files.given(named)).master
