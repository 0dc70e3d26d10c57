"""Restore: the disks of a point, as image files in a folder.

Owns: the order of steps, above all that the whole chain is proved before the first byte is written. Must not know:
libvirt, byte layouts, what is printed.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Callable, Optional

from . import errors, extents, format, pipeline, series, store
from .image import Image
from .target import new_image

AHEAD_PER_THREAD = 8 << 20  # bytes of guest data under way for each thread


@dataclass(frozen=True)
class Request:
    """What to restore. point: an id or series.LATEST; disks empty: all; kind: "qcow2" or "raw"."""

    store: str
    output: str
    domain: Optional[str] = None
    point: str = series.LATEST
    disks: list[str] = field(default_factory=list)
    kind: str = "qcow2"
    force: bool = False
    threads: int = 2


@dataclass(frozen=True)
class Result:
    """point: the Point; files: path of each image by disk; written_bytes: guest data written, by disk."""

    point: series.Point
    files: dict[str, str]
    written_bytes: dict[str, int]


def restore(request: Request, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Write the images. Damaged, before anything is written, where a file of the chain is not what was stored."""
    target = series.only_series(store.open_store(request.store), request.domain)
    point = target.point(request.point)
    disks = _chosen(point, request.disks)
    paths = {disk: os.path.join(request.output, f"{format.folder_name(disk)}.{request.kind}") for disk in disks}
    _require_free([*paths.values(), os.path.join(request.output, format.DOMAIN_XML)], request.force)
    _prove(target, point, disks, request.threads, check)
    with store.translated("create the folder", request.output):
        os.makedirs(request.output, exist_ok=True)
    written = {}
    with ExitStack() as outputs:  # no image gets its name before all of them are whole
        for disk in disks:
            with Image(target, point, disk) as image:
                new = new_image(paths[disk], request.kind, image.size, request.threads, request.force)
                written[disk] = _restore_disk(request, image, outputs.enter_context(new), report, check)
        _restore_xml(request, target, point)
    return Result(point, paths, written)


def _chosen(point, wanted):
    known = [disk.name for disk in point.manifest.disks]
    for name in wanted:
        if name not in known:
            raise errors.NoSuchDisk(f"point {point.id} has no disk {name}; it has: {', '.join(known)}")
    return list(dict.fromkeys(wanted)) or known


def _require_free(paths, force):
    for path in paths:
        if os.path.lexists(path) and not force:
            raise errors.OutputExists(f"{path} exists; give --force to overwrite it, or another folder to -o")


def _prove(target, point, disks, threads, check):
    """Every file that the images are made from is what was stored: sizes and digests, from the manifest down."""
    links = [link for disk in disks for link in target.chain(point, disk)]
    files = {entry.path: entry for p, disk in links for entry in [disk.index, *disk.chunks, *p.manifest.files]}
    for flaw in pipeline.ordered(
        target.file_flaw, files.values(), threads=threads, budget=1, weight=lambda _: 0, check=check
    ):
        if flaw:
            raise errors.Damaged(f"{flaw}; nothing was restored (nbdpull verify lists every damage)")


def _restore_disk(request, image, output, report, check):
    """Write the data of an image; return how many bytes. What is zero an output has by itself."""
    written = 0

    def work(piece):
        for offset, buffer in zip(piece.extents["offset"].tolist(), image.read_piece(piece)):
            output.write(offset, buffer)
        return piece

    for piece in pipeline.ordered(
        work,
        (piece for piece in image.pieces() if piece.sources),
        threads=request.threads,
        budget=AHEAD_PER_THREAD * request.threads,
        weight=lambda piece: extents.total(piece.extents),
        check=check,
    ):
        written += extents.total(piece.extents)
        reached = int(extents.ends(piece.extents[-1:])[0])
        report(event="progress", disk=image.disk, position=reached, size=image.size, written_bytes=written)
    report(event="progress", disk=image.disk, position=image.size, size=image.size, written_bytes=written)
    return written


def _restore_xml(request, target, point):
    data = target.store.read(f"{target.folder}/{point.id}/{format.DOMAIN_XML}")
    path = os.path.join(request.output, format.DOMAIN_XML)
    with store.translated("write", path):
        try:
            with open(path, "wb") as file:
                file.write(data)
        except OSError:
            with suppress(OSError):
                os.unlink(path)
            raise
