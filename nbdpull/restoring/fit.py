"""The check, before the first byte is written, that everything to be restored fits where it goes.

Owns: that each place can hold its disk and may be overwritten, that no two disks go to one place, and that there is
room for all of them together. Must not know: how a place is inspected (targets/), how it is written.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from functools import partial
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..images import image_header
from ..repository.image import Image
from ..targets import fit, overwrite, places
from ..targets.places import Place
from .destination import Destinations


class Allowed(NamedTuple):
    """force: existing data may be overwritten; in_place: existing images are the base; space_check: require space."""

    force: bool
    in_place: bool
    space_check: bool


def require_fit(
    where: Destinations,
    images: Mapping[str, Image],
    taken: Mapping[str, Place],
    beside: Collection[str],
    allowed: Allowed,
    check: Check,
) -> list[str]:
    """Raise if a disk cannot go to its place; return warnings about the restored disks.

    taken: the place of each disk; beside: paths of the domain's other files.
    """
    warnings = []
    for disk, place in taken.items():
        warnings += where.warnings(disk, place)
        _require_place(where, images[disk], place, allowed, check)
        warnings += fit.owner_lost(place)
    paths = [os.path.realpath(place.path) for place in taken.values()]
    if len(set(paths)) != len(paths):
        raise errors.UsageError("two disks have the same target")
    if allowed.space_check:
        fit.require_space([_need(images[disk], place) for disk, place in taken.items() if place.kind == places.NEW])
    for path in beside:
        if os.path.lexists(path) and not (allowed.force or allowed.in_place):
            raise errors.OutputExists(f"{path} exists; use --force to overwrite it, or another directory for -o")
    return warnings


def _require_place(where: Destinations, image: Image, place: Place, allowed: Allowed, check: Check) -> None:
    known = where.disks.get(image.disk)
    encrypted = known.encrypted if known else None
    overwrite.require_overwritable(place, allowed.in_place, encrypted, partial(_head, image), check)
    fit.require_fit(place, image.size, allowed.force, allowed.in_place, check)
    fit.require_folder(place, where.folder)
    fit.require_file_size(place, image.size)


def _head(image: Image) -> Optional[bytes]:
    try:
        return image.head(image_header.SIZE)
    except errors.Damaged:  # the proof reports it
        return b""


def _need(image: Image, place: Place) -> tuple[Place, Callable[[], int], int]:
    """Return (place, callable that returns the bytes needed there, upper bound of these bytes)."""
    if "preallocation=f" in place.options or (place.secret and place.format == image_header.RAW):  # falloc or full
        return place, lambda: image.size, image.size
    return place, lambda: _data_bytes(image, places.block_size(place)), image.size


def _data_bytes(image: Image, block: int) -> int:
    try:
        return image.data_bytes(block)
    except errors.Damaged:  # the proof reports it
        return 0
