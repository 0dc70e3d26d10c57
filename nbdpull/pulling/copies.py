"""The disks of a run on their way into files together.

Owns: that they share one pipeline. Must not know: where they are read from, libvirt, why a disk starts from which base.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple, Optional

from ..core import errors, extents, pipeline
from ..core.errors import Check, Report
from ..format import writer
from ..format.directory import Directory
from ..format.sound_part import SoundPart
from ..hypervisor.guest_load import Cores
from ..repository import mending
from ..repository.image import DataRanges
from ..repository.new_point import Stored
from ..repository.series import Point, Series
from .base import Choice
from .disk_copy import DiskCopy, Item
from .level import LEVELS

AHEAD_PER_THREAD = 8 << 20  # bytes of data under way for each thread


class Healed(NamedTuple):
    """What the new point does without. files: damaged or missing ones of older points, by their paths; bytes: of the
    disk that they answered for, which were read again; mended: files that are what was stored again."""

    disk: str
    bytes: int
    files: list[str]
    mended: list[str]


def base_of(series: Series, choice: Choice, target: str, check: Check = lambda: None) -> Optional[Directory]:
    """What a disk is laid over, if the store has it."""
    below, bad = choice.below(target), choice.bad(target)
    if below is None:
        return None
    with _store_lost():
        if bad:
            return SoundPart(series.store, series.folder, below.disk(target), bad, check)
        return series.directory(below, target, partial=True)


def held(base: Optional[Directory], choice: Choice, target: str, check: Check) -> Optional[DataRanges]:
    """Where the image has data that an incremental changes; base: what base_of gives. None where nobody knows it."""
    return DataRanges(base, check) if base and choice.whole_parent(target) else None


def healed(bases: Iterable[Optional[Directory]]) -> list[Healed]:
    """Of what base_of gives for each disk."""
    return [Healed(each.disk, extents.total(each.again), sorted(each.bad), []) for each in bases if each and each.bad]


def mended(
    now: tuple[Series, Point], choice: Choice, found: Sequence[Healed], level: Optional[int], check: Check
) -> tuple[list[Healed], list[str]]:
    """(the same with the files that could be made again by a new point, which is there whatever hinders; warnings)."""
    series, point = now
    done, warnings = [], []
    for each in found:
        paths: list[str] = []
        try:
            below, where = choice.below(each.disk), mending.Now(series, point, each.disk)
            files = series.directory(below, each.disk, partial=True).files if below else []
            bad = [entry for entry in files if entry.path in each.files]
            paths, problem = mending.all_mended(where, bad, list(dict.fromkeys([level or 1, *LEVELS])), check)
        except errors.NbdpullError as error:
            problem = str(error)
        done.append(each._replace(mended=paths))
        if problem:
            warnings.append(f"damaged files of disk {each.disk} are not made again: {problem}")
        if paths:
            warnings.append(f"{', '.join(paths)}: made again; run nbdpull verify, which clears the record")
    return done, warnings


def copy_all(copies: Sequence[DiskCopy], threads: int, cores: Cores, check: Check, report: Report) -> None:
    """Read all of the disks, and write it."""

    def work(of_copy: tuple[DiskCopy, Item]) -> tuple[DiskCopy, list[writer.Encoded]]:
        copy, item = of_copy
        buffers = copy.read(item)
        with cores.computing():
            return copy, copy.encode(item, buffers)

    encoded = pipeline.ordered(
        work,
        ((copy, item) for copy in copies for item in copy.items()),
        threads=threads,
        budget=AHEAD_PER_THREAD * threads,
        weight=lambda of_copy: sum(extents.total(batch, extents.DATA) for batch in of_copy[1]),
        check=check,
    )
    # Closed at once where `add` fails: threads that continue to read open connections that nobody closes, and QEMU
    # hangs, together with its guest, if its server is stopped while a client is busy.
    with closing(encoded), _store_lost():
        for copy, results in encoded:
            for result in results:
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
