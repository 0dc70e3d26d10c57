"""The target of a place: opened, locked or created, and closed.

Owns: which kind of target serves which kind of place, that nobody else uses what is overwritten, and that a new image
gets the requested options. Must not know: points, frames, which disk it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Callable

from ..core import errors
from ..core.errors import Check
from ..core.os_error import translated
from ..images import image_header, image_lock, qemu_img
from . import existing, replace
from .file import File
from .new_qcow2 import NewQcow2
from .places import DEVICE, EXISTING, NBD, NEW, STDOUT, Place
from .stream import Stream
from .target import Target

if TYPE_CHECKING:
    from ..nbd.nbd_target import NbdTarget


@contextlib.contextmanager
def open_target(
    place: Place, size: int, connections: int, force: bool = False, check: Check = lambda: None
) -> Iterator[Target]:
    """Yield the target of a Place for a disk of `size` bytes; what was written is durable after its `flush`.

    check() is called during a wait for a server. If the block ends without an exception, a NEW image is at its path,
    replacing what was there; if it ends with one, no new image exists.
    """
    if place.kind == NEW:
        with replace.whole(place.path, force) as draft, _draft(place, draft, size, connections, check) as image:
            yield image
    else:
        with _OPEN[place.kind](place, size, connections, check) as target:
            yield target


def _draft(place: Place, draft: str, size: int, connections: int, check: Check) -> AbstractContextManager[Target]:
    if place.options or place.secret:
        from ..nbd import nbd_target

        if place.secret:
            qemu_img.create_encrypted(draft, size, place.format, place.secret, place.options)
        else:
            qemu_img.create(draft, size, "-o", place.options)
        opened = nbd_target.open_image(draft, dataclasses.replace(place, path=draft).image, connections, True, check)
        # Unwritten parts of raw LUKS are not zero: they are decrypted, too.
        return _blank(opened) if place.format == image_header.QCOW2 else opened
    with translated("create", draft):
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    if place.format == "qcow2":
        return NewQcow2(descriptor, draft, size)
    with translated("create", draft):
        os.ftruncate(descriptor, size)
    return File(descriptor, draft, size, blank=True)


@contextlib.contextmanager
def _blank(opening: AbstractContextManager[NbdTarget]) -> Iterator[Target]:
    with opening as target:
        target.blank = True
        yield target


@contextlib.contextmanager
def _existing(place: Place, size: int, connections: int, check: Check) -> Iterator[Target]:
    if place.format == "qcow2" or place.secret:
        from ..nbd import nbd_target

        if existing.room(place, check) < size:
            qemu_img.grow(place.path, place.format, -(-size // qemu_img.SECTOR) * qemu_img.SECTOR, place.secret)
        with nbd_target.open_image(place.path, place.image, connections, False, check) as target:
            yield target
        return
    with translated("open", place.path):
        descriptor = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
        with File(descriptor, place.path, max(size, os.fstat(descriptor).st_size)) as target:
            image_lock.keep_all_out(descriptor, place.path)
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
            yield target


@contextlib.contextmanager
def _device(place: Place, size: int, connections: int, check: Check) -> Iterator[Target]:
    try:
        # EXCL: not a device that is mounted, or part of a volume group or array
        descriptor = os.open(place.path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise errors.Busy(f"{place.path} is in use: mounted, or part of a volume group or array") from error
        raise errors.OutputError(f"cannot open {place.path}: {error.strerror}") from error
    if place.secret:
        from ..nbd import nbd_target

        opened = nbd_target.open_image(place.path, place.image, connections, False, check)
        with os.fdopen(descriptor, "rb"), opened as target:  # kept open, so that nobody else gets it meanwhile
            yield target
        return
    with File(descriptor, place.path, os.lseek(descriptor, 0, os.SEEK_END)) as target:
        image_lock.keep_all_out(descriptor, place.path)
        yield target


_OPEN: dict[str, Callable[[Place, int, int, Check], AbstractContextManager[Target]]] = {
    EXISTING: _existing,
    DEVICE: _device,
    NBD: lambda place, _size, connections, check: existing.open_uri(place.path, connections, check),
    STDOUT: lambda _place, size, _connections, check: Stream(1, size, check),
}
