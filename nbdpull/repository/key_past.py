"""The key files that are brought back from the past of a bucket.

Anybody who can write to a bucket can delete the key files of a sealed store, and put one there that opens nothing, or
another key. Without an identity nothing shows that; with one, its master key does: it made the notes beside the key
files. A key that was removed on purpose must remain removed. Owns: which versions are brought back. Must not know: how
that is done (storage/), which points are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Optional

from ..core import errors, members, secrecy
from ..crypto import age, keys
from ..crypto.recipients import MASTER, Identity
from ..crypto.seal import Sealed
from ..format import layout
from ..storage.place import Versioned
from . import key_files, keyring
from .key_files import Note


def lost(now: Versioned, master: str, tried: Sequence[Identity]) -> dict[str, str]:
    """Return {path: id of the version} of the key files to bring back: none if an intact one is there, otherwise those
    that existed last.

    master: id of the store's master key; tried: identities; if there are any, only key files made with the master key
    count. KeyNeeded if no version of a key file opens for them.
    """
    true = _digests(now, master, tried) if tried else None

    def counts(path: str, data: bytes) -> bool:
        return key_files.may_be(path, data) and (true is None or _of(path, data) in true)

    if any(counts(key_files.path_of(name), data) for name, data in key_files.sound(now)):
        return {}
    return now.last(layout.KEYS, counts, age.MAX_FILE)


def _of(path: str, data: bytes) -> Optional[str]:
    """Return the digest of the key file that this is, or that this note is about; None if it is neither."""
    if path.endswith(key_files.WRAPPED):
        return key_files.digest(data)
    with suppress(errors.Damaged, errors.FormatTooNew, ValueError):
        return members.build(Note, layout.unseal(data, path)).sha256
    return None


def _digests(now: Versioned, master: str, tried: Sequence[Identity]) -> set[str]:
    """Return the digests of the key files, of any time, that an identity opens, or whose notes were made with the
    master key."""
    every: list[tuple[str, bytes]] = []

    def noted(path: str, data: bytes) -> bool:
        every.append((path, data))
        return False  # so that every version is seen

    secrecy.begin()
    now.last(layout.KEYS, noted, age.MAX_FILE)
    opened = {secret for each in tried if each.kind == MASTER and _is(secret := bytes(each.secret), master)}
    found: set[str] = set()
    for path, data in every:
        if path.endswith(key_files.WRAPPED):
            with suppress(errors.Damaged):
                wrapped = age.unwrap(data, path, tried)
                if wrapped and _is(wrapped.secret, master):
                    opened.add(wrapped.secret)
                    found.add(key_files.digest(data))
    if not opened:
        raise errors.KeyNeeded(f"{now.root}: no version of a key file opens for {keyring.what(tried)}")
    mac = Sealed(keys.of_master(opened.pop())).mac
    notes = (_of(path, data) for path, data in every if path.endswith(".json") and layout.has_mac(data, mac))
    return found | {each for each in notes if each}


def _is(secret: bytes, master: str) -> bool:
    return len(secret) == keys.MASTER_SIZE and keys.of_master(secret).id == master
