"""What one backup is to be, and how QEMU shows it.

Owns: what of a specification cannot be, and what the names of a run's files are where nobody names others. Must not
know: the domain, or whether such a backup runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ..core import errors, unix_socket
from ..core.choices import FREEZE_TIMEOUT, SHARED_DIR, Quiesce
from ..definitions import definition, domain_xml
from ..definitions.domain_xml import Backup, Listen


@dataclass(frozen=True)
class BackupSpec:
    """What is asked for.

    run_id: unique text of this run, of letters, digits, dots and dashes, put into every name that we give; disks:
    target -> base checkpoint, None = full; scratch_dir: a directory of the hypervisor that QEMU's user can enter;
    checkpoint: name of the one to make, over checkpoint_disks; socket: None = Backups.socket_path; quiesce,
    freeze_timeout: see domain_freeze.
    """

    run_id: str
    disks: Mapping[str, Optional[str]]
    checkpoint: Optional[str] = None
    checkpoint_disks: Sequence[str] = ()
    description: str = ""
    socket: Optional[str] = None
    scratch_dir: str = SHARED_DIR
    tcp: Optional[Listen] = None
    tls: bool = False
    quiesce: str = Quiesce.NEVER
    freeze_timeout: float = FREEZE_TIMEOUT

    def job(self, socket: Optional[str]) -> Backup:
        """The job that libvirt is to begin, at a socket, None where it listens at `tcp`."""
        disks = {
            target: domain_xml.disk_backup(self.run_id, target, base, self.scratch_dir)
            for target, base in self.disks.items()
        }
        return Backup("pull", socket, disks) if socket else Backup("pull", None, disks, self.tcp, self.tls)

    def checkpoint_xml(self) -> Optional[str]:
        """Of the checkpoint to be made with it, None where there is to be none."""
        if self.checkpoint is None:
            return None
        description = domain_xml.description(self.run_id, self.description)
        return domain_xml.checkpoint_xml(self.checkpoint, description, self.checkpoint_disks)

    def require_possible(self, socket: Optional[str]) -> None:
        """Raises UsageError where it contradicts itself, or names what cannot be named; socket: as of `job`."""
        if self.tcp and self.socket:
            raise errors.UsageError("--socket and --nbd exclude each other")
        if self.tls and not self.tcp:
            raise errors.UsageError("TLS is for TCP: use it with --nbd")
        for path in filter(None, (socket, self.scratch_dir)):
            if not definition.can_name(path):
                raise errors.UsageError(f"{path!r} cannot be written into libvirt's XML: name another path")
        if socket and not (os.path.isabs(socket) and unix_socket.fits(socket)):
            raise errors.UsageError(f"socket {socket}: give an absolute path of at most {unix_socket.PATH_MAX} bytes")
        if self.checkpoint is not None:
            require_name(self.checkpoint)


def require_name(checkpoint: str) -> None:
    """UsageError where none can be called that."""
    if not domain_xml.CHECKPOINT_NAME.fullmatch(checkpoint):
        raise errors.UsageError(
            f"checkpoint name '{checkpoint}': use letters, digits, '_', '-' and, except at the start, '.'"
        )


class Export(NamedTuple):
    """NBD export of a disk; bitmap: of its context qemu:dirty-bitmap:…, None = full."""

    name: str
    bitmap: Optional[str]


def socket_name(run_id: str) -> str:
    """What a run's socket is called where nobody named another one."""
    return f"nbdpull-{run_id}.sock"
