"""The file system below the store fails during a pull: unplugged, read-only, full without an error of write, or
removed. Or power is lost: what was not on stable storage is gone. All of this is done for real (bed.device)."""

import os
import shutil

import pytest
from bed.device import Device, run
from bed.machine import MIB
from rig import Rig

pytest.importorskip("libvirt")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


@pytest.fixture
def rig(machine, tmp_path):
    vm = machine({"vda": 32 * MIB, "vdb": 4 * MIB}, paused=False)
    vm.write("vda", 0, 8 * MIB, 0x11)
    return Rig(vm, tmp_path)


@pytest.fixture
def device(rig, tmp_path):
    with Device(rig.store, tmp_path, 64 * MIB) as device:
        yield device


def pulled(rig):
    """Make a point, and write; return the checkpoints."""
    rig.pull()
    rig.vm.write("vda", MIB, 5 * MIB, 0x22)
    return rig.vm.checkpoints()


def assert_failed_well(rig, ended, *texts, kept, kind="output"):
    """Require one line and exit code 9; nothing is left in the domain, though the store may keep what cannot be
    removed."""
    code, result, said = ended
    assert (code, result["code"], result["left_behind"]) == (9, kind, []), result
    assert all(text in result["message"] for text in (str(rig.store), *texts)), result["message"]
    assert said.splitlines() == [f"nbdpull: {result['message']}"]
    rig.assert_domain_clean(kept)
    assert rig.vm.running


TOLD = {"unplug": "Input/output error", "fail": "Read-only file system"}


PHASES = ["journaled", "copying", "committing"]


@pytest.mark.parametrize("phase, fault", [*zip(PHASES, ["unplug"] * 3), *zip(PHASES[1:], ["fail"] * 2)])
def test_the_file_system_fails(rig, device, phase, fault):
    kept = pulled(rig)
    rig.start(phase=phase)
    getattr(device, fault)()
    assert_failed_well(rig, rig.end(), TOLD[fault], kept=kept)
    device.mend()
    made = rig.assert_next_is_right()
    assert {disk["mode"] for disk in made["details"]["disks"]} == {"incremental"}


def test_it_has_failed_before(rig, device):
    kept = pulled(rig)
    device.unplug()
    done = rig.run(*rig.words())
    assert done.returncode == 10 and "Input/output error" in done.stderr and "Traceback" not in done.stderr
    rig.assert_domain_clean(kept)
    device.mend()
    run("mount", "-o", "remount,ro", rig.store)
    done = rig.run(*rig.words())
    assert done.returncode == 9 and f"cannot write to {rig.store}: Read-only file system" in done.stderr
    rig.assert_domain_clean(kept)
    run("mount", "-o", "remount,rw", rig.store)
    rig.assert_next_is_right()


def test_writes_whose_loss_only_fsync_reports(rig, tmp_path):
    """The storage is thinner than it claims, so the write-back fails, not the write."""
    below = tmp_path / "below"
    below.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=12m", "none", below)
    try:
        with Device(rig.store, below, 128 * MIB) as device:
            kept = pulled(rig)
            rig.vm.write_bytes("vda", 0, os.urandom(24 * MIB))
            rig.start()
            ended = rig.end()
            # Kernels differ in how they tell it; and where the journal's write-back was the first to fail, all is
            # read-only before nbdpull's own fsync.
            reported = ended[1]["message"].rsplit(": ", 1)[-1].partition(";")[0]
            kind = {"No space left on device": "output-full", TOLD["unplug"]: "output", TOLD["fail"]: "output"}[
                reported
            ]
            assert_failed_well(rig, ended, kept=kept, kind=kind)
            run("mount", "-o", "remount,size=128m", below)
            device.mend()
            rig.assert_next_is_right()
    finally:
        run("umount", "-l", below)


@pytest.mark.parametrize("phase", ["copying", "committing"])
def test_the_store_is_removed(rig, phase):
    """The next pull creates a new store. The checkpoint of the lost point remains: another store might have that
    point."""
    kept = pulled(rig)
    rig.start(phase=phase)
    shutil.rmtree(rig.store)
    assert_failed_well(rig, rig.end(), f"there is no directory {rig.store}", kept=kept)
    assert not rig.store.exists()
    rig.assert_next_is_right(others=kept)


@pytest.mark.parametrize("phase", ["copying", "committing", "committed"])
def test_power_is_lost(rig, device, phase):
    """Of the store's machine and of ours. A point exists completely, or not at all."""
    pulled(rig)
    rig.start(phase=phase)
    device.unplug()
    rig.process.kill()
    rig.process.communicate()
    device.mend()
    assert len(rig.points()) == (2 if phase == "committed" else 1)
    done = rig.run("verify", rig.store)
    assert done.returncode == 0, done.stdout
    rig.assert_next_is_right()
