"""Compare: is an image file, or what an NBD server shows, equal to a disk as of a point?

Owns: qemu-nbd in front of the image, and which ranges differ. The image is read; of the store only what the digests in
its index do not answer. Must not know: libvirt, what is printed.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

import numpy

from ..core import errors, extents, pipeline
from ..format import layout, reader
from ..images import image_header
from ..nbd import qemu_nbd, source
from ..repository import lookup, marker, series
from ..repository.part import Part
from .options import CompareOptions as Options

BLOCK = layout.MAX_FRAME
SECTOR = 512


@dataclass(frozen=True)
class Result:
    """differences: [(offset, length)] in bytes, ascending, neighbours joined; compared_bytes: how much of the disk was
    looked at."""

    domain: str
    point: series.Point
    disk: str
    size: int
    compared_bytes: int
    differences: list[tuple[int, int]]

    @property
    def complete(self) -> bool:
        """Whether all of the disk was looked at."""
        return self.compared_bytes == self.size

    @property
    def equal(self) -> Optional[bool]:
        """None: no difference in what was looked at, which was not all."""
        return False if self.differences else True if self.complete else None


def compare(options: Options, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Compare the image with a disk as of a point."""
    target = series.only_series(marker.open_store(options.store), options.domain)
    found, image = target.point(options.point), options.image
    disk = _chosen(found, options.disk)
    with lookup.RandomImage(target, found, disk, check=check) as opened, _served(image, options.kind) as live:
        if live.size not in (opened.size, -(-opened.size // SECTOR) * SECTOR):  # qemu-nbd pads to whole sectors
            raise errors.Differs(f"{image} has {live.size} bytes, disk {disk} at point {found.id} {opened.size}")
        part = Part(options.sample, options.shard, options.max_duration)
        told = partial(report, domain=target.domain, point=found.id)
        compared, differences = _compare(opened, live, options.threads, told, check, part)
    return Result(target.domain, found, disk, opened.size, compared, differences)


def _chosen(point, disk):
    known = point.disks
    if disk is None and len(known) > 1:
        raise errors.UsageError(f"--against compares one disk; choose it with --disk (it has: {', '.join(known)})")
    return point.disk(disk or known[0]).name


def _compare(opened, live, threads, report, check, part):
    """(bytes that were looked at, differences) of the part."""
    deadline = time.monotonic() + part.max_duration if part.max_duration is not None else None
    held = _blocks_with_data(opened, live)
    blocks, different = part.numbers(held), []
    compared = opened.size - sum(_length(number, opened.size) for number in held.tolist())  # zero in both

    def work(number):
        return number, _block_differences(opened, live, number * BLOCK, _length(number, opened.size))

    for number, found in pipeline.ordered(
        work, blocks.tolist(), threads=threads, budget=1 << 26, weight=lambda _: BLOCK, check=check
    ):
        length = _length(number, opened.size)
        position = number * BLOCK + length
        compared += length
        different += found
        report(event="progress", disk=opened.disk, position=position, size=opened.size, written_bytes=position)
        if deadline is not None and time.monotonic() > deadline:
            break
    merged = extents.merged(extents.of((*each, extents.DATA) for each in different))
    return compared, [(int(each["offset"]), int(each["length"])) for each in merged]


def _blocks_with_data(opened, live):
    """Numbers of the blocks in which either side may hold something but zeros."""
    held = numpy.zeros(-(-opened.size // BLOCK), bool)
    for batch in live.extents():
        data = extents.cut(batch[batch["kind"] == extents.DATA], BLOCK)
        held[data["offset"] // BLOCK] = True
    for offset, _, _ in opened.records():
        held[offset // BLOCK] = True
    return numpy.flatnonzero(held)


def _length(number, size):
    """Of a block of a disk of that size: the last one may be shorter."""
    return min(BLOCK, size - number * BLOCK)


def _block_differences(opened, live, start, length):
    """[(offset, length)] of the runs of a block that are not equal."""
    with live.reading() as connection:
        data = connection.read_batch([(start, length)])[0]
        found, at = [], start
        for offset, size, digest in opened.records(start, length):
            found += _unless_zero(data[at - start : offset - start], at)
            view = data[offset - start : offset - start + size]
            equal = reader.digest(view) == digest if digest else bytes(view) == opened.read(offset, size)
            found += [] if equal else [(offset, size)]
            at = offset + size
        return found + _unless_zero(data[at - start :], at)


def _unless_zero(view, offset):
    return [(offset, len(view))] if numpy.frombuffer(view, "u1").any() else []


# The image as an export


@contextmanager
def _served(image, kind):
    """A source.Source of an image file or an NBD URI; qemu-nbd reads all of them, and never writes."""

    def refused(said):
        return errors.UsageError(f"qemu-nbd cannot read {image}: {said}")

    def connect(socket):
        return source.Source(socket, "")

    # It is not asked to finish: it only reads, and an orderly end waits for clients that may be gone.
    with (
        qemu_nbd.serving(["-r", "-e", "64", "-f", kind or _kind(image), image]) as server,
        server.connected(connect, errors.SourceError, refused) as live,
    ):
        yield live


def _kind(image):
    if re.match(r"nbd[a-z+]*:", image):
        return "raw"
    try:
        with open(image, "rb") as file:
            found = image_header.parse(file.read(image_header.SIZE)).format
    except OSError as error:
        raise errors.UsageError(f"cannot read {image}: {error.strerror}") from error
    return "qcow2" if found == image_header.QCOW2 else "raw"
