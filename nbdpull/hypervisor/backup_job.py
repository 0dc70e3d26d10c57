"""One running pull backup, from its start to its end.

Owns: how the job starts, the check that the started job is the requested one, and the check that it lasted until the
last read. Whatever exception ends the run early, nothing of the run is left behind. Must not know: what reads from the
exports, or how a guest is frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Optional

from ..core import errors
from ..definitions import domain_xml
from ..definitions.domain_xml import Checkpoint
from . import domain_freeze
from .backup_spec import Export
from .backup_traces import Traces
from .bindings import libvirt
from .checkpoints import Checkpoints
from .clean_up import leave
from .handle import Handle
from .jobs import BACKUP, Jobs
from .libvirt_error import NO_CHECKPOINT, code_of, is_unanswered, unless

_COMPLETED, _KEEP_COMPLETED, _TYPE_COMPLETED = 1, 2, 3
_PRESERVE_SHUTDOWN, OLDEST_WITH_PRESERVE = 2, 11_010_000


class Job:
    """A running backup job, made by Backups.

    socket: path of QEMU's NBD socket, "" if it listens on a port; exports: target -> Export; checkpoint: the checkpoint
    created with the job, or None; freeze: the outcome of the guest's freeze.
    """

    def __init__(self, vm: Handle, jobs: Jobs, checkpoints: Checkpoints, traces: Traces):
        self._vm, self._jobs, self._checkpoints, self._traces = vm, jobs, checkpoints, traces
        self._spec = traces.spec
        self._completed: dict[str, Any] = {}
        self._failed_with: Optional[int] = None  # libvirt's error code from starting the job
        self._asked_to_begin = self._may_begin_yet = False
        self.socket: str = traces.asked.socket or ""
        self.exports = {target: Export(disk.export, disk.bitmap) for target, disk in traces.asked.disks.items()}
        self.checkpoint: Optional[Checkpoint] = None
        self.finished = False
        self.freeze = domain_freeze.Freeze(vm.dom, vm.uri, self._spec.quiesce, self._spec.freeze_timeout)

    @property
    def scratch_files(self) -> list[str]:
        """Paths on the hypervisor's machine."""
        return self._traces.scratch_files

    def require_alive(self) -> None:
        """Raise JobLost unless the job is still running and ours.

        Call this after the last read: QEMU drops the frozen state before it drops the export, and a read in between
        returns what the guest has just written, without any error.
        """
        if not self._traces.has_job() or self._jobs.operation() != BACKUP:
            raise self._vm.ended() or self._lost("it ended before everything was read")

    def finish(self) -> None:
        """End the job and wait until it is gone. JobLost: it ended too early, so what was read is invalid."""
        self.require_alive()
        self._traces.end_job()
        with self._vm.live("read the result of the backup job"):
            self._completed = self._vm.dom.jobStats(_COMPLETED | _KEEP_COMPLETED)
        result = (self._completed.get("operation"), self._completed.get("type"), self._completed.get("success"))
        if result != (BACKUP, _TYPE_COMPLETED, True):
            raise self._vm.ended() or self._lost(self._completed.get("errmsg") or "libvirt does not report success")
        self.finished = True

    def stats(self) -> dict[str, int]:
        """Return {"scratch_bytes": bytes that the guest's writes made QEMU copy to scratch, for all disks}."""
        stats = self._completed
        if not self.finished:
            with self._vm.live("read the job's statistics"):
                stats = self._vm.dom.jobStats(0)
        return {"scratch_bytes": stats.get("disk_temp_used", 0)}

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """End the job when the block is left, whatever happens inside."""
        try:
            yield
        except BaseException as error:
            with self._vm.ignoring_check():
                left_behind = self._undo()
            # A broken connection may be the first sign that the domain has ended.
            ended = self._vm.ended() if isinstance(error, (errors.SourceError, errors.JobLost)) else None
            leave(ended or error, left_behind)
            if ended:
                raise ended from error
            raise
        left_behind = [] if self.finished else self._undo()
        if left_behind:
            failed = errors.HypervisorError("; ".join(left_behind))
            leave(failed, left_behind)
            raise failed

    def _undo(self) -> list[str]:
        lost_bitmaps = self._failed_with == libvirt.VIR_ERR_INTERNAL_ERROR
        return self._traces.remove(
            job_ended=self.finished, may_begin_yet=self._may_begin_yet, lost_bitmaps=lost_bitmaps
        )

    def begin(self) -> None:
        """Start the job. Raises what Backups.begun lists."""
        self._vm.link.check()  # a call that is answered at once calls it too late
        spec = self._spec
        place = f"create the socket {self.socket}" if self.socket else "listen on {}:{}".format(*spec.tcp or ())
        advice = f"check that QEMU's user can {place} and create files in {spec.scratch_dir}"
        advice += ", and that qemu.conf names certificates (backup_tls_x509_cert_dir)" if spec.tls else ""
        try:
            with self._vm.live("start a backup", (errors.HypervisorError, advice)), self.freeze:
                self._call_begin(domain_xml.backup_xml(self._traces.asked), spec.checkpoint_xml())
        except errors.NbdpullError as error:
            self._failed_with = code_of(error)
            self._may_begin_yet = self._asked_to_begin and is_unanswered(error)
            raise self._explained(error) from error.__cause__
        if self._jobs.backup() != self._traces.asked:
            raise self._vm.ended() or errors.HypervisorError(
                f"domain '{self._vm.name}': libvirt did not start the requested backup"
            )
        if spec.checkpoint is not None:
            self.checkpoint = self._checkpoints.get(spec.checkpoint)

    def _call_begin(self, *xmls: Optional[str]) -> None:
        """Call backupBegin, where possible with the flag that keeps a guest paused that shuts down during the job."""
        begin = self._vm.dom.backupBegin
        known = self._vm.connection.getLibVersion() >= OLDEST_WITH_PRESERVE
        self._asked_to_begin = True
        # A daemon that rejects the flag may have another reason: its answer without the flag counts.
        if not known or unless((libvirt.VIR_ERR_INVALID_ARG,), lambda: begin(*xmls, _PRESERVE_SHUTDOWN)) is None:
            begin(*xmls, 0)

    def _explained(self, error: errors.NbdpullError) -> errors.NbdpullError:
        """Return the error with details that libvirt omits: which checkpoint is missing, or which one exists."""
        code, name = self._failed_with, self._spec.checkpoint
        if code == NO_CHECKPOINT:
            missing = [base for base in self._spec.disks.values() if base and not self._checkpoints.has(base)]
            return self._checkpoints.missing(missing[0]) if missing else error
        if code == libvirt.VIR_ERR_OPERATION_FAILED and name and self._checkpoints.has(name):
            return self._checkpoints.taken(name)
        return error

    def take_over(self, consistency: str, reason: str) -> None:
        """Adopt the job of an interrupted run, whose journal records the outcome of the freeze.

        JobLost if it is another job.
        """
        if not self._traces.is_under_way():
            raise self._lost("it is not the job of the interrupted run")
        self.freeze.consistency, self.freeze.reason = consistency, reason
        if self._spec.checkpoint is not None:
            self.checkpoint = self._checkpoints.get(self._spec.checkpoint)

    def _lost(self, why: str) -> errors.NbdpullError:
        return errors.JobLost(f"the backup job of '{self._vm.name}' is lost: {why}; what was read cannot be used, "
                              "pull again")  # fmt: skip
