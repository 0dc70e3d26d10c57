"""The disks of a restore on their way, all at once.

Owns: that one pipeline has them all, as its threads are the whole budget, and that no new image gets its name before
all of them are whole. Must not know: how one disk is cut into work (targets/disk_restore.py), files beside the disks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..core import pipeline
from ..core.errors import Check, Report
from ..repository.image import Image
from ..targets import opening
from ..targets.disk_restore import Batch, DiskRestore, Done
from ..targets.places import Place
from . import loss
from .loss import Loss

AHEAD_PER_THREAD = 8 << 20  # bytes of guest data under way for each thread

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class How:
    """force: what is there may be overwritten; delta: write only what differs from it; salvage: go on where a frame is
    damaged."""

    threads: int
    force: bool
    delta: bool
    salvage: bool


class Copied(NamedTuple):
    """written_bytes: by disk; lost: what was damaged on the way."""

    written_bytes: dict[str, int]
    lost: list[Loss]


def copied(
    images: Mapping[str, Image], places: Mapping[str, Place], outputs: ExitStack, how: How, report: Report, check: Check
) -> Copied:
    """Write every disk to its place. What is new has its name when `outputs` ends without an exception, and is gone
    where it ends by one."""
    copies = []
    for disk, image in images.items():
        output = opening.open_target(places[disk], image.size, how.threads, how.force, check)
        copies.append(DiskRestore(image, outputs.enter_context(output), how.delta, how.salvage))
    lost = _copy_all(copies, how.threads, report, check)
    for copy in copies:
        copy.flush()
        report(event="progress", **copy.progress(finished=True))
    return Copied({copy.disk: copy.written for copy in copies}, lost)


def _copy_all(copies: Iterable[DiskRestore], threads: int, report: Report, check: Check) -> list[Loss]:
    finished = pipeline.ordered(
        _work,
        _in_turn([_items(copy) for copy in copies]),
        threads=threads,
        budget=AHEAD_PER_THREAD * threads,
        weight=lambda item: item[1].data,
        check=check,
    )
    lost = []
    for copy, done in finished:
        copy.add(done)
        lost += [loss.of_range(report, copy.disk, *each) for each in done.lost]
        report(event="progress", **copy.progress())
        check()
    return lost


def _work(item: tuple[DiskRestore, Batch]) -> tuple[DiskRestore, Done]:
    copy, batch = item
    return copy, copy.work(batch)


def _items(copy: DiskRestore) -> Iterator[tuple[DiskRestore, Batch]]:
    return ((copy, batch) for batch in copy.batches())


def _in_turn(iterators: list[Iterator[_Item]]) -> Iterator[_Item]:
    """One item of each in turn, until all are at their end."""
    while iterators:
        left = []
        for iterator in iterators:
            for item in iterator:
                yield item
                left.append(iterator)
                break
        iterators = left
