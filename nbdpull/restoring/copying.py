"""The copy of all disks of a restore, at the same time.

Owns: that one pipeline copies all disks, as its threads are the whole budget, and that no new image gets its name
before all disks are complete. Must not know: how the work on one disk is split (targets/disk_restore.py), files beside
the disks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..core import pipeline, sizes
from ..core.errors import Check, Report
from ..repository.image import Image
from ..targets import opening
from ..targets.disk_restore import Batch, DiskRestore, Done
from ..targets.places import Place
from . import loss
from .loss import Loss

log = logging.getLogger("nbdpull.restore")
AHEAD_PER_THREAD = 8 << 20  # bytes of guest data in progress for each thread

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class How:
    """force: existing data may be overwritten; delta: write only what differs from it; salvage: continue if a frame is
    damaged."""

    threads: int
    force: bool
    delta: bool
    salvage: bool


class Copied(NamedTuple):
    """written_bytes: by disk; lost: ranges that could not be restored because of damage."""

    written_bytes: dict[str, int]
    lost: list[Loss]


def copied(
    images: Mapping[str, Image], places: Mapping[str, Place], outputs: ExitStack, how: How, report: Report, check: Check
) -> Copied:
    """Write every disk to its place. New images get their names when `outputs` ends without an exception; if it ends
    with one, they are removed."""
    copies = []
    for disk, image in images.items():
        place = places[disk]
        log.info("%s, %s: to the %s %s", disk, sizes.shown(image.size), place.kind, place.path)
        output = opening.open_target(place, image.size, how.threads, how.force, check)
        copies.append(DiskRestore(image, outputs.enter_context(output), how.delta, how.salvage))
    lost = _copy_all(copies, how.threads, report, check)
    for copy in copies:
        copy.flush()
        log.info("%s: done: %s written, %.1f s", copy.disk, sizes.shown(copy.written), copy.seconds)
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
    """Yield one item of each iterator in turn, until all are exhausted."""
    while iterators:
        left = []
        for iterator in iterators:
            for item in iterator:
                yield item
                left.append(iterator)
                break
        iterators = left
