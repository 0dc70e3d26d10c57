"""A running backup job: begun, or taken over from a dead run, and watched until it has ended.

Owns: the steps around a job once its run is recorded, and their order. Must not know: what reads from the job, what is
done with the data.
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
    """The part of a job that is needed to read from it. socket: path of QEMU's socket, on its machine."""

    socket: str


@contextmanager
def started(
    vm: Domain,
    prepared: Prepared,
    lookout: Lookout,
    on_ready: Callable[[], None] = lambda: None,
    on_cut: Callable[[], None] = lambda: None,
) -> Iterator[backup_job.Job]:
    """Yield the job, and end it after the block; unless it was finished, it is undone.

    on_ready, on_cut: called before and after a new job is begun, not for the job of a dead run.
    """
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
    """Yield the Live from which the disks of a job are read; the job is watched inside the block."""
    with lookout.watching(job), route.opened(subject.route, subject.vm, job.socket, lookout.check) as server:
        yield Live(lookout.kept(server), job, reading)


def finish(vm: Domain, job: backup_job.Job) -> None:
    """End the job after everything was read; JobLost or a similar error if it was not ours and intact until now."""
    job.finish()
    vm.heed()  # a stop that comes now is too late
