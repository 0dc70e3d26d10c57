"""What is served over HTTP: a volume, be it a disk of an open backup or of a point.

Owns: that shape. Must not know: HTTP, where a volume's bytes come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

DATA, ZERO = "data", "zero"

Extent = tuple[int, int, str]  # offset, length, and a kind: DATA or ZERO


class Disk(Protocol):
    """name: such as vda; size: bytes; mode: "full" or "incremental". nbdpull.Disk is one. All of it may be called by
    several threads at once, and raise NbdpullError."""

    name: str
    size: int
    mode: str

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """Ascending and disjoint, from `start` on. What is in none is clean: there is none in full mode."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable buffer."""


class Volume(Disk, Protocol):
    """readers: threads that are to read ahead of a client, 0 where that gains nothing."""

    readers: int
