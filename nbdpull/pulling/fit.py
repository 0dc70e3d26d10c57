"""Checks whether a pull fits: into the format, into the scratch directory, and into the store.

Owns: what is refused at the start, because it could only fail later. Must not know: libvirt, how a disk is read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

from ..core import errors, members, sizes
from ..definitions.domain_xml import Disk
from ..format import layout
from ..storage.base import Store
from . import scratch_watch

STORE_RESERVE = 16 << 20  # bytes free without which a pull does not start
BEST_RATIO = 10  # a full pull that would fit only with a better compression ratio does not start


def require_readable(disks: Collection[Disk], sequence: int, where: str) -> None:
    """Raise Unsupported or StoreError if a reader would have to refuse the point. where: directory of the series."""
    for disk in disks:
        if disk.size > layout.MAX_DISK:
            problem = f"disk {disk.target} is larger than {sizes.shown(layout.MAX_DISK)}"
            raise errors.Unsupported(f"{problem}: leave it out with --exclude")
    if sequence > members.MAX_INTEGER:
        raise errors.StoreError(
            f"a point in {where} has the highest possible sequence number (2^64 - 1): choose another directory for -o"
        )


def require_scratch(folder: str, disks: Collection[Disk], limit: Optional[int] = None) -> None:
    """Raise ScratchFull if a job would have to end as soon as it began."""
    scratch_watch.require_room(folder, sum(disk.size for disk in disks), limit)


def require_store(store: Store, in_full: Collection[Disk]) -> None:
    """Raise OutputFull if the store has no room for the disks that are read in full, even if they compress well."""
    expected = sum(disk.allocation for disk in in_full)
    free, wanted = store.free_bytes(), min(STORE_RESERVE, expected)
    wanted = max(wanted, expected // BEST_RATIO)
    if free is not None and free < wanted:
        raise errors.OutputFull(
            f"cannot write to {store.path()}: No space left on device ({sizes.shown(free)} free, "
            f"{sizes.shown(expected)} to be read in full); free space, choose another directory, or use "
            "--no-space-check"
        )
