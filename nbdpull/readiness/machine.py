"""This machine: programs and bindings, space for scratch, what confines QEMU.

Must not know: libvirt, domains.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator

from ..core import errors, sizes, software
from ..nbd import storage_daemon
from ..pulling import scratch_watch
from .finding import BAD, WARN, Finding, bad, good

_PROGRAMS = (
    ("qemu-img", "qcow2 images at restore"),
    ("qemu-nbd", "qcow2 images at restore"),
    (storage_daemon.PROGRAM, "domains that are off and cannot be started"),
)
_ESCAPED = re.compile(r"\\([0-7]{3})")  # blanks and backslashes in the kernel's list of mounts


def programs() -> Iterator[Finding]:
    """Check the programs and libraries that nbdpull uses."""
    yield good("python", f"{sys.version.split()[0]} at {sys.executable}")
    yield _libnbd()
    for name, use in _PROGRAMS:
        path = shutil.which(name)
        if path:
            yield good(name, path)
        else:
            yield Finding(WARN, name, f"not installed; needed for {use}", f"install {software.PACKAGES[name]}")


def _libnbd() -> Finding:
    try:
        from ..nbd import libnbd
    except errors.MissingSoftware as error:
        return bad("libnbd's bindings", error)
    version = libnbd.library_version()
    if libnbd.tls_is_verified(version):
        return good("libnbd", version)
    return Finding(WARN, "libnbd", f"{version}: it has known gaps in verifying a TLS server's certificate "
                   "(CVE-2024-7383)",
                   "nothing for Unix sockets; for --tls: libnbd 1.18.5, 1.20.2 or later")  # fmt: skip


def scratch(folder: str) -> Finding:
    if not os.path.isdir(folder):
        advice = "create it, or choose another with --scratch-dir"
        return Finding(BAD, "scratch", f"{folder} is not a directory", advice, 9)
    free, kind = sizes.shown(shutil.disk_usage(folder).free), _file_system(folder)
    text = f"{folder}: {free} free on {kind}; what the guest overwrites during a pull goes there"
    try:
        scratch_watch.require_room(folder, scratch_watch.RESERVE)
    except errors.ScratchFull as error:
        advice = "free some space, or choose another directory with --scratch-dir"
        return Finding(BAD, "scratch", f"{text}; too little for a pull to start", advice, error.exit_code)
    if kind in ("tmpfs", "ramfs"):
        return Finding(WARN, "scratch", text, "this is host memory: choose a directory on a disk with --scratch-dir")
    if not os.stat(folder).st_mode & 0o001:
        return Finding(WARN, "scratch", text, f"QEMU's user may not be able to enter it: chmod o+x {folder}")
    return good("scratch", text)


def _file_system(folder: str) -> str:
    best = ("", "unknown")
    with open("/proc/self/mounts", errors="surrogateescape", newline="\n") as mounts:  # as os.fsdecode has names
        for line in mounts:
            _, escaped, kind = line.split(" ")[:3]
            where = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), escaped)
            if os.path.commonpath([os.path.realpath(folder), where]) == where and len(where) >= len(best[0]):
                best = (where, kind)
    return best[1]


def confinement() -> Iterator[Finding]:
    """Yield where QEMU may create its sockets."""
    if os.path.isdir("/sys/kernel/security/apparmor"):
        yield good("AppArmor", "on: QEMU makes sockets in /var/lib/libvirt/qemu/domain-ID-NAME/, where nbdpull puts "
                   "them; elsewhere only by a rule in /etc/apparmor.d/local/abstractions/libvirt-qemu")  # fmt: skip
    if os.path.exists("/sys/fs/selinux/enforce"):
        yield good("SELinux", "on: sockets can be in /tmp and /var/tmp; another directory needs a label that svirt_t "
                   "may write")  # fmt: skip
