"""Whether a disk fits into its place: checked before anything is written, without any change.

Owns: the space at a place and in a file system, and the largest possible file; that nothing is overwritten without
being asked, and no image in use is replaced. Must not know: the contents of the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterable
from typing import IO, Callable, Optional

from ..core import errors, file_system, sizes
from ..core.errors import Check
from ..core.os_error import translated
from ..images import image_header, image_lock
from . import existing, places
from .places import Place

_ANYWHERE = 1 << 31  # bytes that a file can have on any file system


def require_fit(
    place: Place, size: int, force: bool = False, in_place: bool = False, check: Check = lambda: None
) -> None:
    """Raise unless a disk of `size` bytes can go there. Changes nothing. force: existing content may be overwritten."""
    if place.kind == places.STDOUT:
        if sys.stdout.isatty():
            raise errors.UsageError("-o -: stdout is a terminal; send it to a file or a program")
        return
    if place.kind == places.NEW:
        if os.path.lexists(place.path) and not force:
            raise errors.OutputExists(f"{place.path} exists; use --force to overwrite it, or another directory for -o")
        _require_replaceable(place.path)
        return
    room = existing.room(place, check)
    if place.kind != places.EXISTING and room < size:  # a file can be made to grow
        raise errors.OutputError(
            f"{place.path} has {sizes.shown(room)} ({room} bytes), the disk needs {sizes.shown(size)} ({size} "
            "bytes); nothing was written"
        )
    if not (force or in_place):
        raise errors.OutputExists(f"{place.path} exists; use --force to overwrite everything on it")


def _require_replaceable(path: str) -> None:
    """Raise if what exists there is no image, or is in use: its VM would keep writing to an unlinked file."""
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "not a regular file"
        raise errors.OutputExists(f"{path} is {what}")
    with translated("open", path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            image_lock.keep_all_out(descriptor, path)
        finally:
            os.close(descriptor)


def owner_lost(place: Place) -> list[str]:
    """Return a warning if the file that is to be replaced belongs to somebody to whom the new one cannot be given."""
    if place.kind != places.NEW or not os.path.exists(place.path) or os.geteuid() == 0:
        return []
    before = os.stat(place.path)
    if before.st_uid == os.geteuid() and before.st_gid in (os.getegid(), *os.getgroups()):
        return []
    return [
        f"{place.path} belongs to user {before.st_uid} (group {before.st_gid}), and will belong to you, as only root "
        "can give a file away: if QEMU runs as that user, it cannot open the new one"
    ]


def require_folder(place: Place, to_be_made: Optional[str] = None) -> None:
    """Raise unless a new image can be made at the place. to_be_made: a folder that will exist by then."""
    if place.kind != places.NEW:
        return
    folder, there = os.path.dirname(place.path), _existing_folder(place.path)
    below = os.path.join(there, os.path.relpath(folder, there).split(os.sep)[0])
    if os.path.lexists(below) and not os.path.isdir(below):
        raise errors.OutputExists(f"cannot create {place.path}: {below} exists and is not a directory")
    if folder != there and (to_be_made is None or folder != os.path.abspath(to_be_made)):
        why: Optional[str] = f"there is no directory {folder}; create it first"
    else:
        why = file_system.why_unwritable(there)
    if why:
        raise errors.OutputError(f"cannot create {place.path}: {why}")


def require_file_size(place: Place, size: int) -> None:
    """Raise if a raw image would exceed the largest possible file on its file system."""
    if place.kind not in (places.NEW, places.EXISTING) or place.format != image_header.RAW:
        return
    folder = _existing_folder(place.path)
    limit = _largest_file(folder, size)
    if limit < size:
        raise errors.OutputError(
            f"cannot create {place.path}: it would be a file of {sizes.shown(size)}, and none can be larger than "
            f"{sizes.shown(limit)} on the file system of {folder}; restore it as qcow2 (--format qcow2), or elsewhere"
        )


def _largest_file(folder: str, wanted: int) -> int:
    """Return the largest size in bytes of a file in this folder, at most `wanted`.

    Return `wanted` if no file can be created: other checks report that.
    """
    if wanted < _ANYWHERE:
        return wanted
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        if not _takes(probe, wanted):
            fits, too_large = 0, wanted
            while too_large - fits > 1:
                middle = (fits + too_large) // 2
                fits, too_large = (middle, too_large) if _takes(probe, middle) else (fits, middle)
            return fits
    return wanted


def _takes(probe: IO[bytes], size: int) -> bool:
    try:
        os.ftruncate(probe.fileno(), size)
        return True
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return False


def require_space(needs: Iterable[tuple[Place, Callable[[], int], int]]) -> None:
    """Raise OutputFull unless there is space for new images.

    needs: for each, (Place, function that returns the bytes it takes, an upper bound of those that is known at once).
    """
    file_systems: dict[int, list[tuple[str, Callable[[], int], int]]] = {}
    for place, exact, bound in needs:
        folder = _existing_folder(place.path)
        with translated("look into", folder):
            file_systems.setdefault(os.stat(folder).st_dev, []).append((folder, exact, bound))
    for images in file_systems.values():
        free = file_system.free_bytes(images[0][0])
        if free is None or sum(bound for _, _, bound in images) <= free:
            continue
        wanted = sum(exact() for _, exact, _ in images)
        if wanted > free:
            raise errors.OutputFull(
                f"cannot write to {images[0][0]}: the images take {sizes.shown(wanted)}, {sizes.shown(free)} are free; "
                "free space, choose another directory, or use --no-space-check; nothing was written"
            )


def _existing_folder(path: str) -> str:
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
