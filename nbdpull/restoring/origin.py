"""Where restored disks come from: a point with all that its disks refer to, which is proved before it is read.

Owns: which files of a store a disk is made from, the proof that each is what was stored (or the decision that the proof
of each frame is enough), and which disks of a damaged point can be salvaged at all. Must not know: where a disk goes,
what else of the domain is restored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from ..core import errors, pipeline
from ..core.errors import Check, Report
from ..format import layout
from ..format.manifest import FileEntry
from ..repository.file_flaws import FileFlaws
from ..repository.image import Image
from ..repository.series import Point, Series
from . import loss
from .loss import Loss

# What to do about a damaged file.
_OF_A_DISK = "nothing was restored (nbdpull verify lists all damage, --salvage restores everything else)"
_OF_AN_INDEX = "nbdpull index --rebuild may rebuild it"
_OF_A_SPARE_FILE = "it is restored without this file (nbdpull verify lists all damage)"


@dataclass(frozen=True)
class Origin:
    """A point of a series. onto: its disks need not be whole; threads: how many files are checked at the same time."""

    series: Series
    point: Point
    onto: bool
    threads: int
    check: Check

    def image(self, disk: str) -> Image:
        return Image(self.series, self.point, disk, self.onto, self.check)


class Salvaged(NamedTuple):
    """images: of the disks that can be restored, at least in part; lost: the other disks."""

    images: dict[str, Image]
    lost: list[Loss]


def images(origin: Origin, disks: Iterable[str], opened: ExitStack) -> dict[str, Image]:
    """Return the Image of each disk, to be closed by `opened`. Damaged, PartialPoint."""
    return {disk: opened.enter_context(origin.image(disk)) for disk in disks}


def salvaged(origin: Origin, disks: Collection[str], opened: ExitStack, report: Report) -> Salvaged:
    """Return the Image of each disk whose directory and indexes are sound, to be closed by `opened`; the other disks
    are lost as a whole. PartialPoint; Damaged if no disk is left."""
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


def prove(origin: Origin, images: Iterable[Image], beside: Iterable[FileEntry], whole: bool = True) -> list[str]:
    """Raise Damaged if a file that the images are made from, or one beside them, is not what was stored. Sizes and
    digests are compared, starting from the manifest. Return warnings about files of the point that a restore does
    without.

    whole: False: compare only the sizes of chunk files. This is for targets that count only when everything is written:
    each frame is proved before a byte of it is written, and proving the files, too, means reading the store twice.
    """
    entries, spare = list(beside), set[FileEntry]()
    for image in images:
        directory = image.directory
        entries += [*_definitions(origin.point), *(directory.files if whole else directory.indexes)]
        spare.update(origin.point.manifest.files)
        if not whole:
            _require_sizes(origin, image)
    _require_sound(origin, entries, _OF_A_DISK)
    unproved = sorted(spare - {*entries}, key=lambda each: each.path)
    return [f"{flaw}; {_OF_A_SPARE_FILE}" for flaw in _flaws(origin, unproved)]


def _definitions(point: Point) -> list[FileEntry]:
    """Return the files of a point that define the format and the encryption of its disks."""
    return [entry for name in (layout.DOMAIN_XML, layout.LIVE_XML) if (entry := point.file(name))]


def _require_sizes(origin: Origin, image: Image) -> None:
    for entry in image.unopened_chunks():
        if flaw := origin.series.size_flaw(entry):
            raise errors.Damaged(f"{flaw}; {_OF_A_DISK}")


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Add to the message of a Damaged from the block that nothing was restored.

    Use it while new images are written: an error removes these.
    """
    try:
        yield
    except errors.Damaged as error:
        raise errors.Damaged(f"{error}; {_OF_A_DISK}") from error


def _require_sound(origin: Origin, entries: Iterable[FileEntry], advice: str) -> None:
    """Raise Damaged if a file is not what was stored."""
    if found := _flaws(origin, entries):
        raise errors.Damaged(f"{found[0]}; {advice}")


def _flaws(origin: Origin, entries: Iterable[FileEntry]) -> list[str]:
    """Return why files are not what was stored; nothing of those that are."""
    flaws = pipeline.ordered(
        FileFlaws(origin.series, origin.check).of,
        dict.fromkeys(entries),
        threads=origin.threads,
        budget=1,
        weight=lambda _: 0,
        check=origin.check,
    )
    return [flaw for flaw in flaws if flaw]
