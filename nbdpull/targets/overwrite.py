"""What a restore may overwrite: what a target contains now, and whether it may be replaced.

Owns: the rule that no encryption is destroyed, and that an image's own structure is not mistaken for a disk's content.
Must not know: points, frames, how a target is written.
"""

from __future__ import annotations

from typing import Callable, Optional

from ..core import errors
from ..core.errors import Check
from ..images import image_header
from . import existing
from .places import DEVICE, EXISTING, Place


def require_overwritable(
    place: Place,
    in_place: bool,
    encrypted: Optional[bool],
    head: Callable[[], Optional[bytes]],
    check: Check,
) -> None:
    """Raise if the content of a Place must not be overwritten.

    in_place: the content is the state to start from; encrypted: whether the domain's disk is encrypted; head: returns
    the first image_header.SIZE bytes of the new content, None if unknown; check() is called during a wait for a server.
    """
    there = existing.first_bytes(place, image_header.SIZE, check)
    found = image_header.parse(there)
    if place.secret:
        return _require_encrypted(place, in_place, bool(there) and not found.encrypted)
    if found.format == image_header.RAW:
        return
    comes = head()
    same = comes is not None and image_header.parse(comes) == found
    # A guest that encrypts a whole disk itself produces such a header, too: it is content, and is restored with the
    # rest.
    of_the_guest = found.format == image_header.LUKS and not encrypted and (same or comes is None)
    if found.encrypted and not of_the_guest:
        raise errors.EncryptedTarget(
            f"{place.path} is encrypted (LUKS), and unencrypted data would destroy it; nothing was written: restore "
            "through the encryption (--encrypt-disk) or to another place, or, if you no longer need what is there, "
            "remove it first"
        )
    if in_place and place.format == image_header.RAW and not (found.encrypted or same):
        raise errors.UsageError(
            f"{place.path} is a {found.format} image, and would be written to as a raw one; {_advice(place, found)}"
        )


def _require_encrypted(place: Place, in_place: bool, is_plain: bool) -> None:
    """Raise if existing content that remains is not encrypted, so that the secret cannot open it."""
    if is_plain and (in_place or place.kind == DEVICE):
        raise errors.UsageError(f"{place.path} is not encrypted: encrypt it first, or leave out --encrypt-disk")


def _advice(place: Place, found: image_header.Header) -> str:
    if found.format == image_header.QCOW2 and place.kind == EXISTING:
        return "use --format qcow2"
    return "restore to another place, or with --force instead, which overwrites everything there"
