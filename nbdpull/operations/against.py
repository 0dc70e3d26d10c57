"""Against: is an image file, or the export of an NBD server, equal to a disk as of a point?

Owns: qemu-nbd in front of the image, and which ranges differ. The image is read; of the store only the data that the
digests in its index cannot decide. Must not know: libvirt, what is printed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Optional

import numpy

from ..core import deadline, errors, extents, pipeline
from ..core.errors import Check, Report
from ..format import layout, reader
from ..images import image_header
from ..nbd import qemu_nbd, source
from ..repository import lookup, series, series_choice
from ..repository.part import Part
from . import earlier, reading, unlocking
from .options.restores import AgainstOptions as Options

log = logging.getLogger("nbdpull.verify")
BLOCK = layout.MAX_FRAME
SECTOR = 512
_Range = tuple[int, int]  # (offset, length) in bytes


@dataclass(frozen=True)
class Result:
    """The outcome of a comparison.

    differences: [(offset, length)] in bytes, ascending, neighbours joined; compared_bytes: how much of the disk was
    compared.
    """

    domain: str
    point: series.Point
    disk: str
    size: int
    compared_bytes: int
    differences: list[_Range]

    @property
    def complete(self) -> bool:
        """Whether all of the disk was compared."""
        return self.compared_bytes == self.size

    @property
    def equal(self) -> Optional[bool]:
        """Whether both are equal; None: no difference was found, but not all of the disk was compared."""
        return False if self.differences else True if self.complete else None


def against(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Compare the image with a disk as of a point."""
    options = earlier.seen(options)
    store, image = unlocking.opened(options.store, options.identities), options.image
    target, found = series_choice.only_point(store, options.domain, options.point)
    disk = _chosen(found, options.disk)
    threads = reading.threads(store, options.threads)
    log.info("%s is compared with %s of point %s", image, disk, found.id)
    with lookup.RandomImage(target, found, disk, check=check) as opened, _served(image, options.kind) as live:
        if live.size not in (opened.size, -(-opened.size // SECTOR) * SECTOR):  # qemu-nbd pads to whole sectors
            raise errors.Differs(f"{image} has {live.size} bytes, disk {disk} at point {found.id} {opened.size}")
        progress = partial(report, event="progress", domain=target.domain, point=found.id, disk=disk, size=opened.size)
        compared, differences = _compared(opened, live, options, threads, progress, check)
    return Result(target.domain, found, disk, opened.size, compared, differences)


def _chosen(point: series.Point, disk: Optional[str]) -> str:
    known = point.disks
    if disk is None and len(known) > 1:
        raise errors.UsageError(f"--against compares one disk; choose it with --disk (it has: {', '.join(known)})")
    return point.disk(disk or known[0]).name


def _compared(
    opened: lookup.RandomImage, live: source.Source, options: Options, threads: int, progress: Report, check: Check
) -> tuple[int, list[_Range]]:
    """Compare the wanted part, as far as there is time; return (bytes that were compared, differences)."""
    is_over = deadline.after(options.max_duration)
    differences: list[_Range] = []
    numbers, compared = _to_compare(opened, live, Part(options.sample, options.shard))

    def work(number: int) -> tuple[int, list[_Range]]:
        return number, _block_differences(opened, live, number * BLOCK, _length(number, opened.size))

    for number, found in pipeline.ordered(
        work, numbers, threads=threads, budget=1 << 26, weight=lambda _: BLOCK, check=check
    ):
        compared += _length(number, opened.size)
        differences += found
        position = number * BLOCK + _length(number, opened.size)
        progress(position=position, written_bytes=position)
        if is_over():
            break
    merged = extents.merged(extents.of((*each, extents.DATA) for each in differences))
    return compared, [(int(each["offset"]), int(each["length"])) for each in merged]


def _to_compare(opened: lookup.RandomImage, live: source.Source, part: Part) -> tuple[list[int], int]:
    """Return (numbers of the blocks to compare, bytes of all blocks that are zero on both sides).

    The former are the blocks of the part in which either side may contain something other than zeros.
    """
    held = numpy.zeros(-(-opened.size // BLOCK), bool)
    for batch in live.extents():
        data = extents.cut(batch[batch["kind"] == extents.DATA], BLOCK)
        held[data["offset"] // BLOCK] = True
    for offset, _, _ in opened.records():
        held[offset // BLOCK] = True
    numbers = numpy.flatnonzero(held)
    zero = opened.size - sum(_length(number, opened.size) for number in numbers.tolist())
    return part.numbers(numbers).tolist(), zero


def _length(number: int, size: int) -> int:
    """Return the length of a block of a disk of that size: the last block may be shorter."""
    return min(BLOCK, size - number * BLOCK)


def _block_differences(opened: lookup.RandomImage, live: source.Source, start: int, length: int) -> list[_Range]:
    """Return [(offset, length)] of the ranges of a block that differ."""
    with live.reading() as connection:
        data = connection.read_batch([(start, length)])[0]
        found: list[_Range] = []
        at = start
        for offset, size, digest in opened.records(start, length):
            found += _unless_zero(data[at - start : offset - start], at)
            view = data[offset - start : offset - start + size]
            equal = reader.digest(view) == digest if digest else bytes(view) == opened.read(offset, size)
            found += [] if equal else [(offset, size)]
            at = offset + size
        return found + _unless_zero(data[at - start :], at)


def _unless_zero(view: extents.Buffer, offset: int) -> list[_Range]:
    return [(offset, len(view))] if numpy.frombuffer(view, "u1").any() else []


# The image as an export


@contextmanager
def _served(image: str, kind: Optional[str]) -> Iterator[source.Source]:
    """Yield a source.Source of an image file or an NBD URI; qemu-nbd opens either read-only."""

    def refused(said: str) -> errors.NbdpullError:
        return errors.UsageError(f"qemu-nbd cannot read {image}: {said}")

    def connect(socket: str) -> source.Source:
        return source.Source(socket, "")

    # qemu-nbd is not asked to finish: it only reads, and an orderly end waits for clients that may be gone.
    with (
        qemu_nbd.serving(["-r", "-e", "64", "-f", kind or _kind(image), image]) as server,
        server.connected(connect, errors.SourceError, refused) as live,
    ):
        yield live


def _kind(image: str) -> str:
    if re.match(r"nbd[a-z+]*:", image):
        return image_header.RAW
    try:
        found = image_header.read(image).format
    except OSError as error:
        raise errors.UsageError(f"cannot read {image}: {error.strerror}") from error
    return found if found == image_header.QCOW2 else image_header.RAW
