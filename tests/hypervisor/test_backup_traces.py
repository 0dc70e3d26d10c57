"""What a run leaves in a domain is removed, and what cannot be removed is reported."""

import os

import pytest
from backup_rig import RUN, end_job, plan
from fake_libvirt import Meddled, error_of, raising

from nbdpull.core import errors
from nbdpull.hypervisor import backup_traces


def test_job_that_no_abort_finds(vm, scratch):
    """A daemon can be left with a backup that is no job: then only its block jobs can be ended."""
    real = vm.dom
    with pytest.raises(errors.SourceError), vm.backups.begun(plan(scratch)):
        vm.dom = Meddled(real, jobStats=lambda _flags: {"type": 0}, abortJob=raising(error_of(55)))
        raise errors.SourceError("x")
    assert os.listdir(scratch) == []


def test_abort_that_has_to_wait_is_tried_again(vm, scratch):
    real, calls = vm.dom, []

    def abort():
        calls.append(1)
        if len(calls) < 3:
            raise error_of(68)
        return real.abortJob()

    with vm.backups.begun(plan(scratch)) as job:
        vm.dom = Meddled(real, abortJob=abort)
        job.finish()
    assert len(calls) == 3
    vm.checkpoints.delete(f"auto-{RUN}")


def test_job_that_does_not_end(vm, scratch, monkeypatch):
    monkeypatch.setattr(backup_traces, "END_TIMEOUT", 0.1)
    real = vm.dom
    with pytest.raises(errors.SourceError) as caught, vm.backups.begun(plan(scratch)):
        vm.dom = Meddled(real, abortJob=lambda: 0)
        raise errors.SourceError("x")
    assert "did not end" in caught.value.left_behind[0]
    assert len(os.listdir(scratch)) == 2  # QEMU still uses them
    vm.dom = real
    end_job(real)
