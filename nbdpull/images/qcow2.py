"""A new qcow2 image, written without QEMU: half the CPU time of the way through qemu-nbd, and no program needed.

Owns: the layout of qcow2 version 3, of which only this is written: one flat file, 64 KiB clusters, 16 bit refcounts, no
backing file, no snapshot, no bitmap. Layout and names are those of QEMU's docs/interop/qcow2.txt. Must not know: where
the file is, points, frames.
"""

from __future__ import annotations

import struct
import threading

import numpy

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
TABLE = CLUSTER // 8  # entries of an L2 or refcount table cluster
REFCOUNTS = CLUSTER // 2  # 16 bit each, of a refcount block
COPIED = 1 << 63  # "the refcount of this cluster is 1"

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


class Layout:
    """Where the clusters of a new image of `size` bytes go. Several threads may use it at once.

    The file starts with the header and the L1 table; then come data clusters and L2 tables as they are needed, and last
    what `finish` returns. What is never written reads as zero.
    """

    def __init__(self, size: int) -> None:
        self._size = -(-size // 512) * 512  # QEMU counts in sectors
        self._lock = threading.Lock()
        self._l1 = numpy.zeros(-(-size // (CLUSTER * TABLE)), "u8")
        self._next = CLUSTER + _padded(self._l1.nbytes)  # bytes, current end of the file

    def place(self, first: int, count: int) -> tuple[int, int, bytes]:
        """Place `count` consecutive guest clusters from number `first` on, all in one L2 table, none placed before.

        Return (offset in the file, offset of their L2 entries, those entries).
        """
        table, entry = divmod(first, TABLE)
        with self._lock:
            if not self._l1[table]:
                self._l1[table] = self._take(1)
            start, l2 = self._take(count), int(self._l1[table])
        entries = numpy.uint64(start | COPIED) + numpy.arange(count, dtype="u8") * numpy.uint64(CLUSTER)
        return start, l2 + 8 * entry, entries.astype(">u8").tobytes()

    def _take(self, count: int) -> int:
        start = self._next
        self._next += count * CLUSTER
        return start

    def finish(self) -> list[tuple[int, bytes]]:
        """Return [(offset in the file, bytes), …] that complete the image."""
        blocks, table_clusters = self._refcount_sizes(self._next // CLUSTER)
        table = self._next
        first = table + table_clusters * CLUSTER
        clusters = first // CLUSTER + blocks
        counts = numpy.zeros(blocks * REFCOUNTS, ">u2")
        counts[:clusters] = 1
        where = first + numpy.arange(blocks, dtype="u8") * numpy.uint64(CLUSTER)
        l1 = numpy.where(self._l1 > 0, self._l1 | numpy.uint64(COPIED), numpy.uint64(0))
        return [
            (first, counts.tobytes()),
            (table, where.astype(">u8").tobytes().ljust(table_clusters * CLUSTER, b"\0")),
            (CLUSTER, l1.astype(">u8").tobytes()),
            (0, self._header(table, table_clusters)),
        ]

    @staticmethod
    def _refcount_sizes(used: int) -> tuple[int, int]:
        """Return the number of clusters of refcount blocks, and of their table; both have refcounts themselves."""
        blocks = table = 0
        while True:
            needed = -(-(used + blocks + table) // REFCOUNTS)
            if needed <= blocks:
                return blocks, table
            blocks, table = needed, -(-needed // TABLE)

    def _header(self, refcount_table: int, refcount_table_clusters: int) -> bytes:
        fixed = _HEADER.pack(
            b"QFI\xfb", 3, 0, 0, CLUSTER_BITS, self._size, 0, len(self._l1), CLUSTER, refcount_table,
            refcount_table_clusters, 0, 0, 0, 0, 0, 4, _HEADER.size,
        )  # fmt: skip
        return fixed + bytes(8)  # no header extension


def clusters(offset: int, length: int) -> tuple[int, int]:
    """Return (number of the first, count) of the clusters that a range touches."""
    first = offset // CLUSTER
    return first, (offset + length - 1) // CLUSTER + 1 - first


def _padded(size: int) -> int:
    return -(-size // CLUSTER) * CLUSTER
