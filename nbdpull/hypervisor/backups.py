"""The pull backups of a domain: started, taken over from an interrupted run, and inspected.

Owns: the preconditions of a start, and where the socket goes. What another client created (job, checkpoint, file) is
inspected and never touched. Must not know: NBD, extents, the store, or why a disk is pulled in full.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..core import errors, unix_socket
from ..core.choices import SHARED_DIR
from ..definitions import definition
from . import backup_spec, libvirt_uri
from .backup_job import Job
from .backup_spec import BackupSpec
from .backup_traces import Traces
from .checkpoints import Checkpoints
from .handle import Handle
from .jobs import Jobs


class Backups:
    """The backups of one domain."""

    def __init__(self, vm: Handle, jobs: Jobs, checkpoints: Checkpoints):
        self._vm, self._jobs, self._checkpoints = vm, jobs, checkpoints

    @contextlib.contextmanager
    def begun(self, spec: BackupSpec) -> Iterator[Job]:
        """Start the backup. Inside the block, call Job.finish() at the end, after all NBD connections are closed.

        If finish() was not called, leaving the block ends the job. If an exception leaves the block, even after
        finish(), the new checkpoint is deleted as well. The error's field `left_behind` lists what could not be
        removed. Raises DomainNotRunning, Busy, NoSuchCheckpoint, CheckpointUnusable, CheckpointExists, Unsupported,
        UsageError, OutputExists, AccessDenied, HypervisorError.
        """
        traces = self.traces(spec)
        spec.require_possible(traces.asked.socket)
        self._require_free(traces.asked.socket)
        self._vm.require_running()
        self._jobs.require_idle()
        self._jobs.require_no_block_job(spec.disks)
        job = self._job(traces)
        with job.ending():
            job.begin()
            yield job

    @contextlib.contextmanager
    def taken_over(self, spec: BackupSpec, consistency: str, reason: str) -> Iterator[Job]:
        """Take over the running job of an interrupted run, whose journal records the outcome of the freeze.

        Ends as `begun`.
        """
        job = self._job(self.traces(spec))
        with job.ending():
            job.take_over(consistency, reason)
            yield job

    def traces(self, spec: BackupSpec) -> Traces:
        """Return what the run of a spec created in the domain, or would create."""
        asked = spec.job(None if spec.tcp else spec.socket or self.socket_path(spec.run_id))
        return Traces(self._vm, self._jobs, self._checkpoints, spec, asked)

    def _job(self, traces: Traces) -> Job:
        return Job(self._vm, self._jobs, self._checkpoints, traces)

    def socket_path(self, run_id: str) -> str:
        """Return the default path of our socket.

        AppArmor lets a system QEMU create a socket in its domain's own directory and hardly anywhere else. libvirt
        chooses that directory's name, and cuts the domain's name in it at 20 characters. Where the directory does not
        exist (session, embedded daemon), QEMU is not confined in this way, and the socket itself is closed to others.
        If the domain's name contains a tab, libvirt would report a path that differs from the given one: it writes the
        tab into XML unescaped, where it is read as a space.
        """
        name = backup_spec.socket_name(run_id)
        own = os.path.join("/var/lib/libvirt/qemu", f"domain-{self._vm.id}-{self._vm.name[:20]}")
        usable = libvirt_uri.is_system(self._vm.uri) and (self._vm.is_remote or os.path.isdir(own))
        path = os.path.join(own, name)
        usable = usable and definition.can_name(path) and unix_socket.fits(path)
        return path if usable else os.path.join(SHARED_DIR, name)

    def _require_free(self, socket: str | None) -> None:
        if socket and not self._vm.is_remote and os.path.lexists(socket):
            # QEMU would remove whatever exists there, even another VM's socket.
            raise errors.OutputExists(f"socket {socket} exists: remove it or choose another")
