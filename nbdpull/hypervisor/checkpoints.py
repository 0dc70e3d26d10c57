"""The checkpoints of a domain, and the bitmaps in its images that they own.

Owns: what is to be repaired of them: their order, which parentage does not tell, a bitmap that is gone or broken,
metadata that was lost, a checkpoint that could not be stored. Must not know: which checkpoint is whose, or what a pull
wants with it.
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
    """Those of one domain."""

    def __init__(self, vm: Handle):
        self._vm = vm

    def names(self) -> list[str]:
        """Names of all checkpoints, oldest first; of one second parents first."""
        return [each.name for each in self.known()]

    def known(self) -> list[Checkpoint]:
        """The same as Checkpoints, whose bitmaps are not looked at.

        Parentage alone does not tell their order: one that was redefined, or made after a failed begin, is nobody's
        child.
        """
        with self._vm.seam("list the checkpoints"):
            found = self._vm.dom.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
            xmls = [each.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN) for each in found]
        parsed = [domain_xml.parse_checkpoint(xml, with_size=False) for xml in xmls]
        return sorted(parsed, key=lambda each: each.creation_time)

    def get(self, name: str) -> Checkpoint:
        """Raises NoSuchCheckpoint, naming those that exist. On a running domain each bitmap is looked at."""
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
        """For a checkpoint whose bitmaps QEMU cannot merge, which libvirt reports for all disks at once: whether each
        can be a base. If a disk was resized after a snapshot, the bitmap of the lower layer kept its size."""
        backing = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
        ((_, stats),) = self._vm.connection.domainListGetStats([self._vm.dom], libvirt.VIR_DOMAIN_STATS_BLOCK, backing)
        sizes: dict[str, set[int]] = {}
        for number in range(stats.get("block.count", 0)):
            layers = sizes.setdefault(stats[f"block.{number}.name"], set())
            layers.add(stats.get(f"block.{number}.capacity", -1))
        unequal = [target for target in targets if len(sizes.get(target, ())) != 1]
        return {target: bool(unequal) and target not in unequal for target in targets}  # in doubt none

    def delete(self, name: str) -> bool:
        """Deletes it with its bitmaps; False if there is none of that name. DomainNotRunning: it needs QEMU."""
        with self._vm.live(f"delete checkpoint '{name}'"):
            found = self._find(name)
            if found is None:
                return False
            if unless((libvirt.VIR_ERR_INTERNAL_ERROR,), found.delete) is None:
                self._delete_disk_by_disk(domain_xml.parse_checkpoint(found.getXMLDesc(), with_size=False))
            return True

    def _delete_disk_by_disk(self, checkpoint: Checkpoint) -> None:
        """libvirt deletes nothing where one disk lacks its bitmap, and forgetting it would strand the other bitmaps,
        which cost the guest time at every write. So it is made a checkpoint of each disk in turn."""
        for target in checkpoint.disks:
            one = self.define(replace(checkpoint, disks={target: None}))
            unless((libvirt.VIR_ERR_INTERNAL_ERROR,), one.delete)
        rest = self._find(checkpoint.name)
        if rest is not None:
            rest.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def delete_bitmaps(self, name: str, run_id: str, targets: Sequence[str]) -> None:
        """Removes bitmaps of a run that no checkpoint owns, whole or broken: they are made one first."""
        with self._vm.live(f"remove bitmap '{name}'"):
            self.define(Checkpoint(name, 0, domain_xml.description(run_id, ""), dict.fromkeys(targets), ""))
        self.delete(name)

    def redefine(self, xml: str) -> bool:
        """Redefines a checkpoint whose metadata libvirt lost, from its former XML; False = no disk can use it.

        libvirt looks at each bitmap; one that is missing or broken is told by `get` afterwards.
        """
        return self.give_back(domain_xml.parse_checkpoint(xml, with_size=False))

    def give_back(self, saved: Checkpoint) -> bool:
        """The same of a Checkpoint."""
        with self._vm.live(f"define checkpoint '{saved.name}' again"):
            present = {disk.target for disk in domain_xml.parse_disks(self._vm.dom.XMLDesc(0))}
            covered = [target for target in saved.disks if target in present]
            if self.can_define(saved, covered):
                return True
            if len(covered) < 2 or not any([self.can_define(saved, [target]) for target in covered]):
                return False
            # All of them, so that a later deletion finds the broken bitmaps, too.
            self.define(replace(saved, disks=dict.fromkeys(covered)))
            return True

    def forget(self, name: str) -> None:
        """Takes back what `redefine` did: the bitmaps stay."""
        with self._vm.ignoring_check(), self._vm.seam(f"forget checkpoint '{name}'"):
            found = self._find(name)
            if found is not None:
                found.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def can_define(self, checkpoint: Checkpoint, targets: Sequence[str]) -> bool:
        """Whether libvirt could define it over these disks, by which it then has."""
        wanted = replace(checkpoint, disks=dict.fromkeys(targets))
        codes = (CHECKPOINT_INCONSISTENT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
        return bool(targets) and unless(codes, lambda: self.define(wanted, _REDEFINE_VALIDATE)) is not None

    def define(self, checkpoint: Checkpoint, flags: int = 0) -> Any:
        """Defines a checkpoint over existing bitmaps. Raises its own errors."""
        flags |= libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        return self._vm.dom.checkpointCreateXML(domain_xml.redefinition_xml(checkpoint), flags)

    def has(self, name: str) -> bool:
        """Whether there is one of that name, whoever made it."""
        with self._vm.seam(f"look up checkpoint '{name}'"):
            return self._find(name) is not None

    def _find(self, name: str) -> Any:
        return unless((NO_CHECKPOINT,), lambda: self._vm.dom.checkpointLookupByName(name, 0))

    def adopt_bitmaps(self, name: str, run_id: str, targets: Iterable[str]) -> None:
        """Where libvirt could not store a new checkpoint it forgets it, with the bitmaps made, and no later one could
        have its name. Only for a name that nobody else can have given."""
        lost = Checkpoint(name, 0, domain_xml.description(run_id, ""), dict.fromkeys(targets), "")
        with self._vm.live("remove the bitmaps that libvirt lost sight of"):
            # Validation fails where there are none.
            unless((CHECKPOINT_INCONSISTENT,), lambda: self.define(lost, _REDEFINE_VALIDATE))

    def taken(self, name: str) -> errors.CheckpointExists:
        """The error for one that is to be made, and is there."""
        return errors.CheckpointExists(
            f"domain '{self._vm.name}' already has a checkpoint '{name}': choose another name"
        )

    def missing(self, name: str) -> errors.NoSuchCheckpoint:
        """The error for one that is not there, which names those that are."""
        has = ", ".join(self.names()) or "none"
        return errors.NoSuchCheckpoint(f"domain '{self._vm.name}' has no checkpoint '{name}'; it has {has}")
