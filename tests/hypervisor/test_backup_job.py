"""A running backup from its start to its end. Calls are replaced only if libvirt does not fail on demand."""

import errno
import itertools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from backup_rig import FOREIGN, RUN, assert_idle, end_job, plan
from bed.machine import MIB, Disk, wait_for
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.definitions import domain_xml
from nbdpull.hypervisor import domain


@pytest.mark.parametrize("code, number, kind", [
    (88, -1, errors.AccessDenied),
    (45, -1, errors.AccessDenied),
    (79, -1, errors.AccessDenied),
    (94, -1, errors.AccessDenied),
    (38, errno.EACCES, errors.AccessDenied),
    (38, errno.ECONNREFUSED, errors.HypervisorError),
    (3, -1, errors.Unsupported),
    (84, -1, errors.Unsupported),
    (92, -1, errors.Unsupported),
    (68, -1, errors.Busy),
    (109, -1, errors.CheckpointUnusable),
    (1, -1, errors.HypervisorError),
])  # fmt: skip
def test_begin_error_by_code(vm, scratch, code, number, kind):
    vm.dom = Meddled(vm.dom, backupBegin=raising(error_of(code, number)))
    with pytest.raises(kind) as caught, vm.backups.begun(plan(scratch)):
        pass
    assert caught.type is kind
    assert vm.name in str(caught.value) and "(libvirt's words in lines)" in str(caught.value)
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)
    assert caught.value.left_behind == ()


@pytest.mark.parametrize("version, flags", [(11_010_000, [2, 0]), (11_009_000, [0])])
def test_a_guests_shutdown_is_to_wait(vm, scratch, version, flags):
    """Requested where libvirt may support it (11.10); the real one here does not, says so, and is asked again without
    it."""
    begin, asked = vm.dom.backupBegin, []

    def spy(*arguments):
        asked.append(arguments[-1])
        return begin(*arguments)

    vm.dom = Meddled(vm.dom, backupBegin=spy)
    vm.connection = Meddled(vm.connection, getLibVersion=lambda: version)
    with vm.backups.begun(plan(scratch)) as job:
        job.finish()
    vm.checkpoints.delete(job.checkpoint.name)
    assert asked == flags


def test_a_run_that_was_asked_to_end_starts_nothing(vm, scratch):
    """Else libvirt, if it is slow, would still be starting the job when nobody waits for it any more."""
    asked = []
    vm.dom = Meddled(vm.dom, backupBegin=lambda *arguments: asked.append(arguments))
    vm.heed(raising(errors.Interrupted(signal.SIGTERM)))
    with pytest.raises(errors.Interrupted) as caught, vm.backups.begun(plan(scratch)):
        pass
    assert not asked and caught.value.left_behind == ()


def test_a_guests_shutdown_waits_where_libvirt_takes_the_flag(vm, scratch):
    begin, asked = vm.dom.backupBegin, []

    def newer(backup, checkpoint, flags):
        asked.append(flags)
        return begin(backup, checkpoint, flags & ~2)

    vm.dom = Meddled(vm.dom, backupBegin=newer)
    vm.connection = Meddled(vm.connection, getLibVersion=lambda: 11_010_000)
    with vm.backups.begun(plan(scratch)) as job:
        job.finish()
    vm.checkpoints.delete(job.checkpoint.name)
    assert asked == [2]


