"""The bytes of one file of a store into another, proved on the way.

Owns: how much is read at once. Must not know: whose files they are, when a copy has its name.
"""

from __future__ import annotations

from typing import Callable

from ..format.manifest import FileEntry
from ..storage.base import Writer
from .series import Series

BLOCK = 1 << 20  # bytes that are read at once

Count = Callable[[int], None]  # of bytes


def copied(source: Series, entry: FileEntry, into: Writer, begin: Count, done: Count = lambda count: None) -> bool:
    """Write what the source has of a file; whether it is what was stored. begin, done: called before each part is read,
    and when it is written. Damaged."""
    with source.store.open_reader(f"{source.folder}/{entry.path}") as data:
        for offset in range(0, entry.size, BLOCK):
            length = min(BLOCK, entry.size - offset)
            begin(length)
            into.write(data.read(offset, length))
            done(length)
    return into.sha256() == entry.sha256
