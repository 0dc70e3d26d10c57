"""Where restored disks come from: a point with all that its disks refer to, read only when it is proved.

Owns: which files of a store a disk is made from, the proof that each is what was stored, or that a frame will tell, and
which disks of a damaged point can be salvaged at all. Must not know: where a disk goes, what else of the domain comes
back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from ..core import errors, pipeline
from ..core.errors import Check, Report
from ..format.directory import Directory
from ..format.manifest import FileEntry
from ..repository.file_flaws import FileFlaws
from ..repository.image import Image
from ..repository.series import Point, Series
from . import loss
from .loss import Loss

# What to do about a damaged file.
_OF_A_DISK = "nothing was restored (nbdpull verify lists all damage, --salvage restores everything else)"
_OF_AN_INDEX = "nbdpull index --rebuild may rebuild it"


@dataclass(frozen=True)
class Origin:
    """A point of a series. onto: its disks need not be whole; threads: files looked at at once."""

    series: Series
    point: Point
    onto: bool
    threads: int
    check: Check

    def image(self, disk: str) -> Image:
        return Image(self.series, self.point, disk, self.onto, self.check)

    def directory(self, disk: str) -> Directory:
        return self.series.directory(self.point, disk, self.onto)


class Salvaged(NamedTuple):
    """images: of the disks that come back, in part at least; lost: the others."""

    images: dict[str, Image]
    lost: list[Loss]


def images(origin: Origin, disks: Iterable[str], opened: ExitStack) -> dict[str, Image]:
    """The Image of each disk, closed with `opened`. Damaged, PartialPoint."""
    return {disk: opened.enter_context(origin.image(disk)) for disk in disks}


def salvaged(origin: Origin, disks: Collection[str], opened: ExitStack, report: Report) -> Salvaged:
    """The same, but a disk of which the directory or an index is damaged is lost as a whole. PartialPoint, and Damaged
    where no disk is left."""
    found: dict[str, Image] = {}
    lost = []
    for disk in disks:
        try:
            found[disk] = opened.enter_context(origin.image(disk))
            _require_sound(origin, found[disk].directory.indexes, _OF_AN_INDEX)
        except errors.PartialPoint:
            raise
        except errors.Damaged as error:
            found.pop(disk, None)
            lost.append(loss.of_range(report, disk, 0, origin.point.disk(disk).size, str(error)))
    if not found:
        raise errors.Damaged(f"{lost[0].problem}; nothing can be salvaged")
    return Salvaged(found, lost)


def prove(origin: Origin, disks: Iterable[str], beside: Iterable[FileEntry], whole: bool = True) -> None:
    """Damaged where a file that the disks are made from is not what was stored, by sizes and digests, from the manifest
    down, or one of those beside them.

    whole: False: of chunk files only sizes are looked at, for who writes to where nothing counts before all is
    written. Each frame is proved before a byte of it is written, and to prove the files, too, is to read the store
    twice.
    """
    entries = list(beside)
    for disk in disks:
        directory = origin.directory(disk)
        entries += [*origin.point.manifest.files, *(directory.files if whole else directory.indexes)]
        if not whole:
            _require_sizes(origin, directory.chunks)
    _require_sound(origin, entries, _OF_A_DISK)


def _require_sizes(origin: Origin, entries: Iterable[FileEntry]) -> None:
    for entry in entries:
        origin.check()
        if flaw := origin.series.size_flaw(entry):
            raise errors.Damaged(f"{flaw}; {_OF_A_DISK}")


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """While new images are written: what is found damaged then leaves none of them."""
    try:
        yield
    except errors.Damaged as error:
        raise errors.Damaged(f"{error}; {_OF_A_DISK}") from error


def _require_sound(origin: Origin, entries: Iterable[FileEntry], advice: str) -> None:
    """Damaged where a file is not what was stored."""
    flaws = pipeline.ordered(
        FileFlaws(origin.series, origin.check).of,
        dict.fromkeys(entries),
        threads=origin.threads,
        budget=1,
        weight=lambda _: 0,
        check=origin.check,
    )
    found = [flaw for flaw in flaws if flaw]
    if found:
        raise errors.Damaged(f"{found[0]}; {advice}")
