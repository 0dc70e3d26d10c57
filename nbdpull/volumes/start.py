"""Where an incremental backup of a virtual machine starts: at a point of our store, or nowhere, and why.

Owns: that it is the newest point, and that everything it builds on is proved. Must not know: how a backup is made,
HTTP.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import KUBEVIRT, OnLostBase
from ..core.errors import Check
from ..definitions.domain_xml import Checkpoint, Disk
from ..format.manifest import FULL, INCREMENTAL
from ..kubevirt.given import Machine
from ..pulling import base
from ..pulling.base import LOST, Base, Choice
from ..repository.points import Points
from ..repository.series import Point, Series


class Start(NamedTuple):
    """base: None if everything has to be read; why: then the reason."""

    base: Optional[Base]
    why: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Optional[str]:
        return self.base.checkpoint.name if self.base else None

    def disk(self, machine: Machine, name: str, source: Optional[str], size: int, allocated: int = 0) -> Disk:
        """Return a volume as a Disk for base.decide: it has bitmaps. source: what the volume contains, None if
        unknown."""
        known = self.base.before.get(name) if self.base and self.base.before else None
        by_name = known.source if known else f"{KUBEVIRT}{machine.domain}/{name}"
        facts = {"bus": "", "readonly": False, "transient": False, "shareable": False, "empty": False}
        named = {"target": name, "type": "kubevirt", "source": source or by_name, "format": "qcow2", "device": "disk"}
        return Disk(**named, **facts, size=size, allocation=allocated)  # type: ignore[arg-type]

    def choice(self, disks: Iterable[Disk], full: Collection[str] = ()) -> Choice:
        """Decide which disks are read in full, and which as an increment. full: those that are backed up in full."""
        decisions = {disk.target: base.decide(disk, self.base, self.why) for disk in disks}
        for name, (mode, _) in decisions.items():
            if self.base and mode == INCREMENTAL and name not in self.base.whole:
                decisions[name] = FULL, "chain-broken"
            elif mode == INCREMENTAL and name in full:
                decisions[name] = FULL, "checkpoint-lost"
        incremental = any(mode == INCREMENTAL for mode, _ in decisions.values())
        return Choice(self.base if incremental else None, decisions)

    def require(self, on_lost_base: str) -> None:
        """Raise CheckpointUnusable if the expected base is lost, and the user does not want a full pull instead."""
        if self.why in LOST and on_lost_base == OnLostBase.FAIL:
            raise errors.CheckpointUnusable(
                f"no usable base for an incremental ({self.why}): --on-lost-base=full pulls in full"
            )


def by_tracker(series: Optional[Series], points: Points, latest: Optional[str], full: bool, check: Check) -> Start:
    """Start at the newest point if its checkpoint is also the one that the cluster would start at (`latest`)."""
    newest = points.newest
    entry = newest.manifest.checkpoint if newest else None
    if full:
        return Start(None, "requested")
    if newest is None:
        return Start(None, "first-point")
    if entry is None:
        return Start(None, "no-checkpoint")
    if latest != entry.name:
        moved = (
            f"the tracker names checkpoint {latest or 'none'}, but the newest point has {entry.name}: a failed "
            "pull moves the tracker, and so does a backup that another program makes with it; KubeVirt makes "
            "increments only since the tracker's checkpoint"
        )
        return Start(None, "checkpoint-replaced" if latest else "checkpoint-lost", (moved,))
    return at_point(series, newest, check)


def at_point(series: Optional[Series], parent: Point, check: Check) -> Start:
    """Start at that point of a series."""
    entry = parent.manifest.checkpoint
    name, created = (entry.name, entry.creation_time) if entry else ("", 0)
    proof = base.Proof(series, check)
    made = Checkpoint(name, created, "", dict.fromkeys(parent.disks, True), "")
    found = proof.looked_through(base.of_point(made, parent))
    return Start(found, "", tuple(proof.warnings))
