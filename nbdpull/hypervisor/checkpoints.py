"""The checkpoints of a domain, and the bitmaps in its images that belong to them.

Owns: the repair of what can be wrong with them: their order, which parentage does not show, a bitmap that is missing or
broken, lost metadata, a checkpoint that could not be stored. Must not know: who made which checkpoint, or what a pull
needs it for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Optional

from ..core import errors
from ..definitions import domain_xml
from ..definitions.domain_xml import Checkpoint
from .bindings import libvirt
from .handle import Handle
from .libvirt_error import CHECKPOINT_INCONSISTENT, NO_CHECKPOINT, unless

_REDEFINE_VALIDATE = 4


class Checkpoints:
    """The checkpoints of one domain."""

    def __init__(self, vm: Handle):
        self._vm = vm

    def names(self) -> list[str]:
        """Return the names of all checkpoints, oldest first; of those made in the same second, parents first."""
        return [each.name for each in self.known()]

    def known(self) -> list[Checkpoint]:
        """Return all checkpoints in the order of `names`, without inspecting their bitmaps.

        Parentage does not show their order: a checkpoint that was redefined, or created after a failed start, has no
        parent.
        """
        with self._vm.seam("list the checkpoints"):
            found = self._vm.dom.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
            xmls = [each.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN) for each in found]
        parsed = [domain_xml.parse_checkpoint(xml, with_size=False) for xml in xmls]
        return sorted(parsed, key=lambda each: each.creation_time)

    def get(self, name: str) -> Checkpoint:
        """Return the checkpoint. NoSuchCheckpoint lists those that exist. On a running domain, inspect each bitmap."""
        active = self._vm.active
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_XML_SIZE if active else 0
        with self._vm.seam(f"read checkpoint '{name}'"):
            found = self._find(name)
            if found is None:
                raise self.missing(name)
            xml = unless((libvirt.VIR_ERR_INTERNAL_ERROR,), lambda: found.getXMLDesc(flags))
            if xml is not None:
                return domain_xml.parse_checkpoint(xml, with_size=active)
            whole = domain_xml.parse_checkpoint(found.getXMLDesc(), with_size=False)
            return replace(whole, disks=self._unlike(whole.disks))

    def _unlike(self, targets: Iterable[str]) -> dict[str, Optional[bool]]:
        """Return for each disk whether it can be a base, if QEMU cannot merge the bitmaps of the checkpoint.

        libvirt reports that error for all disks at once. If a disk was resized after a snapshot, the bitmap of the
        lower layer kept its size.
        """
        backing = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        ((_, stats),) = self._vm.connection.domainListGetStats([self._vm.dom], libvirt.VIR_DOMAIN_STATS_BLOCK, backing)
        sizes: dict[str, set[int]] = {}
        for number in range(stats.get("block.count", 0)):
            layers = sizes.setdefault(stats[f"block.{number}.name"], set())
            layers.add(stats.get(f"block.{number}.capacity", -1))
        unequal = [target for target in targets if len(sizes.get(target, ())) != 1]
        return {target: bool(unequal) and target not in unequal for target in targets}  # in doubt none

    def delete(self, name: str) -> bool:
        """Delete the checkpoint with its bitmaps; return False if it does not exist.

        DomainNotRunning: this needs QEMU.
        """
        with self._vm.live(f"delete checkpoint '{name}'"):
            found = self._find(name)
            if found is None:
                return False
            if unless((libvirt.VIR_ERR_INTERNAL_ERROR,), found.delete) is None:
                self._delete_disk_by_disk(domain_xml.parse_checkpoint(found.getXMLDesc(), with_size=False))
            return True

    def _delete_disk_by_disk(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint of which some bitmaps are missing.

        libvirt deletes nothing if one disk lacks its bitmap, and forgetting the checkpoint would strand the other
        bitmaps, which cost the guest time at every write. So redefine it as a checkpoint of each disk in turn.
        """
        for target in checkpoint.disks:
            one = self.define(replace(checkpoint, disks={target: None}))
            unless((libvirt.VIR_ERR_INTERNAL_ERROR,), one.delete)
        rest = self._find(checkpoint.name)
        if rest is not None:
            rest.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def delete_bitmaps(self, name: str, run_id: str, targets: Sequence[str]) -> None:
        """Remove bitmaps of a run that belong to no checkpoint, intact or broken, by making them one first."""
        with self._vm.live(f"remove bitmap '{name}'"):
            self.define(Checkpoint(name, 0, domain_xml.description(run_id, ""), dict.fromkeys(targets), ""))
        self.delete(name)

    def redefine(self, xml: str) -> bool:
        """Redefine a checkpoint whose metadata libvirt lost, from its former XML. False: no disk can use it.

        libvirt inspects each bitmap. `get` then reports those that are missing or broken.
        """
        return self.give_back(domain_xml.parse_checkpoint(xml, with_size=False))

    def give_back(self, saved: Checkpoint) -> bool:
        """Do the same as `redefine`, from a Checkpoint."""
        with self._vm.live(f"define checkpoint '{saved.name}' again"):
            present = {disk.target for disk in domain_xml.parse_disks(self._vm.dom.XMLDesc(0))}
            covered = [target for target in saved.disks if target in present]
            if self.can_define(saved, covered):
                return True
            if len(covered) < 2 or not any([self.can_define(saved, [target]) for target in covered]):
                return False
            # Define it on all of them, so that a later deletion finds the broken bitmaps, too.
            self.define(replace(saved, disks=dict.fromkeys(covered)))
            return True

    def forget(self, name: str) -> None:
        """Undo `redefine`: the bitmaps remain."""
        with self._vm.ignoring_check(), self._vm.seam(f"forget checkpoint '{name}'"):
            found = self._find(name)
            if found is not None:
                found.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def can_define(self, checkpoint: Checkpoint, targets: Sequence[str]) -> bool:
        """Return whether libvirt could define the checkpoint on these disks. If so, it is now defined."""
        wanted = replace(checkpoint, disks=dict.fromkeys(targets))
        codes = (CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
        return bool(targets) and unless(codes, lambda: self.define(wanted, _REDEFINE_VALIDATE)) is not None

    def define(self, checkpoint: Checkpoint, flags: int = 0) -> Any:
        """Define a checkpoint over existing bitmaps. Raises libvirt's own errors."""
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        return self._vm.dom.checkpointCreateXML(domain_xml.redefinition_xml(checkpoint), flags)

    def has(self, name: str) -> bool:
        """Return whether a checkpoint of that name exists, whoever created it."""
        with self._vm.seam(f"look up checkpoint '{name}'"):
            return self._find(name) is not None

    def _find(self, name: str) -> Any:
        return unless((NO_CHECKPOINT,), lambda: self._vm.dom.checkpointLookupByName(name, 0))

    def adopt_bitmaps(self, name: str, run_id: str, targets: Iterable[str]) -> None:
        """Remove the bitmaps of a new checkpoint that libvirt could not store.

        libvirt forgets such a checkpoint but leaves its bitmaps, so no later one could have its name. Only for a name
        that nobody else can have chosen.
        """
        lost = Checkpoint(name, 0, domain_xml.description(run_id, ""), dict.fromkeys(targets), "")
        with self._vm.live("remove the bitmaps that libvirt lost sight of"):
            # Validation fails if there are none.
            unless((CHECKPOINT_INCONSISTENT,), lambda: self.define(lost, _REDEFINE_VALIDATE))

    def taken(self, name: str) -> errors.CheckpointExists:
        """Return the error for a checkpoint that should be created but already exists."""
        return errors.CheckpointExists(
            f"domain '{self._vm.name}' already has a checkpoint '{name}': choose another name"
        )

    def missing(self, name: str) -> errors.NoSuchCheckpoint:
        """Return the error for a checkpoint that does not exist; it lists those that do."""
        has = ", ".join(self.names()) or "none"
        return errors.NoSuchCheckpoint(f"domain '{self._vm.name}' has no checkpoint '{name}'; it has {has}")
