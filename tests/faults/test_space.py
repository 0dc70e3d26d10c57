"""Space runs out: in the scratch directory, while a real guest writes, in the file system of the guest's image, and in
the store."""

import json
import os
import signal
import subprocess

import pytest
from bed.guest import Guest, ext4_image
from bed.machine import MIB, Disk, wait_for
from rig import Rig

from nbdpull.core import errors
from nbdpull.operations import pull
from nbdpull.pulling import disk_copy
from nbdpull.repository import new_point

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@pytest.fixture
def small(tmp_path):
    """Factory: a directory on a file system of this many MiB."""
    mounted = []

    def make(name, size):
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", folder], check=True)
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def state(vm):
    return tuple(vm.domain.state())


PAUSED_BY_ERROR = (3, 5)
RUNNING = 1


@pytest.fixture
def writing_guest(private_libvirt, guest_parts, tmp_path):
    """A guest with a file of 60 MB to overwrite."""
    with Guest(private_libvirt, tmp_path / "guest", guest_parts) as vm:
        vm.wait_agent()
        vm.run("dd if=/dev/urandom of=/mnt/big bs=1M count=60 conv=fsync")
        yield vm


OVERWRITE = "dd if=/dev/zero of=/mnt/big bs=1M count=60 conv=notrunc,fsync"


def test_the_guest_fills_the_scratch_and_goes_on(writing_guest, small, tmp_path):
    vm = writing_guest
    rig = Rig(vm, tmp_path, scratch=small("full", 24))
    rig.start(phase="copying+alarmed")
    vm.begin(OVERWRITE)
    wait_for(lambda: state(vm) == PAUSED_BY_ERROR, "the guest paused for want of scratch")
    rig.wait_event("alarmed")
    code, result, _ = rig.end()
    assert code == 6 and result["code"] == "scratch-full" and result["left_behind"] == []
    assert state(vm)[0] == RUNNING
    vm.run("wait; sync; cmp -n 1000000 /mnt/big /dev/zero")  # what it wrote meanwhile arrived
    rig.assert_clean([])
    assert rig.pull("--scratch-dir", tmp_path)["details"]["checkpoint"]


def test_a_dead_run_starves_the_guest_and_the_next_one_frees_it(writing_guest, small, tmp_path):
    vm = writing_guest
    rig = Rig(vm, tmp_path, scratch=small("full", 24))
    rig.start(phase="copying")
    rig.process.kill()
    rig.process.communicate()
    vm.begin(OVERWRITE)
    wait_for(lambda: state(vm) == PAUSED_BY_ERROR, "the guest paused for want of scratch")
    code, result = rig.cleanup()
    assert code == 0 and "pause of the guest because scratch was full" in [item["what"] for item in result["found"]]
    assert state(vm)[0] == RUNNING
    rig.assert_clean([])


def test_a_guest_that_its_own_disk_paused_is_left_paused(private_libvirt, guest_parts, small, tmp_path):
    (tmp_path / "empty").mkdir()
    image = ext4_image(small("image", 24) / "vdb.qcow2", 64 * MIB, tmp_path / "empty")
    with Guest(private_libvirt, tmp_path / "guest", guest_parts, {"vdb": Disk(path=image)}) as vm:
        vm.wait_agent()
        rig = Rig(vm, tmp_path)
        rig.start("--no-checkpoint", phase="copying")
        vm.begin("dd if=/dev/urandom of=/mnt2/big bs=1M count=40")
        wait_for(lambda: state(vm) == PAUSED_BY_ERROR, "the guest paused for want of room for its image")
        assert rig.end()[0] == 0
        assert state(vm) == PAUSED_BY_ERROR


@pytest.fixture
def rig(machine, tmp_path, small):
    """A machine without an operating system, with 24 MiB of scratch."""
    vm = machine({"vda": 64 * MIB})
    vm.write("vda", 0, 40 * MIB, 0x11)
    return Rig(vm, tmp_path, scratch=small("scratch", 24))


def overwrite_at_once(rig):
    """Overwrite between two measurements of scratch: its growth from one to the next shows when it will be full."""
    rig.process.send_signal(signal.SIGSTOP)
    rig.vm.write("vda", 0, 20 * MIB, 0x22)
    rig.process.send_signal(signal.SIGCONT)


