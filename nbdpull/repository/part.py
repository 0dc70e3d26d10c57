"""Which part of a store a verification looks at: a sample, a shard, as much as the time allows.

Must not know: what is looked at, or for what.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

import numpy

from ..format import layout
from ..format.manifest import FileEntry

if TYPE_CHECKING:
    from ..core.extents import Indexes, Mask
    from ..format.layout import Records

_ALL = 1 << 32  # as many values has a name of 32 bits


@dataclass(frozen=True)
class Part:
    """Which files and frames to look at. sample: share of them, by chance anew in each run; shard: (i, n), the
    i-th of n parts that together are everything, the same in each run; max_duration: seconds; paths: these files alone,
    None: whatever file.

    salt: what makes each sample another one. Within a run every point that refers to a file or a frame gets the same
    answer: else what many points share would be looked at almost certainly.
    """

    sample: Optional[float] = None
    shard: Optional[tuple[int, int]] = None
    max_duration: Optional[float] = None
    paths: Optional[frozenset[str]] = None
    salt: int = field(default_factory=lambda: random.getrandbits(32))

    @property
    def is_everything(self) -> bool:
        return self.paths is None and self.sample in (None, 1) and (self.shard is None or self.shard[1] == 1)

    @property
    def members(self) -> dict[str, Any]:
        """What is told of it where it is not everything: its sample or shard."""
        told = {"sample": self.sample, "shard": self.shard}
        return {} if self.is_everything else {name: value for name, value in told.items() if value is not None}

    def file(self, path: str) -> bool:
        """Whether the digest of that file is looked at. All but chunk files are of each sample and shard."""
        if self.paths is not None:
            return path in self.paths
        if not layout.CHUNK_PATH.match(path):
            return True
        hit = self.shard is None or zlib.crc32(path.encode()) % self.shard[1] == self.shard[0] - 1
        return hit and (self.sample is None or zlib.crc32(path.encode(), self.salt) < self.sample * _ALL)

    def frames(self, records: Records, files: Sequence[FileEntry]) -> Mask:
        """Which of some records are of the part: an array of booleans. files: what their chunk is a number of."""
        if self.paths is not None:
            return numpy.isin(records["chunk"], [n for n, entry in enumerate(files) if entry.path in self.paths])
        names = numpy.frombuffer(records["digest"].tobytes(), "<u4")[::8]  # as good as random, and the same always
        mask = numpy.ones(len(records), bool)
        if self.shard is not None:
            mask = names % self.shard[1] == self.shard[0] - 1
        return mask if self.sample is None else mask & (names + numpy.uint32(self.salt) < self.sample * _ALL)

    def numbers(self, numbers: Indexes) -> Indexes:
        """Of an array of numbers, those that are of the part."""
        if self.shard is not None:
            numbers = numbers[numbers % self.shard[1] == self.shard[0] - 1]
        return numbers if self.sample is None else numbers[numpy.random.random(len(numbers)) < self.sample]
