"""A sample of a disk: its first data, read and compressed in one thread as in a pull, to measure the speed.

Must not know: what is estimated from it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..core import extents
from ..format import layout, writer
from ..nbd.source import Source

if TYPE_CHECKING:
    from ..core.extents import Extents

MAX_BYTES, MAX_SECONDS = 32 << 20, 1.0  # of each disk


class Sample:
    """A sample of the disk that a Source reads."""

    def __init__(self, source: Source) -> None:
        self._source, self._encoder = source, writer.Encoder(1)
        self.seconds, self._raw, self._stored = 0.0, 0, 0

    @property
    def seconds_a_byte(self) -> float:
        return self.seconds / self._raw if self._raw else 0.0

    @property
    def ratio(self) -> float:
        """Stored bytes per byte of data."""
        return self._stored / self._raw if self._raw else 1.0

    def add(self, batch: Extents) -> None:
        """Add data of these extents, until the sample is large enough."""
        data = extents.cut(batch[batch["kind"] == extents.DATA], layout.MAX_FRAME)
        for piece in extents.batches(data, 1 << 20, 256):
            if self._raw >= MAX_BYTES or self.seconds >= MAX_SECONDS:
                return
            started = time.monotonic()
            with self._source.reading() as connection:
                buffers = connection.read_batch(list(zip(piece["offset"].tolist(), piece["length"].tolist())))
                self._stored += self._encoder.encode(piece, buffers).size
            self._raw += extents.total(piece)
            self.seconds += time.monotonic() - started
