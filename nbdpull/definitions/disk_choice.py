"""Which disks of a domain a pull takes, and why it leaves out the others.

Owns: what in a disk's definition rules it out, and the operator's warnings. Must not know: libvirt, how a disk is read,
where its changes start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from ..core import errors
from .domain_xml import Disk

_DRIVES = {"cdrom": "a CD-ROM drive", "floppy": "a floppy drive"}
# QEMU sends what the guest reads and writes there by an ioctl, and the filter that a backup puts on top of a disk has
# none, so each of them would fail (block/copy-before-write.c and hw/scsi/scsi-disk.c of QEMU 10.2; not tried).
_PASSED_THROUGH = "is passed through to the guest (device='lun'): during a backup its reads and writes would fail"
_SHAREABLE = (
    "is shareable: other domains may write to it at any time, and while one has it open, no backup job can start "
    "(libvirt before 10.8 crashes at the attempt)"
)

ENCRYPTED = "is encrypted on its host; the store and the scratch directory hold its data unencrypted"


class Vm(Protocol):
    """The part of a domain that is used here."""

    @property
    def name(self) -> str: ...

    def disks(self) -> list[Disk]: ...

    def looked_at(self, disks: Iterable[Disk]) -> list[Disk]: ...


def chosen(vm: Vm, wanted: Sequence[str] = (), exclude: Collection[str] = ()) -> tuple[list[Disk], list[str]]:
    """Return ([Disk, …], warnings): the requested disks, or all that contain the guest's writable data and can be
    pulled.

    Only these are inspected. NoSuchDisk, UnfitDisk, NothingToBackUp: before anything is started.
    """
    disks = {disk.target: disk for disk in vm.disks()}
    for name in [*wanted, *exclude]:
        if name not in disks:
            raise errors.NoSuchDisk(f"domain {vm.name} has no disk {name}; it has: {', '.join(disks) or 'none'}")
    for name in wanted:
        _require_fit(vm, disks[name])
    names = list(dict.fromkeys(wanted)) or [name for name, disk in disks.items() if not why_left_out(disk)]
    found = [disks[name] for name in names if name not in exclude]
    if not found:
        raise errors.NothingToBackUp(
            f"domain {vm.name} has no disk left to back up; see --disk and --exclude (it has: {', '.join(disks)})"
        )
    missed = [] if wanted else [disk for name, disk in disks.items() if name not in exclude and is_missed(disk)]
    warnings = [f"disk {disk.target} is left out because it {_obstacle(disk)}; --exclude {disk.target} silences this"
            for disk in missed]  # fmt: skip
    return vm.looked_at(found), warnings + [f"disk {disk.target} {ENCRYPTED}" for disk in found if disk.encrypted]


def why_left_out(disk: Disk) -> str:
    """Return why a disk is not pulled unless it is named, as the end of a sentence; "" if it is pulled."""
    if disk.device in _DRIVES:
        return f"is {_DRIVES[disk.device]}"
    return _obstacle(disk) or ("is read-only" if disk.readonly else "")


def is_missed(disk: Disk) -> bool:
    """Return whether the guest can write to a disk that is left out: no point contains what it wrote."""
    return not (disk.empty or disk.readonly or disk.device in _DRIVES) and bool(why_left_out(disk))


def _require_fit(vm: Vm, disk: Disk) -> None:
    if disk.empty:
        raise errors.NoSuchDisk(f"disk {disk.target} of domain {vm.name} has no medium; leave it out")
    obstacle = _obstacle(disk)
    if obstacle:
        raise errors.UnfitDisk(f"disk {disk.target} of domain {vm.name} cannot be pulled: it {obstacle}; leave it out")


def _obstacle(disk: Disk) -> str:
    """Return why a disk can never be pulled, as the end of a sentence; "" if it can."""
    if disk.empty:
        return "has no medium"
    if disk.transient:
        return "is transient, which libvirt cannot back up"
    if disk.type == "vhostuser" or disk.bus == "sd":
        return f"is {'of type vhostuser' if disk.type == 'vhostuser' else 'on bus sd'}, which libvirt cannot back up"
    if disk.device == "lun":
        return _PASSED_THROUGH
    return _SHAREABLE if disk.shareable else ""
