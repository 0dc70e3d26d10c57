"""A qcow2 image in a new file as a target, without QEMU.

Owns: which clusters a write fills, and when the tables that refer to them are written. Must not know: the layout of
qcow2 (images/qcow2.py), where the file will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..images import qcow2
from .file import File

if TYPE_CHECKING:
    from ..core.extents import Part


class NewQcow2:
    """A qcow2 image in a new file. Several threads use it at once; each block of 1 MiB is written once."""

    sequential, blank = False, True

    def __init__(self, descriptor: int, path: str, size: int) -> None:
        self._file = File(descriptor, path, size)
        self._layout = qcow2.Layout(size)
        self.size = size

    def write(self, parts: Sequence[Part]) -> int:
        """Write [(offset, buffer), …], ascending; return the number of bytes."""
        for first, count, members in _cluster_runs(parts):
            start, table, entries = self._layout.place(first, count)
            shift = start - first * qcow2.CLUSTER
            self._file.write([(offset + shift, buffer) for offset, buffer in members])
            self._file.write([(table, entries)])
        return sum(len(buffer) for _, buffer in parts)

    def flush(self) -> None:
        for offset, data in self._layout.finish():
            self._file.write([(offset, data)])
        # the last cluster may be written only in part; new_image syncs the file

    def __enter__(self) -> NewQcow2:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)


def _cluster_runs(parts: Iterable[Part]) -> Iterator[tuple[int, int, list[Part]]]:
    """Group [(offset, buffer), …] by runs of clusters that do not cross from one L2 table into another."""
    first = count = 0
    members: list[Part] = []
    for offset, buffer in parts:
        at, more = qcow2.clusters(offset, len(buffer))
        if members and (at > first + count or at // qcow2.TABLE != first // qcow2.TABLE):
            yield first, count, members
            members = []
        first = first if members else at
        count = at + more - first
        members.append((offset, buffer))
    if members:
        yield first, count, members
