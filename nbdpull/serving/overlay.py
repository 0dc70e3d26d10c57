"""What clients write to a read-only image: kept apart from it, and discarded at the end.

Owns: which blocks were written, and the nameless file that contains them, which disappears however this process ends.
Must not know: who writes, what the image consists of.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional, Union

import numpy

from ..core import extents, temporary
from ..repository.lookup import RandomImage
from ..targets.file import File

if TYPE_CHECKING:
    from ..core.extents import Buffer, Extents

BLOCK = 1 << 16  # bytes copied from the image when the first of them is written


class Overlay:
    """`size`, `disk`, `read_into` and `extents` as of the image below it; and `write`, `zero`.

    Several threads may use it at once.
    """

    def __init__(self, below: RandomImage) -> None:
        self._below = below
        self.disk, self.size = below.disk, below.size
        with temporary.file() as file:
            self._file = File(os.dup(file.fileno()), temporary.place(), self.size)
        self._written = numpy.zeros(-(-self.size // BLOCK), bool)
        self._lock = threading.Lock()  # of writers; a block is marked only when the file has all of it

    def read_into(self, offset: int, buffer: Union[bytearray, memoryview]) -> None:
        """Fill a writable buffer from `offset` on."""
        view = memoryview(buffer)
        for start, stop, written in self._runs(offset, offset + len(view)):
            part = view[start - offset : stop - offset]
            if written:
                part[:] = self._file.read(start, stop - start)
            else:
                self._below.read_into(start, part)

    def _runs(self, offset: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, stop, whether it was written) for the uniform parts of a range, ascending."""
        blocks = self._written[offset // BLOCK : -(-stop // BLOCK)]
        changes = numpy.flatnonzero(blocks[1:] != blocks[:-1]) + 1
        edges = [offset, *((offset // BLOCK + changes) * BLOCK).tolist(), stop]
        kinds = blocks[[0, *changes]].tolist() if len(blocks) else []
        yield from zip(edges, edges[1:], kinds)

    def write(self, offset: int, data: Buffer) -> None:
        """Write bytes from `offset` on."""
        with self._lock:
            self._complete(offset, offset + len(data))
            self._file.write([(offset, data)])
            self._mark(offset, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zero."""
        with self._lock:
            self._complete(offset, offset + length)
            self._file.zero(offset, length)
            self._mark(offset, offset + length)

    def _complete(self, offset: int, stop: int) -> None:
        """Copy from the image the rest of the blocks at the ends of a range, unless they were written before."""
        for number in {offset // BLOCK, (stop - 1) // BLOCK}:
            start, end = number * BLOCK, min((number + 1) * BLOCK, self.size)
            if not self._written[number] and (offset > start or stop < end):
                buffer = bytearray(end - start)
                self._below.read_into(start, buffer)
                self._file.write([(start, buffer)])

    def _mark(self, offset: int, stop: int) -> None:
        self._written[offset // BLOCK : -(-stop // BLOCK)] = True

    def extents(self, offset: int, length: int, limit: Optional[int] = None) -> Extents:
        """Return extents that cover [offset, offset + length), with `limit` possibly only its start."""
        found = []
        for start, stop, written in self._runs(offset, offset + length):
            if written:
                found.append(extents.of([(start, stop - start, extents.DATA)]))
                continue
            found.append(self._below.extents(start, stop - start, limit))
            if int(extents.ends(found[-1][-1:])[0]) < stop:  # it reported only the start
                break
        return extents.merged(numpy.concatenate(found)) if found else extents.of([])
