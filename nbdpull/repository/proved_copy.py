"""The copy of one file of a store into another, verified while it is copied.

Owns: how much is read at once. Must not know: what the files belong to, when a copy gets its name.
"""

from __future__ import annotations

from typing import Callable

from ..format.manifest import FileEntry
from ..storage.base import Writer
from .series import Series

BLOCK = 1 << 20  # bytes that are read at once

Count = Callable[[int], None]  # of bytes


def copied(source: Series, entry: FileEntry, into: Writer, begin: Count, done: Count = lambda count: None) -> bool:
    """Copy a file from the source; return whether the copy has the stored SHA-256. begin, done: called with the bytes
    of each part before it is read, and after it is written. Damaged."""
    with source.store.open_reader(f"{source.folder}/{entry.path}") as data:
        for offset in range(0, entry.size, BLOCK):
            length = min(BLOCK, entry.size - offset)
            begin(length)
            into.write(data.read(offset, length))
            done(length)
    return into.sha256() == entry.sha256
