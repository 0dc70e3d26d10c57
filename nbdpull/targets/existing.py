"""What exists at a place: its size, and its first bytes.

Owns: how to inspect a file, a device or an export without changing it. Must not know: whether it may be overwritten.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..core import errors
from ..core.errors import Check
from ..core.os_error import translated
from ..images import image_header, qemu_img
from .places import DEVICE, NBD, STDOUT, Place, is_device

if TYPE_CHECKING:
    from ..nbd.nbd_target import NbdTarget


def room(place: Place, check: Check) -> int:
    if place.kind == NBD:
        with open_uri(place.path, 1, check) as export:
            size: int = export.size
            return size
    if place.secret:
        return qemu_img.virtual_size(place.path, place.format, place.secret, place.kind == DEVICE)
    if place.format == "qcow2":
        return _qcow2_size(place.path)
    with translated("open", place.path):
        descriptor = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)


def _qcow2_size(path: str) -> int:
    with translated("open", path):
        if image_header.read(path).format != image_header.QCOW2:
            raise errors.UsageError(f"{path} is not a qcow2 image; use --format raw if it is a raw one")
    return qemu_img.virtual_size(path, "qcow2")


def first_bytes(place: Place, count: int, check: Check) -> bytes:
    """Return up to `count` of the first bytes at a Place, none if nothing exists there."""
    if place.kind == NBD:
        with open_uri(place.path, 1, check) as export:
            return bytes(export.read(0, min(count, export.size)))
    if place.kind == STDOUT or not (os.path.isfile(place.path) or is_device(place.path)):  # a FIFO would never answer
        return b""
    with translated("read", place.path), open(place.path, "rb") as file:
        return file.read(count)


def open_uri(uri: str, connections: int, check: Check) -> NbdTarget:
    from ..nbd import nbd_target

    opened: NbdTarget = nbd_target.open_uri(uri, connections, check)
    return opened
