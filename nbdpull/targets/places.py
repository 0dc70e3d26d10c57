"""Where one disk goes, as the user names it: a path, a device, a URI, or "-".

Owns: the kinds of places, which of them a text means, and which options each allows. Must not know: whether the disk
fits there, how it is written.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import Optional

from ..core import errors
from ..images import image_header, qcow2, qemu_img

NEW, EXISTING, DEVICE, NBD, STDOUT = "new image", "image", "block device", "NBD export", "stdout"

# Options of a new image that name another file or its size: the former would show through or be overwritten.
_REFUSED_OPTIONS = ("backing_file", "backing_fmt", "data_file", "size")


@dataclass(frozen=True)
class Place:
    """Where one disk goes.

    kind: one of the above; path: a URI for NBD; options: of qemu-img create, for NEW qcow2; secret: path of a file with
    the secret that encrypts the disk there, None if it is not encrypted.
    """

    kind: str
    path: str
    format: str = "raw"
    options: str = ""
    secret: Optional[str] = None

    @property
    def image(self) -> list[str]:
        """The arguments that name it to QEMU's programs."""
        return qemu_img.named(self.path, self.format, self.secret, self.kind == DEVICE)


def is_uri(text: str) -> bool:
    return text.startswith(("nbd://", "nbd+unix://", "nbds://", "nbds+unix://"))


def is_device(text: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISBLK(os.stat(text).st_mode)
    return False


def is_raw(text: str) -> bool:
    """Return whether it is not an image file, and so takes raw bytes only."""
    return text == "-" or is_uri(text) or is_device(text)


def require_outside(text: str, store: str) -> None:
    """Raise UsageError if the path is inside a store, which must contain only points."""
    if is_raw(text):
        return
    path, root = os.path.realpath(text), os.path.realpath(store)
    if os.path.commonpath([path, root]) == root:
        raise errors.UsageError(f"{text} is inside the store {store}: choose a place outside it")


def place(
    text: str, kind: Optional[str] = None, options: str = "", in_place: bool = False, secret: Optional[str] = None
) -> Place:
    """Return the Place that the user means.

    kind: "raw", "qcow2" or None, which means the best one there; in_place: an image exists there.
    """
    if is_raw(text):
        if kind == "qcow2" or options:
            raise errors.UsageError(f"{text}: only raw data can be written there; omit format and image options")
        if secret and not is_device(text):
            raise errors.UsageError(f"{text}: what is written there cannot be encrypted")
        return Place(STDOUT if text == "-" else NBD if is_uri(text) else DEVICE, text, secret=secret)
    path = os.path.realpath(text) if os.path.exists(text) else os.path.abspath(text)  # a link itself is not replaced
    if path.startswith("/dev/") and not path.startswith("/dev/shm/"):
        raise errors.UsageError(f"{text}: there is no block device of that name")
    kind = kind or image_header.QCOW2
    _require_sensible(options, kind == image_header.QCOW2 or bool(secret))
    return Place(EXISTING if in_place else NEW, path, kind, options, secret)


def _require_sensible(options: str, made_by_qemu_img: bool) -> None:
    if options and not made_by_qemu_img:
        raise errors.UsageError("--image-options are for qcow2, not for raw")
    for name in [option.partition("=")[0].strip() for option in options.split(",")]:
        if name in _REFUSED_OPTIONS:
            raise errors.UsageError(f"--image-options: {name} is refused: the image is one file, of the disk's size")


def block_size(place: Place) -> int:
    """Return the block size of a new image, in bytes."""
    return qcow2.CLUSTER if place.format == "qcow2" else 4096
