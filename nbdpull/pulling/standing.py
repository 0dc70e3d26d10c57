"""A backup job that stands: begun, or taken over from a run that died, and looked after until it has ended.

Owns: what is around a job once its run is written down, and the order of that. Must not know: who reads from it, what
becomes of what is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, Protocol

from ..hypervisor import backup_job
from ..hypervisor.domain import Domain
from . import live_disk, route, scratch_watch
from .live_disk import Live, Reading
from .lookout import Lookout
from .preparation import Prepared, Subject


class Job(live_disk.Job, scratch_watch.Job, Protocol):
    """What of a job is needed to read from it. socket: path of QEMU's, on its machine."""

    socket: str


@contextmanager
def standing(
    vm: Domain,
    prepared: Prepared,
    lookout: Lookout,
    on_ready: Callable[[], None] = lambda: None,
    on_cut: Callable[[], None] = lambda: None,
) -> Iterator[backup_job.Job]:
    """Yield the job, which has ended after the block: as if it had never been, unless it was finished. on_ready,
    on_cut: called before and after the begin of one that is not a dead run's."""
    dead, plan = prepared.dead, prepared.plan
    with lookout.guarding():
        if not dead:
            on_ready()
        with vm.backups.taken_over(plan, *dead.freeze) if dead else vm.backups.begun(plan) as job:
            if not dead:
                on_cut()
            yield job


@contextmanager
def live(subject: Subject, job: Job, lookout: Lookout, reading: Reading) -> Iterator[Live]:
    """Yield what its disks are read from, while somebody looks after it."""
    with lookout.watching(job), route.opened(subject.route, subject.vm, job.socket, lookout.check) as server:
        yield Live(lookout.kept(server), job, reading)


def finish(vm: Domain, job: backup_job.Job) -> None:
    """All was read: end the job, and prove that it was ours and whole until now. JobLost, and the like."""
    job.finish()
    vm.heed()  # a stop that comes now is too late
