"""Key files and their notes that were damaged, brought back from another store with the same master key.

A key file is the right one if it has the SHA-256 that the note beside it names, and a note if it names that of the key
file beside it: so it does not matter whose store they come from, and no key is needed. A missing file was removed, for
all that is known, and stays away.

Owns: which of them are damaged, and which file replaces them. Must not know: which of them open (keyring.py), who calls
for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress

from ..core import errors
from ..crypto import age
from ..format import layout
from ..storage.base import Store
from . import drafts, immutable, key_files

log = logging.getLogger("nbdpull.store")


def damaged(store: Store) -> list[str]:
    """Return the paths of the damaged files, key files before notes; none if the store is not sealed. A key file
    without a note counts as intact if it is a valid age file. StoreError."""
    if store.seal.id is None:
        return []
    with store.looking(layout.KEYS):
        names, files = key_files.names(store), store.files(layout.KEYS)
        notes = [name for name in names if f"{name}.json" in files and key_files.described(store, name) is None]
        bad = [name for name in names if not _is_intact(store, name)]
    return [*map(key_files.path_of, bad), *map(key_files.note_path, notes)]


def _is_intact(store: Store, name: str) -> bool:
    about = key_files.described(store, name)
    try:
        data, path = key_files.read(store, name)
        age.takes_passphrase(data, path)
    except errors.Damaged:
        return False
    return about is None or about.sha256 == key_files.digest(data)


def heal(store: Store, copy: Store, paths: Iterable[str]) -> list[str]:
    """Replace the damaged files of which the copy has the right ones; return their paths. Busy, OutputError."""
    healed, paths = list[str](), [*paths]
    if copy.seal.id != store.seal.id:
        return healed
    immutable.begin(store)
    with store.locked("", "heal its key files"):
        drafts.remove_of_store(store, paths)  # of a healing that was killed
        for path in paths:
            if _has_right(copy, store, path):
                data = copy.read(path, age.MAX_FILE)
                with store.replacing(path) as file:
                    file.write(data)
                healed.append(path)
                log.info("%s healed", store.path(path))
    return healed


def _has_right(copy: Store, store: Store, path: str) -> bool:
    """Return whether the copy has the right key file or note."""
    name = path.rpartition("/")[2].rpartition(".")[0]
    key_holder, note_holder = (copy, store) if path == key_files.path_of(name) else (store, copy)
    with suppress(errors.Damaged):
        data, _ = key_files.read(key_holder, name)
        about = key_files.described(note_holder, name)
        return about is not None and about.sha256 == key_files.digest(data)
    return False