def test_begin_that_fails_at_the_export(vm, scratch, monkeypatch):
    real = domain_xml.disk_backup
    monkeypatch.setattr(domain_xml, "disk_backup", lambda *args: replace(real(*args), export="same"))
    with pytest.raises(errors.HypervisorError, match="already has export"), vm.backups.begun(plan(scratch)):
        pass
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("cured", [True, False])
def test_begin_that_cannot_store_the_checkpoint(machine, scratch, private_libvirt, cured):
    """libvirt then has no checkpoint, but QEMU has bitmaps of its name."""
    made = machine({"vda": MIB})
    made.create_checkpoint("foreign")
    root = Path("/var/lib/libvirt") if private_libvirt.root else private_libvirt.folder
    folder = next(root.rglob(f"{made.name}/foreign.xml")).parent
    aside = folder.with_name("aside")

    def begin(*args):
        folder.rename(aside)
        folder.write_text("in the way")
        try:
            return real.backupBegin(*args)
        finally:
            if cured:
                put_back()

    def put_back():
        folder.unlink()
        aside.rename(folder)

    with domain.open(made.name) as vm:
        real, vm.dom = vm.dom, Meddled(vm.dom, backupBegin=begin)
        with (
            pytest.raises(errors.HypervisorError, match="save metadata") as caught,
            vm.backups.begun(plan(scratch, ["vda"])),
        ):
            pass
        if cured:
            assert caught.value.left_behind == () and set(made.bitmaps("vda")) == {"foreign"}
        else:
            assert len(caught.value.left_behind) == 1 and f"checkpoint 'auto-{RUN}'" in caught.value.left_behind[0]
            put_back()
        assert_idle(vm, ["foreign"])
    assert os.listdir(scratch) == []


def test_a_bitmap_of_unknown_origin_is_left_alone(machine, scratch):
    """The metadata of its checkpoint is lost, and the user chose its name again: that does not prove that it is
    ours."""
    made = machine({"vda": MIB})
    made.create_checkpoint("chk1")
    made.domain.checkpointLookupByName("chk1").delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    with domain.open(made.name) as vm:
        with (
            pytest.raises(errors.HypervisorError, match="chk1"),
            vm.backups.begun(plan(scratch, ["vda"], checkpoint="chk1")),
        ):
            pass
        assert_idle(vm, [])
    assert "chk1" in made.bitmaps("vda")


def test_begin_of_something_else_than_asked(vm, scratch):
    def renamed_export(flags):
        return real.backupGetXMLDesc(flags).replace("exportname='vda'", "exportname='vdz'")

    real = vm.dom
    vm.dom = Meddled(real, backupGetXMLDesc=renamed_export)
    with (
        pytest.raises(errors.HypervisorError, match="did not start the requested backup"),
        vm.backups.begun(plan(scratch)),
    ):
        pass
    assert os.listdir(scratch) == []


# -- from begin to end ------------------------------------------------------------------------------------------------


def test_full_then_incremental(machine, scratch):
    made = machine({"vda": 8 * MIB, "vdb": Disk(MIB, "raw")})
    made.create_checkpoint("foreign1")
    time.sleep(1.1)
    with domain.open(made.name) as vm:
        with vm.backups.begun(plan(scratch, description="<hello>")) as job:
            assert job.exports == {"vda": ("vda", None), "vdb": ("vdb", None)}
            assert job.socket == vm.backups.socket_path(RUN) and os.path.exists(job.socket)
            assert sorted(os.listdir(scratch)) == [f"nbdpull-{RUN}-vda.scratch", f"nbdpull-{RUN}-vdb.scratch"]
            assert job.checkpoint.disks == {"vda": True}
            assert job.checkpoint.description == f"nbdpull run {RUN} <hello>"
            job.require_alive()
            made.write("vda", 0, 200 * 1024)
            assert job.stats() == {"scratch_bytes": 256 * 1024}
            job.finish()
            assert job.stats() == {"scratch_bytes": 256 * 1024}
        assert os.listdir(scratch) == []
        assert_idle(vm, ["foreign1", f"auto-{RUN}"])
        second = plan(scratch, ["vda"], since=f"auto-{RUN}", run_id="R2", checkpoint=None)
        with vm.backups.begun(second) as job:
            assert job.exports == {"vda": ("vda", "nbdpull-R2-vda")}
            assert job.checkpoint is None
            job.finish()
        assert_idle(vm, ["foreign1", f"auto-{RUN}"])


def test_own_socket(vm, tmp_path):
    socket = str(tmp_path / "own.sock")
    with vm.backups.begun(plan(tmp_path, ["vda"], socket=socket)) as job:
        assert job.socket == socket and os.path.exists(socket)
    assert not os.path.exists(socket)


def test_left_without_finish(vm, scratch):
    with vm.backups.begun(plan(scratch)) as job:
        pass
    assert not job.finished and os.listdir(scratch) == []


