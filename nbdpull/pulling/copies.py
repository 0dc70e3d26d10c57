"""The disks of a run on their way into files together.

Owns: that they share one pipeline. Must not know: where they are read from, libvirt, why a disk starts from which base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Optional

from ..core import errors, extents, pipeline
from ..core.errors import Check, Report
from ..format import writer
from ..format.directory import Directory
from ..hypervisor.guest_load import Cores
from ..repository.image import DataRanges
from ..repository.new_point import Stored
from ..repository.series import Series
from .base import Choice
from .disk_copy import DiskCopy

AHEAD_PER_THREAD = 8 << 20  # bytes of data under way for each thread


def base_of(series: Series, choice: Choice, target: str) -> Optional[Directory]:
    """What a disk is laid over, if the store has it."""
    below = choice.below(target)
    with _store_lost():
        return series.directory(below, target, partial=True) if below else None


def held(base: Optional[Directory], choice: Choice, target: str, check: Check) -> Optional[DataRanges]:
    """Where the image has data that an incremental changes; base: what base_of gives. None where nobody knows it."""
    return DataRanges(base, check) if base and choice.whole_parent(target) else None


def copy_all(copies: Sequence[DiskCopy], threads: int, cores: Cores, check: Check, report: Report) -> None:
    """Read all of the disks, and write it."""

    def work(item: tuple[DiskCopy, extents.Extents]) -> tuple[DiskCopy, writer.Encoded]:
        copy, batch = item
        buffers = copy.read(batch)
        with cores.computing():
            return copy, copy.encode(batch, buffers)

    encoded = pipeline.ordered(
        work,
        ((copy, batch) for copy in copies for batch in copy.batches()),
        threads=threads,
        budget=AHEAD_PER_THREAD * threads,
        weight=lambda item: extents.total(item[1], extents.DATA),
        check=check,
    )
    # Closed at once where `add` fails: threads that continue to read open connections that nobody closes, and QEMU
    # hangs, together with its guest, if its server is stopped while a client is busy.
    with closing(encoded), _store_lost():
        for copy, result in encoded:
            copy.add(result)
            check()
            report(event="progress", **copy.progress())


@contextmanager
def _store_lost() -> Iterator[None]:
    """What a point below has was proved before: what cannot be read of it now is where the new one is written to."""
    try:
        yield
    except errors.Damaged as error:
        raise errors.OutputError(f"{error} (it was there when the pull began)") from error


def close_all(copies: Sequence[DiskCopy], check: Check) -> list[Stored]:
    """At once: what takes time here is the disk's, which does better with all of it to do."""
    closed = pipeline.ordered(
        DiskCopy.close, copies, threads=len(copies), budget=len(copies), weight=lambda _: 0, check=check
    )
    with _store_lost():
        return list(closed)
