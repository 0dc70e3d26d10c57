"""What is served over HTTP: a volume, which is a disk of an open backup or of a point.

Owns: that shape. Must not know: HTTP, where a volume's bytes come from.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Protocol

DATA, ZERO = "data", "zero"

Extent = tuple[int, int, str]  # offset, length, and a kind: DATA or ZERO


class Disk(Protocol):
    """A disk to serve; nbdpull.Disk is one. Several threads may call all of it at once. It raises NbdpullError.

    name: such as vda; size: bytes; mode: "full" or "incremental".
    """

    name: str
    size: int
    mode: str

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield extents, ascending and disjoint, from `start` on.

        What is in none is clean; full mode has no such range.
        """


class Live(Disk, Protocol):
    """A disk whose bytes come from a server."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable buffer."""

    def filling(self, offset: int, buffer: memoryview) -> Generator[bool, None, None]:
        """Do what `read_into` does in two steps: request the bytes, and pause; when resumed, wait for them.

        Yields whether they were requested: if not, both happen when it is resumed. Exhaust or close it before you use
        the buffer again.
        """


class Volume(Disk, Protocol):
    """A disk that knows how its ranges are best read."""

    def pieces(self, begin: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes of a range: see data.py."""
