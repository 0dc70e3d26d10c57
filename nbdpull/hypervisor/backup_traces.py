"""What the run of a BackupSpec creates in a domain (its backup job, its checkpoint, its files), and its removal.

Owns: how each is proved to be that run's, whether the run is alive or dead: by the run's id, and by nothing else. What
somebody else created under the same name remains. Must not know: how a job starts, or what reads from it.
"""

from __future__ import annotations

import contextlib
import os
import time

from ..core import errors
from ..definitions.domain_xml import Backup
from .backup_spec import BackupSpec
from .bindings import libvirt
from .checkpoints import Checkpoints
from .clean_up import attempt
from .handle import Handle
from .jobs import BACKUP, Jobs
from .libvirt_error import unless

# An abort may wait 30 s in the daemon for another call on the same domain. We then try it again.
END_TIMEOUT = 120  # seconds
ASK_AGAIN = 2  # seconds: a daemon that restarts meanwhile forgets the request; asking twice does no harm

# A call on the same domain was in the way; or there is nothing left to end.
_TRY_AGAIN = (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_OPERATION_INVALID)


class Traces:
    """The traces of one run in one domain.

    spec: what the run was meant to be; asked: the job that libvirt was, or will be, asked to start.
    """

    def __init__(self, vm: Handle, jobs: Jobs, checkpoints: Checkpoints, spec: BackupSpec, asked: Backup):
        self._vm, self._jobs, self._checkpoints = vm, jobs, checkpoints
        self.spec, self.asked = spec, asked

    @property
    def scratch_files(self) -> list[str]:
        """Paths on the hypervisor's machine."""
        return [disk.scratch for disk in self.asked.disks.values() if disk.scratch]

    def has_job(self) -> bool:
        """Return whether the domain's backup is this run's."""
        backup = self._jobs.backup()
        return backup is not None and backup.run_id == self.spec.run_id

    def has_checkpoint(self) -> bool:
        """Return whether the run's checkpoint exists and is its own; True if none is requested."""
        name = self.spec.checkpoint
        return name is None or (self._checkpoints.has(name) and self._checkpoints.get(name).run_id == self.spec.run_id)

    def is_under_way(self) -> bool:
        """Return whether the domain's job is exactly the requested one, including its checkpoint."""
        return self._jobs.operation() == BACKUP and self._jobs.backup() == self.asked and self.has_checkpoint()

    def found(self) -> list[str]:
        """List what exists of the run, one text each."""
        found = ["backup job"] if self.has_job() else []
        if self.spec.checkpoint and self.has_checkpoint():
            found.append(f"checkpoint {self.spec.checkpoint}")
        return found + [f"file {path}" for path in self._files() if os.path.lexists(path)]

    def end_job(self) -> None:
        """End the run's job, if it exists, and wait until it is gone: abortJob only requests the end."""
        deadline, pause, ask_at = time.monotonic() + END_TIMEOUT, 0.005, 0.0
        while self.has_job():
            if time.monotonic() > deadline:
                raise errors.HypervisorError(f"domain '{self._vm.name}': the backup job did not end in "
                                             f"{END_TIMEOUT} s: end it with virsh domjobabort")  # fmt: skip
            if time.monotonic() >= ask_at and self._abort():
                ask_at = time.monotonic() + ASK_AGAIN
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _abort(self) -> bool:
        """Request the end of the run's job, and of no other. False: nothing was done, check again."""
        try:
            operation = self._jobs.operation()
            with self._vm.live("end the backup job"):
                if operation == BACKUP:
                    return unless(_TRY_AGAIN, self._vm.dom.abortJob) is not None
                # A start that failed late leaves a backup that is no longer a job. Only its block jobs can be ended.
                return operation is None and self._abort_block_jobs()
        except (errors.DomainNotRunning, errors.DomainStopped):
            return False

    def _abort_block_jobs(self) -> bool:
        dom = self._vm.dom
        for target in self.asked.disks:
            if dom.blockJobInfo(target).get("type") == libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP:
                unless(_TRY_AGAIN, lambda: dom.blockJobAbort(target))  # noqa: B023
        return True

    def remove(self, *, job_ended: bool = False, may_begin_yet: bool = False, lost_bitmaps: bool = False) -> list[str]:
        """Remove all traces; return what could not be removed, one text each.

        job_ended: there is no job to end; may_begin_yet: libvirt was asked to start the job and did not answer;
        lost_bitmaps: there may be bitmaps without a checkpoint.
        """
        left: list[str] = ["the backup job may still start, because libvirt did not answer"] if may_begin_yet else []
        job = f"the backup job, with its scratch in {self.spec.scratch_dir},"
        ended = job_ended or attempt(self.end_job, job, left)
        attempt(lambda: self._delete_checkpoint(lost_bitmaps), f"checkpoint '{self.spec.checkpoint}'", left)
        if ended:  # else QEMU still uses the files
            left += [f"file {path} is left behind" for path in self._files() if not _removed(path)]
        return left

    def clear(self) -> list[str]:
        """Remove all traces of a dead run, of which it is unknown how far it got; return as `remove` does."""
        name = self.spec.checkpoint
        return self.remove(lost_bitmaps=bool(name and self._vm.active and not self._checkpoints.has(name)))

    def _delete_checkpoint(self, lost_bitmaps: bool) -> None:
        """Delete the checkpoint if it is ours: a start also fails because another checkpoint has the name."""
        name = self.spec.checkpoint
        if name is None:
            return
        if lost_bitmaps and self.spec.run_id in name:
            self._checkpoints.adopt_bitmaps(name, self.spec.run_id, self.spec.checkpoint_disks)
        if self.has_checkpoint():
            self._checkpoints.delete(name)

    def _files(self) -> list[str]:
        """Return our files on this machine. libvirt and QEMU remove them, unless they were killed."""
        if self._vm.is_remote:
            return []
        return [self.asked.socket, *self.scratch_files] if self.asked.socket else self.scratch_files


def _removed(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.unlink(path)
    return not os.path.lexists(path)
