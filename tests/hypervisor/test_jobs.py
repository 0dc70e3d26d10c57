"""The jobs of a domain, whoever started them: they are named, and left alone."""

import time

import pytest
from backup_rig import FOREIGN, RUN, end_job, plan
from fake_libvirt import Meddled, libvirt

from nbdpull.core import errors
from nbdpull.hypervisor import domain


def test_hypervisor_that_can_do_no_backups():
    with domain.open("test", "test:///default") as vm, pytest.raises(errors.Unsupported, match="needs? libvirt 7.6"):
        vm.jobs.require_idle()


def test_foreign_backup_is_found_at_once(vm, shared, scratch):
    shared.domain.backupBegin(FOREIGN.format(scratch), None)
    before = time.monotonic()
    for call in (vm.jobs.require_idle, vm.backups.begun(plan(scratch)).__enter__):
        with pytest.raises(errors.Busy, match=f"not started by nbdpull .*{scratch}/foreign.sock"):
            call()
    assert time.monotonic() - before < 2
    assert vm.jobs.backup().run_id is None
    end_job(shared.domain)


def test_backup_of_ours_is_named(vm, scratch):
    with vm.backups.begun(plan(scratch)) as job:
        with (
            pytest.raises(errors.Busy, match=f"started by nbdpull run {RUN}"),
            vm.backups.begun(plan(scratch, run_id="R2")),
        ):
            pass
        job.require_alive()


def test_other_job_is_named(vm):
    real, vm.dom = vm.dom, Meddled(vm.dom, jobStats=lambda _flags: {"type": 2, "operation": 5})
    with pytest.raises(errors.Busy, match="outgoing migration"):
        vm.jobs.require_idle()
    vm.dom = real


def test_block_job_is_named(vm, shared, scratch):
    target = f"<disk type='file'><source file='{scratch}/copy'/><driver type='qcow2'/></disk>"
    shared.domain.blockCopy("vda", target, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    with pytest.raises(errors.Busy, match="disk vda .*block job"), vm.backups.begun(plan(scratch)):
        pass
    assert vm.jobs.backup() is None
    shared.domain.blockJobAbort("vda")