@pytest.mark.parametrize("reason", [errors.SourceError("lost"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("finish", [False, True])
def test_left_by_an_exception(vm, scratch, reason, finish):
    with pytest.raises(type(reason)) as caught, vm.backups.begun(plan(scratch)) as job:
        if finish:
            job.finish()
        raise reason
    assert caught.value is reason and getattr(reason, "left_behind", ()) == ()
    assert os.listdir(scratch) == []


def test_the_first_error_is_not_hidden_and_leftovers_are_reported(machine, scratch):
    made = machine({"vda": MIB})
    with domain.open(made.name) as vm:
        with pytest.raises(errors.OutputError) as caught, vm.backups.begun(plan(scratch, ["vda"])):
            made.stop()
            raise errors.OutputError("the disk is full")
        assert caught.value.left_behind == (
            f"checkpoint 'auto-{RUN}' is left behind because the domain is off: "
            "the next pull removes it once the domain runs",
        )
        assert os.listdir(scratch) == []


def test_leftovers_are_an_error_by_themselves(vm, scratch):
    with pytest.raises(errors.HypervisorError, match="checkpoint 'auto-.* is left behind"):  # noqa: SIM117
        with vm.backups.begun(plan(scratch)):
            vm.checkpoints.delete = raising(errors.HypervisorError("no"))
    del vm.checkpoints.delete
    vm.checkpoints.delete(f"auto-{RUN}")


def test_interrupted_before_begin_returned(vm, scratch):
    def begin(*args):
        real.backupBegin(*args)
        raise KeyboardInterrupt

    real, vm.dom = vm.dom, None
    vm.dom = Meddled(real, backupBegin=begin)
    with pytest.raises(KeyboardInterrupt), vm.backups.begun(plan(scratch)):
        pass
    assert os.listdir(scratch) == []


class Interrupting:
    """A libvirt object that is interrupted after the call with this number."""

    def __init__(self, real, number):
        self._real, self._left = real, number

    def __getattr__(self, name):
        def call(*args):
            result = getattr(self._real, name)(*args)
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
            return result

        return call


def test_interrupted_after_any_call_of_begin(vm, scratch):
    """By number, not by a timer: between two steps of Python, an interrupt can hit what nothing protects."""
    real = vm.dom
    for number in itertools.count(1):
        vm.dom = Interrupting(real, number)
        try:
            with vm.backups.begun(plan(scratch)) as job:
                vm.dom = real
                job.finish()
            break
        except KeyboardInterrupt:
            vm.dom = real
            assert_idle(vm, ["foreign"])
            assert os.listdir(scratch) == []
    assert number > 5
    vm.checkpoints.delete(job.checkpoint.name)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_job_ended_by_somebody_else(vm, shared, scratch):
    with pytest.raises(errors.JobLost, match="before everything was read"), vm.backups.begun(plan(scratch)) as job:
        end_job(shared.domain)
        with pytest.raises(errors.JobLost):
            job.require_alive()
        job.finish()


def test_foreign_job_in_place_of_ours_is_left_alone(vm, shared, scratch):
    with pytest.raises(errors.JobLost), vm.backups.begun(plan(scratch)) as job:
        end_job(shared.domain)
        wait_for(lambda: vm.jobs.backup() is None, "gone")
        shared.domain.backupBegin(FOREIGN.format(scratch), None)
        job.finish()
    assert shared.job_active() and os.path.exists(f"{scratch}/foreign.sock")
    end_job(shared.domain)


def test_domain_that_stops(machine, scratch):
    made = machine({"vda": MIB})
    with domain.open(made.name) as vm, pytest.raises(errors.DomainCrashed, match="crashed or was killed"):  # noqa: SIM117
        with vm.backups.begun(plan(scratch, ["vda"])) as job:
            made.kill()
            job.finish()
    assert os.listdir(scratch) == []


def test_job_without_success(vm, scratch):
    def stats(flags):
        return {**real.jobStats(flags), **({"success": False, "errmsg": "disk is gone"} if flags else {})}

    real = vm.dom
    vm.dom = Meddled(real, jobStats=stats)
    with pytest.raises(errors.JobLost, match="disk is gone"), vm.backups.begun(plan(scratch)) as job:
        job.finish()
