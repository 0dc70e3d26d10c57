"""The part of a store that a verification checks: a sample, a shard, as much as the time allows.

Must not know: how anything is checked, or for what.
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

_ALL = 1 << 32  # the number of values of 32 bits


@dataclass(frozen=True)
class Part:
    """The files and frames to check.

    sample: the share of them, chosen at random in each run; shard: (i, n), the i-th of n parts that together are
    everything, the same in each run; max_duration: seconds; paths: only these files, None: all files.

    salt: makes each sample a different one. Within a run every point that refers to a file or a frame gets the same
    answer: otherwise what many points share would almost certainly be checked.
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
        """The sample and the shard, as far as set, for a document; {} if the part is everything."""
        values = {"sample": self.sample, "shard": self.shard}
        return {} if self.is_everything else {name: value for name, value in values.items() if value is not None}

    def file(self, path: str) -> bool:
        """Return whether to check the digest of a file. Every sample and every shard includes all files but chunk
        files."""
        if self.paths is not None:
            return path in self.paths
        if not layout.CHUNK_PATH.match(path):
            return True
        hit = self.shard is None or zlib.crc32(path.encode()) % self.shard[1] == self.shard[0] - 1
        return hit and (self.sample is None or zlib.crc32(path.encode(), self.salt) < self.sample * _ALL)

    def frames(self, records: Records, files: Sequence[FileEntry]) -> Mask:
        """Return which of some records are in the part: an array of booleans. files: the files that the records' chunk
        numbers index."""
        if self.paths is not None:
            return numpy.isin(records["chunk"], [n for n, entry in enumerate(files) if entry.path in self.paths])
        names = numpy.frombuffer(records["digest"].tobytes(), "<u4")[::8]  # as good as random, and always the same
        mask = numpy.ones(len(records), bool)
        if self.shard is not None:
            mask = names % self.shard[1] == self.shard[0] - 1
        return mask if self.sample is None else mask & (names + numpy.uint32(self.salt) < self.sample * _ALL)

    def numbers(self, numbers: Indexes) -> Indexes:
        """Return those numbers of an array that are in the part."""
        if self.shard is not None:
            numbers = numbers[numbers % self.shard[1] == self.shard[0] - 1]
        return numbers if self.sample is None else numbers[numpy.random.random(len(numbers)) < self.sample]
