"""An open backup and its end, without a hypervisor: who may end it, how often, and what is kept of it."""

import gc
import os
import threading
import weakref
from types import SimpleNamespace

import pytest

pytest.importorskip("libvirt")

from nbdpull.api import job as api_job  # noqa: E402
from nbdpull.core import errors  # noqa: E402


class Backup:
    """The job, its journal and its domain, in one; records what is done to them."""

    uuid, checkpoint, finished = "c7a5fdbd-cdaf-9455-926a-d65c16db1809", None, False
    freeze = SimpleNamespace(consistency="crash-consistent", reason="no-agent")

    def __init__(self):
        self.done, self.at_the_end = [], lambda: None

    def finish(self):
        self.done.append("finish")
        self.at_the_end()
        self.finished = True

    def committed(self):
        self.done.append("commit")

    def heed(self, *_):
        pass


@pytest.fixture
def backup():
    return Backup()


@pytest.fixture
def job(backup):
    return opened(backup)


def opened(backup):
    prepared = SimpleNamespace(plan=SimpleNamespace(run_id="20261122T194500Z-7f3a9c04", checkpoint=None))
    subject, lookout = SimpleNamespace(vm=backup, disks=[]), SimpleNamespace(check=lambda: None)
    inside = api_job._Inside(subject, prepared, backup, backup, lookout, [])
    return api_job.Job(inside, "2026-11-22T19:45:00+00:00", ["of it"])


def left(job):
    """Leave the block of a job."""
    try:
        with api_job._heard(job, api_job._Ended()):
            pass
    except api_job._NotCommitted:
        pass


def test_each_step_happens_once(backup, job):
    for _ in range(2):
        job.finish()
    token = job.token
    assert job.commit() == job.commit() == job.token == token
    job.finish()
    assert backup.done == ["finish", "commit"]


def test_threads_that_commit_at_once(backup, job):
    """Each would find that somebody else has ended its job, and wait for a libvirt that another one talks to."""
    tokens = []
    other = threading.Thread(target=lambda: tokens.append(job.commit()))

    def at_the_end():
        if backup.done == ["finish"]:
            other.start()
            other.join(0.1)

    backup.at_the_end = at_the_end
    token = job.commit()
    other.join()
    assert backup.done == ["finish", "commit"] and tokens == [token]


@pytest.mark.parametrize("finished", [False, True])
def test_after_a_block_without_a_commit(backup, job, finished):
    """Its checkpoint is gone, so a commit would make a base of nothing."""
    if finished:
        job.finish()
    left(job)
    done = list(backup.done)
    for call in (job.commit, job.finish, lambda: job.token):
        with pytest.raises(errors.UsageError, match=f"backup {job.id} has ended without a commit"):
            call()
    assert backup.done == done and not job.committed
    assert (job.as_of, job.consistency, job.warnings) == ("2026-11-22T19:45:00+00:00", "crash-consistent", ["of it"])


def test_after_a_block_with_a_commit(backup, job):
    token = job.commit()
    left(job)
    job.finish()
    assert job.commit() == job.token == token and backup.done == ["finish", "commit"]


def test_a_job_that_is_kept_holds_nothing_open():
    """A program that keeps the facts of its backups must not keep their connections to libvirt."""
    backup = Backup()
    job, alive = opened(backup), weakref.ref(backup)
    left(job)
    del backup
    gc.collect()
    assert alive() is None and job.id


def test_another_process_does_not_end_it(backup, job):
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (job.commit, job.finish, lambda: job.token):
            try:
                call()
            except errors.UsageError as error:
                refused += "can only be ended by the process that opened it" in str(error)
        os._exit(refused if not backup.done else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    job.commit()
