"""What the tests of backup jobs request, and what must hold when a job has ended. These tests read no data."""

import os

from bed.machine import wait_for

from nbdpull.hypervisor import backup_spec

RUN = "20261122T194500Z-7f3a9c0d11223344"
FOREIGN = """
<domainbackup mode='pull'><server transport='unix' socket='{0}/foreign.sock'/>
  <disks><disk name='vda' backup='yes' type='file'><scratch file='{0}/foreign.qcow2'/></disk></disks>
</domainbackup>"""


def plan(scratch, disks=("vda", "vdb"), since=None, run_id=RUN, **options):
    options = {"checkpoint": f"auto-{run_id}", "checkpoint_disks": ["vda"], **options}
    return backup_spec.BackupSpec(run_id, {disk: since for disk in disks}, scratch_dir=str(scratch), **options)


def assert_idle(vm, checkpoints):
    assert vm.jobs.backup() is None
    vm.jobs.require_idle()
    assert vm.checkpoints.names() == checkpoints
    assert not os.path.lexists(vm.backups.socket_path(RUN))


def end_job(dom):
    dom.abortJob()
    wait_for(lambda: not dom.jobInfo()[0], "job ended")
