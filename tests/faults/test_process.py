"""nbdpull itself is killed or told to stop, at every phase of a run. The VM has no operating system."""

import os
import signal
import time

import pytest
from bed.machine import MIB, Machine, wait_for
from command import unfolded
from held import PHASES
from rig import Rig

pytest.importorskip("libvirt")


@pytest.fixture(scope="module")
def rig(private_libvirt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    with Machine(private_libvirt, folder / "images", {"vda": 16 * MIB, "vdb": 4 * MIB}) as vm:
        vm.create_checkpoint("foreign")
        vm.delete_checkpoint("foreign")
        vm.write("vda", 0, 8 * MIB, 0x11)
        rig = Rig(vm, folder)
        rig.pull()
        yield rig


def change(rig, value):
    """Write, zero and discard so much that a pull has several steps."""
    rig.vm.write("vda", MIB, 5 * MIB, value)
    rig.vm.write_zeroes("vda", 2 * MIB, MIB)
    rig.vm.discard("vda", 7 * MIB, 65536)
    rig.vm.write("vdb", 65536 * (value % 16), 65536, value)


COMMITTED = ("committed", "dropping")
GONE_ON_WITH = ("reading", "copying")  # the job is there, and whole: the point is of what the disks held at its begin


@pytest.mark.parametrize("phase", PHASES)
def test_killed(rig, phase):
    value = 0x21 + list(PHASES).index(phase)
    change(rig, value)
    frozen, before = rig.contents(), len(rig.points())
    rig.start(phase=phase)
    rig.process.kill()
    rig.process.communicate()
    assert len(rig.points()) == before + (phase in COMMITTED)
    rig.vm.write("vda", 12 * MIB, 65536, value)
    if phase in GONE_ON_WITH:
        made = rig.pull()
        assert made["resumed"]
        rig.assert_restores(frozen, made["details"]["id"])
    made = rig.assert_next_is_right()
    assert not made["resumed"]
    assert [disk["mode"] for disk in made["details"]["disks"]] == ["incremental", "incremental"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("phase", ["journaled", "begun", "copying", "ended"])
def test_terminated_by_a_signal(rig, phase, number):
    change(rig, 0x41 + list(PHASES).index(phase))
    before = len(rig.points())
    rig.start(phase=phase)
    rig.process.send_signal(number)
    started = time.monotonic()
    code, result, _ = rig.end()
    assert time.monotonic() - started < 10
    if phase == "ended":  # all was read, the job is gone: to end well takes no longer
        assert code == 0 and result["ok"] and len(rig.points()) == before + 1
    else:
        assert code == 128 + number and result["code"] == "interrupted" and result["left_behind"] == []
        assert len(rig.points()) == before
    rig.assert_clean()
    rig.assert_next_is_right()


@pytest.mark.parametrize("phase", ["journaled", "begun", "copying"])
def test_terminated_while_the_domain_is_off(rig, phase):
    """The domain, which was started paused for the pull, is stopped."""
    change(rig, 0x51 + list(PHASES).index(phase))
    rig.vm.stop()
    rig.start(phase=phase)
    assert rig.vm.active and not rig.vm.running
    rig.process.terminate()
    started = time.monotonic()
    code, result, _ = rig.end()
    assert time.monotonic() - started < 10
    assert code == 128 + signal.SIGTERM and result["left_behind"] == [] and not rig.vm.active
    rig.vm.start()
    rig.assert_clean()
    rig.assert_next_is_right()


@pytest.mark.parametrize("phase", ["journaled", "begun", "ending", "ended"])
def test_cleanup_after_a_kill(rig, phase):
    change(rig, 0x61)
    rig.start(phase=phase)
    rig.process.kill()
    rig.process.communicate()
    if phase == "ending":
        wait_for(lambda: not rig.vm.job_active(), "the job's end, which was asked for")
    checkpoints = rig.vm.checkpoints()
    code, result = rig.cleanup("--dry-run")
    assert code == 0 and all(item["left"] == "dry run" for item in result["found"])
    assert rig.vm.checkpoints() == checkpoints and rig.vm.job_active() == (phase == "begun")
    code, done = rig.cleanup()
    assert code == 0 and [item["what"] for item in done["found"]] == [item["what"] for item in result["found"]]
    assert any("partial files" in item["what"] for item in done["found"])
    rig.assert_clean()
    assert rig.cleanup()[1]["found"] == []
    rig.assert_next_is_right()


def kill_unwaited(rig):
    """Kill a run whose parent does not collect its exit code: it is a zombie."""
    rig.process.kill()
    os.waitid(os.P_PID, rig.process.pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize("next_one", ["resume", "never", "cleanup"])
def test_a_zombie_counts_as_alive(rig, next_one):
    change(rig, 0x68)
    rig.start(phase="copying", child=True)
    kill_unwaited(rig)
    if next_one == "cleanup":
        code, done = rig.cleanup()
        assert code == 0 and "backup job" in [item["what"] for item in done["found"]]
        rig.assert_clean()
    made = rig.assert_next_is_right(*(["--resume=never"] if next_one == "never" else []))
    assert bool(made["resumed"]) == (next_one == "resume")
    rig.process.communicate()


def test_a_zombie_that_had_started_the_domain(rig):
    change(rig, 0x69)
    rig.vm.stop()
    rig.start(phase="copying", child=True)
    kill_unwaited(rig)
    assert rig.vm.active
    assert rig.cleanup()[0] == 0 and not rig.vm.active
    rig.process.communicate()
    rig.vm.start()
    rig.assert_next_is_right()


def test_cleanup_without_the_store(rig):
    change(rig, 0x71)
    rig.start(phase="copying")
    rig.process.kill()
    rig.process.communicate()
    found = unfolded(rig.run("doctor", rig.vm.name, "-c", rig.vm.bed.uri).stdout)
    assert "left by interrupted nbdpull run" in found and f"or nbdpull cleanup {rig.vm.name} does" in found
    done = rig.run("cleanup", rig.vm.name, "-c", rig.vm.bed.uri)
    assert done.returncode == 0 and "backup job: removed" in done.stdout
    assert not rig.vm.job_active() and len(rig.vm.checkpoints()) == 1
    rig.assert_next_is_right()


def test_a_second_run_says_who_holds_the_domain(rig, tmp_path):
    rig.start(phase="begun")
    for store in (rig.store, tmp_path / "other"):
        started = time.monotonic()
        done = rig.run("pull", rig.vm.name, "-o", store, "-c", rig.vm.bed.uri)
        assert done.returncode == 5 and f"process {rig.process.pid}" in done.stderr
        assert time.monotonic() - started < 10
    assert not (tmp_path / "other").exists()
    code, result = rig.cleanup()
    assert code == 5 and result["code"] == "busy" and str(rig.process.pid) in result["message"]
    assert rig.end()[0] == 0
    rig.assert_next_is_right()


def test_a_foreign_job_is_left_alone(rig, tmp_path):
    scratch = tmp_path / "foreign.scratch"
    rig.vm.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{tmp_path}/s'/><disks><disk name='vda' "
        f"backup='yes' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>",
        None,
        0,
    )
    try:
        done = rig.run(*rig.words())
        assert done.returncode == 5 and "not started by nbdpull" in done.stderr
        code, result = rig.cleanup()
        assert code == 5 and [item["left"] for item in result["found"]] == ["it is not nbdpull's"]
        assert rig.vm.job_active()
    finally:
        rig.vm.domain.abortJob()


def test_limits(rig):
    code, result, _ = (rig.start("--max-duration", "0.01"), rig.end())[1]
    assert code == 12 and result["code"] == "limit-reached"
    rig.assert_clean()
    rig.assert_next_is_right()
