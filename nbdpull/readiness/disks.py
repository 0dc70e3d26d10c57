"""The disks of a domain, and what else of it contains data: which of them are pulled, and how.

Must not know: checkpoints, and what a point already contains.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..core import errors, sizes
from ..definitions import disk_choice, omissions
from ..definitions.domain_xml import Disk
from ..hypervisor import qemu_faults
from ..hypervisor.domain import Domain
from .finding import GOOD, WARN, Finding, bad, good


def found(vm: Domain) -> Iterator[Finding]:
    """Yield for each disk whether it is pulled, and whether incremental pulls are possible."""
    for disk in vm.disks():
        subject, text = f"disk {disk.target}", f"{disk.format} {disk.source}"
        left_out = disk_choice.why_left_out(disk)
        if disk_choice.is_missed(disk):
            yield Finding(WARN, subject, f"{text}: not pulled because it {left_out}", "back it up by other means")
        elif left_out:
            yield good(subject, f"{text}: not pulled because it {left_out}")
        else:
            yield _pulled(vm, disk)
            yield from _encryption(disk)


def _pulled(vm: Domain, disk: Disk) -> Finding:
    subject = f"disk {disk.target}"
    try:
        (disk,) = vm.looked_at([disk])
    except errors.Unsupported as error:  # for an image that is read without QEMU
        return Finding(WARN, subject, str(error), "none, as long as the domain can be started for a pull")
    except errors.Failure as error:
        return bad(subject, error)
    text = f"{disk.format} {disk.source}, {sizes.shown(disk.size or 0)}"
    if disk.format != "qcow2":
        return Finding(WARN, subject, f"{text}: full pulls only", "convert it to qcow2 for incremental pulls")
    if disk.bitmaps is False:
        return Finding(WARN, subject, f"{text}: qcow2 version 2, full pulls only",
                       f"with the domain off: qemu-img amend -o compat=1.1 {disk.source}")  # fmt: skip
    return good(subject, f"{text}: full and incremental")


def _encryption(disk: Disk) -> Iterator[Finding]:
    if disk.encrypted:
        yield Finding(WARN, f"encryption of {disk.target}", f"the disk {disk_choice.ENCRYPTED}",
                      "keep the store and --scratch-dir where only you can read them")  # fmt: skip


def other_data(vm: Domain) -> Iterator[Finding]:
    """Yield what contains data of the guest and is not a disk."""
    names = [disk.target for disk in vm.disks()]
    for each in omissions.found(vm.domain_xml(), vm.live_xml(), names):
        text = f"{f'{each.path}: ' if each.path else ''}not pulled because it {each.why}"
        yield Finding(WARN if each.missed else GOOD, each.what, text,
                      "back it up by other means" if each.missed else "")  # fmt: skip


def in_threads(vm: Domain) -> Iterator[Finding]:
    """Yield what can crash the QEMU of a domain because some of its disks are in I/O threads."""
    threaded = [disk for disk in vm.disks() if disk.iothread]
    if not threaded:
        return
    version = vm.seen_version
    targets, shown = ", ".join(disk.target for disk in threaded), ".".join(map(str, version))
    if qemu_faults.hang_up(version):
        yield Finding(WARN, "iothreads", f"disk {targets}: QEMU {shown} crashes, with its guest, when an "
                      "NBD client of such a disk disconnects; nbdpull lets QEMU disconnect first, even if it is killed",
                      "use no other NBD client on a backup of this domain; QEMU 9.0 is fixed")  # fmt: skip
    elif qemu_faults.tls_in_thread(version):
        yield Finding(WARN, "iothreads", f"disk {targets}: QEMU {shown} crashes, with its guest, when such a disk is "
                      "read over TLS, which nbdpull refuses",
                      "do not use --tls; QEMU 9.0.1 and 8.2.5 are fixed")  # fmt: skip
    moving = qemu_faults.moving(threaded)
    if moving and qemu_faults.pause(version):
        yield Finding(WARN, "pause or reset", f"disk {', '.join(moving)}: QEMU {shown} may crash, with its guest, if "
                      "the guest is paused or rebooted while an NBD client reads such a disk",
                      "do neither during a pull; QEMU 9.0 and 8.2.3 are fixed")  # fmt: skip
