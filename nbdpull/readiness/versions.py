"""The versions of libvirt and QEMU: what they support, what crashes them, what an upgrade would bring.

Must not know: how a version is obtained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..hypervisor import qemu_faults
from .finding import BAD, WARN, Finding, good

_CHECKPOINTS, _BACKUPS = ((7, 6), (6, 1)), ((7, 2), (4, 2))  # of libvirt and QEMU, the first with each
# What an upgrade brings to pulls; docs/faults.md has the details.
_LATER = (
    ("QEMU", (8, 2, 3), "resumes a killed pull of disks in I/O threads, and survives clients of them that disconnect"),
    ("libvirt", (10, 8), "does not crash if QEMU refuses one of several disks"),
    ("libvirt", (10, 10), "can keep bitmaps for a raw disk, with a data file"),
    ("libvirt", (11, 10), "lets a guest that shuts down wait for the end of a pull"),
)


def found(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Check the versions: {"libvirt": "9.0.0", "qemu": "7.2.22"}."""
    libvirt, qemu = (tuple(map(int, versions[name].split("."))) for name in ("libvirt", "qemu"))
    yield _incremental(libvirt, qemu, f"libvirt {versions['libvirt']}, QEMU {versions['qemu']}")
    if qemu_faults.tls_handshake(qemu):
        yield Finding(WARN, "TLS", f"QEMU {versions['qemu']} may crash, with its guest, while an NBD client connects "
                      "by TLS", "omit --tls and reach its socket through ssh, see --nbd; 8.2.4, 9.0.1 and 9.1 are "
                      "fixed")  # fmt: skip
    here = {"libvirt": libvirt, "QEMU": qemu}
    for name, since, what in _LATER:
        if here[name] < since:
            yield good("upgrade", f"{name} {'.'.join(map(str, since))} {what}")


def _incremental(libvirt: tuple[int, ...], qemu: tuple[int, ...], text: str) -> Finding:
    if libvirt >= _CHECKPOINTS[0] and qemu >= _CHECKPOINTS[1]:
        return good("incremental", text)
    if libvirt >= _BACKUPS[0] and qemu >= _BACKUPS[1]:
        return Finding(WARN, "incremental", f"{text}: full pulls only", "libvirt 7.6 and QEMU 6.1 have checkpoints")
    return Finding(BAD, "incremental", f"{text}: no backups", "upgrade to libvirt 7.6 and QEMU 6.1", 6)
