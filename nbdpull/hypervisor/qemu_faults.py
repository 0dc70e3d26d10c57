"""Which QEMUs a client of their NBD server can crash, with the guest, and how.

Owns: the versions; docs/faults.md has the details. Distributions have patched older versions as well; here only the
version number counts. Must not know: libvirt, or how a crash is prevented (see socket_keeper.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional, Protocol

from ..definitions.domain_xml import Disk

Version = Optional[tuple[int, ...]]  # None: unknown

# Pairs: the first version, and the first one without the fault.
Ranges = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
_HANG_UP: Ranges = (((0,), (8, 2, 3)),)
_TLS_HANDSHAKE: Ranges = ((8, 0, 0), (8, 2, 4)), ((9, 0, 0), (9, 0, 1))
_TLS_IN_THREAD: Ranges = ((8, 2, 0), (8, 2, 5)), ((9, 0, 0), (9, 0, 1))


def hang_up(version: Version) -> bool:
    """Return whether a client of a disk in an I/O thread crashes QEMU by hanging up. An unknown version may do so."""
    return version is None or _is_in(version, _HANG_UP)


def pause(version: Version) -> bool:
    """Return whether pausing or resetting the guest can crash QEMU while a virtio-blk disk in an I/O thread is read.

    The disk then leaves the thread; one on a SCSI controller stays. The same versions fixed it.
    """
    return _is_in(version, _HANG_UP)


def tls_handshake(version: Version) -> bool:
    """Return whether QEMU can crash if anything reads the disks' state (virsh domstats, the end of a job) during a
    client's TLS handshake."""
    return _is_in(version, _TLS_HANDSHAKE)


def tls_in_thread(version: Version) -> bool:
    """Return whether QEMU can crash when a disk in an I/O thread is read over TLS."""
    return _is_in(version, _TLS_IN_THREAD)


def _is_in(version: Version, ranges: Ranges) -> bool:
    return version is not None and any(first <= version < mended for first, mended in ranges)


def moving(disks: Iterable[Disk]) -> list[str]:
    """Return the targets of the Disks that `pause` is about."""
    return [disk.target for disk in disks if disk.iothread and disk.bus == "virtio"]


class Pulled(Protocol):
    """The part of a Domain that is used here."""

    @property
    def reads_images(self) -> bool: ...

    @property
    def likely_version(self) -> tuple[int, ...]: ...


def warnings(vm: Pulled, disks: Iterable[Disk], with_tls: bool) -> list[str]:
    """Return what a pull of these Disks can do to its guest and nbdpull cannot prevent: one line each."""
    threaded = [] if vm.reads_images else moving(disks)
    if not (threaded or with_tls):
        return []
    version = vm.likely_version
    named = f"QEMU {'.'.join(map(str, version))} may crash, with its guest,"
    texts = []
    if threaded and pause(version):
        texts.append(f"disk {', '.join(threaded)}: {named} if the guest is paused or rebooted during the pull (a disk "
                    "in an I/O thread)")  # fmt: skip
    if with_tls and tls_handshake(version):
        texts.append(f"--tls: {named} if anything queries its disks (virsh domstats) while a connection is being made; "
                    "reach its socket through ssh instead")  # fmt: skip
    return texts
