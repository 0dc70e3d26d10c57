"""The things that pulls leave in a domain on purpose: checkpoints, and their bitmaps in the domain's images.

Owns: which of them are nbdpull's, and which of our bitmaps belong to no checkpoint any more: a copied image contains
the bitmaps of its original, and a domain that is undefined loses its checkpoints but keeps their bitmaps. Must not
know: stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import Check
from ..definitions.domain_xml import Checkpoint
from ..format import layout
from ..hypervisor import domain
from ..images import guest_files

_ANSWER = 30.0  # seconds
_PREFIX = "nbdpull-"  # of the checkpoints that we name, and so of their bitmaps; the run's id follows


@dataclass(frozen=True)
class Orphan:
    """A bitmap of ours that belongs to no checkpoint. name: contains the id of the run; disks: targets with this
    bitmap."""

    name: str
    disks: list[str]

    @property
    def run(self) -> str:
        return run_of(self.name)


def run_of(name: str) -> str:
    """Return the id of the run that gave a checkpoint or bitmap this name, "" if it is not from a run."""
    run = name[len(_PREFIX) :]
    return run if name.startswith(_PREFIX) and layout.POINT_ID.match(run) else ""


def checkpoints(vm: domain.Domain) -> list[Checkpoint]:
    """Return the checkpoints that nbdpull made, oldest first, including those that a user named."""
    return [checkpoint for checkpoint in vm.checkpoints.known() if checkpoint.run_id]


def orphans(vm: domain.Domain, check: Check = lambda: None) -> tuple[list[Orphan], list[str]]:
    """Return ([Orphan in the images of the domain, …], [why an image could not be read, …]).

    The image of a running domain shows its bitmaps as of the start: those orphaned since then appear after it ends.
    """
    owned, flaws = set(vm.checkpoints.names()), []
    disks: dict[str, list[str]] = {}
    for disk in vm.disks():
        if vm.is_remote or disk.format != "qcow2" or disk.type not in ("file", "block") or disk.empty:
            continue
        try:
            for layer in guest_files.layers(disk.source, disk.format, _ANSWER, check):
                for name in _bitmaps(layer):
                    if run_of(name) and name not in owned and disk.target not in disks.setdefault(name, []):
                        disks[name].append(disk.target)
        except OSError as error:
            flaws.append(f"the bitmaps of disk {disk.target} cannot be read: {error.filename}: {error.strerror}")
    return [Orphan(name, targets) for name, targets in sorted(disks.items())], flaws


def _bitmaps(layer: dict[str, Any]) -> list[str]:
    details = layer.get("format-specific", {}).get("data", {})
    return [bitmap["name"] for bitmap in details.get("bitmaps", [])]