def test_scratch_that_fills_up_is_foreseen(rig):
    rig.start(phase="copying+alarmed")
    overwrite_at_once(rig)
    rig.wait_event("alarmed")
    code, result, _ = rig.end()
    assert code == 6 and result["code"] == "scratch-full" and str(rig.scratch) in result["message"]
    rig.assert_clean([])
    rig.assert_next_is_right()


def test_scratch_limit(rig):
    rig.start("--scratch-limit", "2M", phase="copying+alarmed")
    rig.vm.write("vda", 0, 4 * MIB, 0x22)
    rig.wait_event("alarmed")
    code, result, _ = rig.end()
    assert code == 12 and "--scratch-limit" in result["message"]
    rig.assert_clean([])
    rig.start("--scratch-limit", "16M", phase="copying")
    rig.vm.write("vda", 0, 4 * MIB, 0x33)
    code, result, _ = rig.end()
    assert code == 0 and 4 * MIB <= result["scratch_bytes"] < 6 * MIB
    assert result["scratch_growth"][-1][1] == result["scratch_bytes"]
    rig.assert_next_is_right()


def test_a_slow_pull_watches_the_scratch_while_it_waits_for_its_rate(rig):
    """Sixteen threads that slept off their debt noticed the limit only after four minutes."""
    rig.start("--max-rate", "64K", "--threads", 16, "--scratch-limit", "2M", phase="reading")
    rig.release()
    rig.vm.write("vda", 0, 4 * MIB, 0x22)
    code, result, _ = rig.end()  # which waits for a quarter of that
    assert code == 12 and "--scratch-limit" in result["message"]
    rig.assert_clean([])


def test_too_little_scratch_to_begin_with(rig, small):
    full = small("none", 8)
    (full / "file").write_bytes(bytes(8 * MIB - 65536))
    rig.start("--scratch-dir", full)
    code, result, _ = rig.end()
    assert code == 6 and result["code"] == "scratch-full" and "--scratch-dir" in result["message"]
    rig.assert_clean([])


def test_plan_and_doctor_report_too_little_scratch(rig, small):
    full = small("none", 8)
    (full / "file").write_bytes(bytes(8 * MIB - 65536))
    where = [rig.vm.name, "-c", rig.vm.bed.uri, "--scratch-dir", full]
    done = rig.run("plan", *where)
    assert done.returncode == 6 and "--scratch-dir" in done.stderr
    rig.assert_domain_clean([])
    done = rig.run("doctor", *where, "--json")
    [found] = [each for each in json.loads(done.stdout) if each["subject"] == "scratch"]
    assert done.returncode == 6 and found["state"] == "BAD" and "--scratch-dir" in found["advice"]


def test_a_plan_ends_its_job_before_scratch_is_full(rig):
    words = ["plan", rig.vm.name, "-c", rig.vm.bed.uri, "--scratch-dir", rig.scratch, "--json"]
    rig.start(words=words, phase="sampling+alarmed")
    overwrite_at_once(rig)
    rig.wait_event("alarmed")
    code, _, said = rig.end()
    assert code == 6 and "is almost full" in said
    rig.assert_domain_clean([])


@pytest.mark.parametrize("options, when", [((), "to be read in full"), (("--no-space-check",), "No space left")])
def test_the_store_is_full(rig, small, options, when):
    rig.store = small("store", 8)
    rig.vm.write_bytes("vda", 0, os.urandom(20 * MIB))
    rig.start(*options)
    code, result, _ = rig.end()
    assert code == 9 and result["code"] == "output-full" and when in result["message"]
    rig.assert_clean([])
    subprocess.run(["mount", "-o", "remount,size=64m", rig.store], check=True)
    rig.assert_next_is_right()


@pytest.mark.parametrize(
    "last", [(disk_copy.DiskCopy, "close"), (new_point.NewPoint, "commit")], ids=["file", "commit"]
)
def test_a_failure_after_the_job_removes_its_checkpoint(machine, tmp_path, monkeypatch, last):
    """The last files are synced while the job ends, so what fails may come after its success."""
    vm = machine({"vda": 4 * MIB})
    request = pull.Options(vm.name, str(tmp_path / "store"), uri=vm.bed.uri)
    pull.pull(request)
    before = vm.checkpoints()

    def full(*_):
        wait_for(lambda: not vm.job_active(), "the end of the job")
        raise errors.OutputFull("no space left")

    monkeypatch.setattr(*last, full)
    with pytest.raises(errors.OutputFull):
        pull.pull(request)
    assert vm.checkpoints() == before
    assert len([*tmp_path.glob("store/*/*/")]) == 1
