"""The copy of all disks of a run into files.

Owns: that the disks share one pipeline. Must not know: where they are read from, libvirt, why a disk starts from which
base.
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
from ..repository import immutable, mending
from ..repository.image import DataRanges
from ..repository.new_point import Stored
from ..repository.series import Point, Series
from .base import Choice
from .disk_copy import DiskCopy, Item
from .level import LEVELS

AHEAD_PER_THREAD = 8 << 20  # bytes of data in progress for each thread


class Healed(NamedTuple):
    """The damage that the new point healed on a disk.

    bytes: bytes of the disk that were read again; files: paths of the damaged or missing files of older points that
    held them; mended: paths of the files that were made again with their original content.
    """

    disk: str
    bytes: int
    files: list[str]
    mended: list[str]


def base_of(series: Series, choice: Choice, target: str, check: Check) -> Optional[Directory]:
    """Return the Directory over which a disk is laid, without its damaged files; None if the store has none."""
    below, bad = choice.below(target), choice.bad(target)
    if below is None:
        return None
    with _store_lost():
        if bad:
            return SoundPart(series.store, series.folder, below.disk(target), bad, check)
        return series.directory(below, target, partial=True)


def held(base: Optional[Directory], choice: Choice, target: str, check: Check) -> Optional[DataRanges]:
    """Return where the image that an incremental changes has data, None if unknown. base: from base_of."""
    return DataRanges(base, check) if base and choice.whole_parent(target) else None


def healed(bases: Iterable[Optional[Directory]]) -> list[Healed]:
    """Return a Healed for each disk with damaged files. bases: from base_of."""
    return [Healed(each.disk, extents.total(each.again), sorted(each.bad), []) for each in bases if each and each.bad]


def mended(
    now: tuple[Series, Point], choice: Choice, found: Sequence[Healed], level: Optional[int], check: Check
) -> tuple[list[Healed], list[str]]:
    """Make damaged files of older points again from the new point, if possible; return (`found` with the mended files,
    warnings). No problem here makes the new point fail: it is committed already."""
    series, point = now
    done, warnings = [], []
    for each in found:
        paths: list[str] = []
        try:
            below, where = choice.below(each.disk), mending.Now(series, point, each.disk)
            files = series.directory(below, each.disk, partial=True).files if below else []
            bad = [entry for entry in files if entry.path in each.files]
            paths, problem = mending.all_mended(where, bad, list(dict.fromkeys([level or 1, *LEVELS])), check)
            for path in paths:
                warnings += immutable.keep_promises(series, path, filter(None, [below]))
        except errors.NbdpullError as error:
            problem = str(error)
        done.append(each._replace(mended=paths))
        if problem:
            warnings.append(f"damaged files of disk {each.disk} are not made again: {problem}")
        if paths:
            warnings.append(f"{', '.join(paths)}: made again; run nbdpull verify, which clears the record")
    return done, warnings


def copy_all(copies: Sequence[DiskCopy], threads: int, cores: Cores, check: Check, report: Report) -> None:
    """Read and write all disks."""

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
    # Closed at once if `add` fails: threads that continue to read would open connections that nobody closes, and QEMU
    # hangs, together with its guest, if its server is stopped while a client is busy.
    with closing(encoded), _store_lost():
        for copy, results in encoded:
            for result in results:
                copy.add(result)
            check()
            report(event="progress", **copy.progress())


@contextmanager
def _store_lost() -> Iterator[None]:
    """Turn Damaged into OutputError: the older points were checked before, so data that cannot be read now is a problem
    of the store, to which the new point is written, too."""
    try:
        yield
    except errors.Damaged as error:
        raise errors.OutputError(f"{error} (it was there when the pull began)") from error


def close_all(copies: Sequence[DiskCopy], check: Check = lambda: None) -> list[Stored]:
    """Close all copies at the same time: they mostly wait for the storage, which is faster if it gets all of the work
    at once."""
    closed = pipeline.ordered(
        DiskCopy.close, copies, threads=len(copies), budget=len(copies), weight=lambda _: 0, check=check
    )
    with _store_lost():
        return list(closed)


def logged(copies: Sequence[DiskCopy], stored: list[Stored]) -> list[Stored]:
    """Log the end of each copy; return what `close_all` returned."""
    for copy, each in zip(copies, stored):
        copy.log_end(each)
    return stored
