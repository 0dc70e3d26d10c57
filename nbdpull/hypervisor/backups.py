"""The pull backups of a domain: started, taken over from an interrupted run, and inspected.

Owns: what must be so before one is begun, and where its socket goes. What another client made (job, checkpoint, file)
is inspected and never touched. Must not know: NBD, extents, the store, or why a disk is pulled in full.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterator

from ..core import errors, unix_socket
from ..core.choices import SHARED_DIR
from ..definitions import definition
from . import backup_spec
from .backup_job import Job
from .backup_spec import BackupSpec
from .backup_traces import Traces
from .checkpoints import Checkpoints
from .handle import Handle
from .jobs import Jobs


class Backups:
    """Those of one domain."""

    def __init__(self, vm: Handle, jobs: Jobs, checkpoints: Checkpoints):
        self._vm, self._jobs, self._checkpoints = vm, jobs, checkpoints

    @contextlib.contextmanager
    def begun(self, spec: BackupSpec) -> Iterator[Job]:
        """Begins the backup; leave the block by Job.finish(), with all NBD connections closed before.

        Left without it, the job is ended, and left by an exception, even after finish(), the new checkpoint is deleted
        as well. What could not be removed is in the error's field `left_behind`.
        Raises DomainNotRunning, Busy, NoSuchCheckpoint, CheckpointUnusable, CheckpointExists, Unsupported, UsageError,
        OutputExists, AccessDenied, HypervisorError.
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
        """The same with the running job of an interrupted run, whose journal has the outcome of the freeze."""
        job = self._job(self.traces(spec))
        with job.ending():
            job.take_over(consistency, reason)
            yield job

    def traces(self, spec: BackupSpec) -> Traces:
        """What the run of a spec made in the domain, or would make."""
        asked = spec.job(None if spec.tcp else spec.socket or self.socket_path(spec.run_id))
        return Traces(self._vm, self._jobs, self._checkpoints, spec, asked)

    def _job(self, traces: Traces) -> Job:
        return Job(self._vm, self._jobs, self._checkpoints, traces)

    def socket_path(self, run_id: str) -> str:
        """Where our socket goes by default.

        AppArmor lets a system QEMU make a socket in its domain's own directory and hardly anywhere else. That name is
        libvirt's, which cuts it at 20 characters. Where it is not there (session, embedded daemon) nothing confines
        QEMU so, and the socket itself is closed to others. Where the domain's name has a tab, libvirt would tell of
        another path than it was given: it writes that into XML as it is, where it reads as a space.
        """
        name = backup_spec.socket_name(run_id)
        own = os.path.join("/var/lib/libvirt/qemu", f"domain-{self._vm.id}-{self._vm.name[:20]}")
        usable = urllib.parse.urlsplit(self._vm.uri).path == "/system" and (self._vm.is_remote or os.path.isdir(own))
        path = os.path.join(own, name)
        usable = usable and definition.can_name(path) and unix_socket.fits(path)
        return path if usable else os.path.join(SHARED_DIR, name)

    def _require_free(self, socket: str | None) -> None:
        if socket and not self._vm.is_remote and os.path.lexists(socket):
            # QEMU would remove whatever is there, be it another VM's socket.
            raise errors.OutputExists(f"socket {socket} exists: remove it or name another")
