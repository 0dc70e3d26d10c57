"""The job of a domain: what it is, who started it, and whether it is in the way.

Owns: libvirt's numbers of operations, and the two sources about a backup: the current job, and the backup that may
exist without being the current job. Must not know: how a job is started or ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from ..core import errors
from ..definitions import domain_xml
from ..definitions.domain_xml import Backup
from .bindings import libvirt
from .handle import Handle
from .libvirt_error import NO_BACKUP, unless

BACKUP = 9  # of operation()
_OPERATIONS = ("unknown job", "start", "save", "restore", "incoming migration", "outgoing migration", "snapshot",
               "snapshot revert", "dump", "backup", "snapshot deletion")  # fmt: skip


class Jobs:
    """The jobs of one domain."""

    def __init__(self, vm: Handle):
        self._vm = vm

    def require_idle(self) -> None:
        """Raise Busy, naming the job, if one is running. libvirt would wait 30 s for it, and then not name it.

        A backup can exist without being the current job: while it ends, or if its start failed half-way.
        """
        operation, backup = self.operation(), self.backup()
        if backup:
            raise errors.Busy(f"domain '{self._vm.name}' already has a backup job, {_owner(backup)}: "
                              f"{_way_out(self._vm.name, backup)}")  # fmt: skip
        if operation is not None:
            job = _OPERATIONS[operation] if operation < len(_OPERATIONS) else _OPERATIONS[0]
            raise errors.Busy(f"domain '{self._vm.name}' is busy with a job ({job}): try again when it has ended")

    def require_no_lost_job(self) -> None:
        """Raise JobStuck if libvirt reserves the domain for a job that it no longer knows."""
        if self._vm.active:
            self.operation()

    def require_no_foreign_job(self) -> None:
        """Raise Busy as require_idle does, except for a backup of nbdpull, which may belong to a dead run."""
        backup = self.backup()
        if backup is None or not backup.run_id:
            self.require_idle()

    def backup(self) -> Optional[Backup]:
        """Return the running backup, whoever started it (see Backup.run_id), or None."""
        with self._vm.seam("look for a backup job"):
            xml = unless((NO_BACKUP,), lambda: self._vm.dom.backupGetXMLDesc(0))
        return domain_xml.parse_backup(xml) if xml else None

    def require_no_block_job(self, targets: Iterable[str]) -> None:
        """Raise Busy if a disk has a block job, whoever started it."""
        with self._vm.live("look for block jobs"):
            for target in targets:
                if self._vm.dom.blockJobInfo(target):
                    raise errors.Busy(f"disk {target} of domain '{self._vm.name}' has a block job: see virsh blockjob, "
                                      "try again when it has ended")  # fmt: skip

    def operation(self) -> Optional[int]:
        """Return the operation number of the domain's current job, None without a job. JobStuck."""
        with self._vm.live("look for a job"):
            try:
                stats = self._vm.dom.jobStats(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and self._has_lost_job():
                    raise errors.JobStuck(
                        f"domain '{self._vm.name}': libvirt lost a backup job, because its daemon was killed while it "
                        "started, and accepts no other: shut the domain down, restart the daemon, then start the domain"
                    ) from error
                raise
        return stats.get("operation", 0) if stats.get("type") else None

    def _has_lost_job(self) -> bool:
        """Return whether a running domain has a job without data.

        Such a job cannot be ended, a restart of the daemon alone does not make it forget the job, and without a restart
        the domain cannot be started any more (libvirt 9.0).
        """
        return bool(self._vm.dom.isActive()) and unless((NO_BACKUP,), lambda: self._vm.dom.backupGetXMLDesc(0)) is None


def _owner(backup: Backup) -> str:
    if backup.run_id:
        return f"started by nbdpull run {backup.run_id}"
    where = backup.socket or (backup.tcp and "{}:{}".format(*backup.tcp))
    return f"not started by nbdpull ({backup.mode}, NBD server at {where})" if where else "not started by nbdpull"


def _way_out(name: str, backup: Backup) -> str:
    if backup.run_id:
        return (
            f"wait until it ends; if it was killed, the next pull resumes or removes it, or nbdpull cleanup {name} does"
        )
    return f"wait until it ends, or end it with virsh domjobabort {name}"
