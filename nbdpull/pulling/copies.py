"""The disks of a run on their way into files together, and what of a parent need not be stored again.

Owns: that they share one pipeline. Must not know: where they are read from, libvirt, why a disk starts from which base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Optional

from ..core import errors, extents, pipeline
from ..core.errors import Check, Report
from ..format import writer
from ..format.manifest import DiskEntry
from ..hypervisor.guest_load import Cores
from ..repository import known_frames
from ..repository.known_frames import KnownFrames
from ..repository.series import Point, Series
from .base import Decision
from .disk_copy import DiskCopy

AHEAD_PER_THREAD = 8 << 20  # bytes of data under way for each thread


def frames_of(
    series: Series, parent: Optional[Point], disk: str, check: Check, warnings: list[str]
) -> Optional[KnownFrames]:
    """What the parent holds of an incremental disk, where that is whole, and fits in memory."""
    if parent is None:
        return None
    try:
        return known_frames.of_point(series, parent, disk, check)
    except errors.Damaged as error:
        warnings.append(f"disk {disk} is stored without deduplication: {error}")
        return None


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
    with closing(encoded):
        for copy, result in encoded:
            copy.add(result)
            check()
            report(event="progress", **copy.progress())


def close_all(copies: Sequence[DiskCopy], decisions: Mapping[str, Decision], check: Check) -> list[DiskEntry]:
    """At once: what takes time here is the disk's, which does better with all of it to do."""
    return list(
        pipeline.ordered(
            lambda copy: copy.close(*decisions[copy.disk.target]),
            copies,
            threads=len(copies),
            budget=len(copies),
            weight=lambda _: 0,
            check=check,
        )
    )
