"""Digest: one value for the content of a disk as of a point, however the point was made.

Owns: its definition (docs/format.md, "Digest of an image"). A full pull and a chain of pulls with the same content have
the same digest, so two points, or two stores, can be compared without their data. The digests of blocks that are one
frame come from the index; only the other blocks are read. Must not know: libvirt, what is printed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

from ..core import pipeline, sizes
from ..core.choices import ALL_POINTS
from ..core.errors import Check, Report
from ..format import findings, layout, reader
from ..repository import lookup, series, series_choice
from . import reading, unlocking
from .options.restores import DigestOptions as Options

log = logging.getLogger("nbdpull.digest")
BLOCK = layout.IMAGE_DIGEST_BLOCK
BATCH_BLOCKS = 16
_Record = tuple[int, int, Optional[bytes]]  # as RandomImage.records yields it
_Block = tuple[int, list[_Record]]  # number, records


@dataclass(frozen=True)
class Result:
    """The digests of the disks of one or all points: [(Point, {disk: digest in hex}), …]."""

    domain: str
    points: list[tuple[series.Point, dict[str, str]]]
    warnings: list[str]


def digest(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Compute the digests of a point, or of all points of a domain ("all")."""
    target = series_choice.only_series(unlocking.opened(options.store, options.identities), options.domain)
    report = partial(report, domain=target.domain)
    wanted = target.points() if options.point == ALL_POINTS else [target.point(options.point)]
    threads = reading.threads(target.store, options.threads)
    points = [(each, _of_point(target, each, options.disks, threads, report, check)) for each in wanted]
    found = [{**findings.entry(point), "disks": _kept(target, disks)} for point, disks in points]
    warnings = findings.kept(target, findings.DIGEST, points=found) if options.keep else []
    return Result(target.domain, points, warnings)


def _kept(target: series.Series, disks: dict[str, str]) -> dict[str, str]:
    """Return the digests as a finding stores them: in a sealed store, they must not confirm a guess of the content."""
    return {name: target.store.seal.secret(bytes.fromhex(found)).hex() for name, found in disks.items()}


def _of_point(
    target: series.Series,
    point: series.Point,
    disks: list[str],
    threads: int,
    report: Report,
    check: Check,
) -> dict[str, str]:
    result = {}
    for name in [point.disk(name).name for name in disks or point.disks]:  # check all names before reading any disk
        with lookup.RandomImage(target, point, name, check=check) as opened:

            def progress(position: int, name: str = name, size: int = opened.size) -> None:
                report(
                    event="progress", point=point.id, disk=name, position=position, size=size, written_bytes=position
                )

            began = time.monotonic()
            result[name] = image_digest(opened, threads, progress, check)
            log.info("point %s, %s: %s, %.1f s", point.id, name, sizes.shown(opened.size), time.monotonic() - began)
    return result


def image_digest(
    opened: lookup.RandomImage,
    threads: int = 2,
    progress: Callable[[int], None] = lambda position: None,
    check: Check = lambda: None,
) -> str:
    """Return the digest of a RandomImage, in hex."""
    return reader.digest_of(_parts(opened, threads, progress, check)).hex()


def _parts(opened: lookup.RandomImage, threads: int, progress: Callable[[int], None], check: Check) -> Iterator[bytes]:
    """Yield the bytes whose digest is the digest of an image."""
    yield layout.image_digest_head(opened.size)

    def work(blocks: list[_Block]) -> tuple[list[_Block], list[Optional[bytes]]]:
        return blocks, [_block_digest(opened, number, records) for number, records in blocks]

    for blocks, leaves in pipeline.ordered(
        work,
        _batches(opened),
        threads=threads,
        budget=threads * BATCH_BLOCKS * BLOCK,
        weight=lambda blocks: BLOCK * len(blocks),
        check=check,
    ):
        for (number, _), leaf in zip(blocks, leaves):
            if leaf is not None:
                yield layout.image_digest_block(number, leaf)
        progress(blocks[-1][0] * BLOCK)


def _batches(opened: lookup.RandomImage) -> Iterator[list[_Block]]:
    """Yield lists of (number, records) of the blocks that contain data, ascending."""
    batch: list[_Block] = []
    for record in opened.records():
        number = record[0] // BLOCK
        if batch and batch[-1][0] == number:
            batch[-1][1].append(record)
            continue
        if len(batch) == BATCH_BLOCKS:
            yield batch
            batch = []
        batch.append((number, [record]))
    if batch:
        yield batch


def _block_digest(opened: lookup.RandomImage, number: int, records: list[_Record]) -> Optional[bytes]:
    """Return the BLAKE3 digest of a block's bytes, None if they are all zero."""
    start = number * BLOCK
    length = min(BLOCK, opened.size - start)
    if len(records) == 1 and records[0][:2] == (start, length) and records[0][2] is not None:
        return records[0][2] if records[0][2] != _zero_digest(length) else None
    data = opened.read(start, length)
    return reader.digest(data) if data.count(0) != length else None


_zero_digests: dict[int, bytes] = {}


def _zero_digest(length: int) -> bytes:
    if length not in _zero_digests:
        _zero_digests[length] = reader.digest(bytes(length))
    return _zero_digests[length]
