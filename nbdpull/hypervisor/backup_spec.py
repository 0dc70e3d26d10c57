"""What one backup should be, and how QEMU exports it.

Owns: which specifications are impossible, and the default names of a run's files. Must not know: the domain, or whether
such a backup is running.
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
    """What the caller requests.

    run_id: unique text of this run, of letters, digits, dots and dashes, part of every name that we choose; disks:
    target -> base checkpoint, None = full; scratch_dir: a directory on the hypervisor that QEMU's user can enter;
    checkpoint: name of the one to create, on checkpoint_disks; socket: None = Backups.socket_path; quiesce,
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
        """Return the job that libvirt should start. socket: path of its socket, None if it listens on `tcp`."""
        disks = {
            target: domain_xml.disk_backup(self.run_id, target, base, self.scratch_dir)
            for target, base in self.disks.items()
        }
        return Backup("pull", socket, disks) if socket else Backup("pull", None, disks, self.tcp, self.tls)

    def checkpoint_xml(self) -> Optional[str]:
        """Return the XML of the checkpoint to create with the job, None if no checkpoint is requested."""
        if self.checkpoint is None:
            return None
        description = domain_xml.description(self.run_id, self.description)
        return domain_xml.checkpoint_xml(self.checkpoint, description, self.checkpoint_disks)

    def require_possible(self, socket: Optional[str]) -> None:
        """Raise UsageError if the specification contradicts itself or contains an impossible name. socket: as for
        `job`."""
        if self.tcp and self.socket:
            raise errors.UsageError("--socket and --nbd cannot be combined")
        if self.tls and not self.tcp:
            raise errors.UsageError("TLS is for TCP: use it with --nbd")
        for path in filter(None, (socket, self.scratch_dir)):
            if not definition.can_name(path):
                raise errors.UsageError(f"{path!r} cannot be written into libvirt's XML: choose another path")
        if socket and not (os.path.isabs(socket) and unix_socket.fits(socket)):
            raise errors.UsageError(f"socket {socket}: give an absolute path of at most {unix_socket.PATH_MAX} bytes")
        if self.checkpoint is not None:
            require_name(self.checkpoint)


def require_name(checkpoint: str) -> None:
    """Raise UsageError if this cannot be the name of a checkpoint."""
    if not domain_xml.CHECKPOINT_NAME.fullmatch(checkpoint):
        raise errors.UsageError(
            f"checkpoint name '{checkpoint}': use letters, digits, '_', '-' and, except at the start, '.'"
        )


class Export(NamedTuple):
    """The NBD export of a disk. bitmap: the name in its context qemu:dirty-bitmap:…, None = full."""

    name: str
    bitmap: Optional[str]


def socket_name(run_id: str) -> str:
    """Return the default name of a run's socket."""
    return f"nbdpull-{run_id}.sock"
