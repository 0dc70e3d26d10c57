"""Tests of the test bed itself: what the other tests take for granted."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bed import BedError
from bed.guest import Guest
from bed.libvirtd import libvirt
from bed.machine import MIB, Disk, Machine, wait_for
from bed.saved_guest import SavedGuest

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def two_disks(private_libvirt, tmp_path_factory):
    """A machine for the tests that only write."""
    disks = {"vda": 8 * MIB, "vdb": Disk(MIB + 512, "raw")}
    with Machine(private_libvirt, tmp_path_factory.mktemp("images"), disks) as vm:
        yield vm


def test_content_is_what_was_written(two_disks):
    vm = two_disks
    model = bytearray(8 * MIB)
    vm.write("vda", 100, 70000, 0x11)
    model[100:70100] = b"\x11" * 70000
    vm.write("vda", 2 * MIB, 3 * MIB, 0x22)
    model[2 * MIB : 5 * MIB] = b"\x22" * (3 * MIB)
    vm.write_zeroes("vda", 2 * MIB + 5, 100)
    model[2 * MIB + 5 : 2 * MIB + 105] = bytes(100)
    vm.write_zeroes("vda", 3 * MIB, MIB, unmap=True)
    model[3 * MIB : 4 * MIB] = bytes(MIB)
    vm.discard("vda", 4 * MIB, 128 * 1024)
    model[4 * MIB : 4 * MIB + 128 * 1024] = bytes(128 * 1024)
    noise = os.urandom(12345)
    vm.write_bytes("vda", 6 * MIB + 7, noise)
    model[6 * MIB + 7 : 6 * MIB + 7 + len(noise)] = noise
    assert vm.content("vda") == model


def test_content_of_raw_disk_with_odd_size(two_disks):
    two_disks.write("vdb", MIB, 512, 0x33)
    assert two_disks.content("vdb") == bytes(MIB) + b"\x33" * 512


def test_content_of_running_machine(two_disks):
    two_disks.resume()
    two_disks.write("vda", 7 * MIB, 65536, 0x44)
    assert two_disks.content("vda")[7 * MIB : 7 * MIB + 65536] == b"\x44" * 65536
    assert two_disks.running
    two_disks.suspend()


@pytest.mark.parametrize("command", ["write -q -P 1 1G 64k", "write -q -P zz 0 1", "no-such-command"])
def test_failed_write_is_an_error(two_disks, command):
    with pytest.raises(BedError):
        two_disks.qemu_io("vda", command)


def test_writes_are_recorded_in_a_checkpoint(machine):
    vm = machine({"vda": 8 * MIB, "vdb": Disk(MIB, "raw"), "vdc": 8 * MIB})
    vm.create_checkpoint("one")
    vm.write("vda", 0, 65536)
    vm.write_zeroes("vda", MIB, 65536, unmap=True)
    vm.discard("vdc", 3 * 65536, 65536)
    assert vm.bitmaps("vda")["one"]["count"] == 2 * 65536
    assert vm.bitmaps("vdc")["one"]["count"] == 65536
    assert vm.bitmaps("vdb") == {}
    vm.create_checkpoint("two", disks=["vda"])
    assert vm.checkpoints() == ["one", "two"]
    assert vm.bitmaps("vda")["two"]["count"] == 0
    vm.delete_checkpoint("one")
    assert vm.checkpoints() == ["two"]


def test_bitmaps_after_stop_offline_write_and_kill(machine):
    vm = machine({"vda": 8 * MIB})
    vm.create_checkpoint("one")
    vm.write("vda", 0, 65536)
    vm.stop()
    assert vm.pid is None
    vm.write_offline("vda", [f"write -q -P 7 {n}M 64k" for n in range(1, 4)])
    with pytest.raises(BedError):
        vm.write_offline("vda", ["write -q -P 7 1G 64k"])
    vm.start()
    assert vm.bitmaps("vda")["one"]["count"] == 4 * 65536
    assert vm.content("vda")[3 * MIB : 3 * MIB + 65536] == b"\x07" * 65536
    vm.kill()
    vm.start()
    assert vm.bitmaps("vda")["one"]["inconsistent"]


@pytest.mark.parametrize("target", ["vdb", "sda"])
def test_disks_come_and_go(machine, target):
    vm = machine({"vda": MIB})
    vm.attach_disk(target, Disk(MIB))
    vm.create_checkpoint("one")
    vm.write(target, 0, 65536)
    assert vm.bitmaps(target)["one"]["count"] == 65536
    vm.resize("vda", 2 * MIB)
    assert len(vm.content("vda")) == 2 * MIB
    vm.detach_disk(target)
    assert f"dev='{target}'" not in vm.domain.XMLDesc()
    vm.write("vda", MIB, 512)


def test_machines_outlive_a_restart_of_the_daemon(machine, private_libvirt):
    vm = machine({"vda": MIB})
    pid = vm.pid
    vm.create_checkpoint("one")
    for hard in (False, True):
        private_libvirt.restart(hard)
        assert vm.pid == pid and vm.active
        assert vm.checkpoints() == ["one"]
        vm.write("vda", 0, 512)


def test_job_active(machine, private_libvirt, tmp_path):
    vm = machine({"vda": MIB})
    assert not vm.job_active()
    backup = tmp_path / "backup.xml"
    backup.write_text("<domainbackup mode='pull'><server transport='unix' socket='/tmp/bed-test.sock'/></domainbackup>")
    private_libvirt.virsh("backup-begin", vm.name, backup)
    assert vm.job_active()
    private_libvirt.virsh("domjobabort", vm.name)
    wait_for(lambda: not vm.job_active(), "end of the job")


def test_a_machine_that_is_started_while_it_is_closed(private_libvirt, tmp_path, monkeypatch):
    """libvirt's undefine waits for a start that came first, and leaves a running domain that is no longer defined."""
    vm, is_active = Machine(private_libvirt, tmp_path, {"vda": MIB}), libvirt.virDomain.isActive

    def started_after_that(domain):
        found = is_active(domain)
        vm.start()
        return found

    monkeypatch.setattr(libvirt.virDomain, "isActive", started_after_that)
    vm.close()
    assert vm.name not in [each.name() for each in private_libvirt.connection().listAllDomains()]


def test_domains_that_are_left_are_ended(private_libvirt, tmp_path):
    with Machine(private_libvirt, tmp_path / "others", {"vda": MIB}) as left:
        left.create_checkpoint("one")
        names = private_libvirt.virsh("list", "--all", "--name").split()
        assert left.name in names and private_libvirt.end_domains() == names
        assert private_libvirt.virsh("list", "--all", "--name").split() == []


DIES = """
import os, sys
sys.path.insert(0, sys.argv[1])
from bed.libvirtd import PrivateLibvirt
from bed.machine import Machine
bed = PrivateLibvirt().__enter__()
vm = Machine(bed, sys.argv[2], {"vda": 1 << 20})
vm.start()
print(vm.pid, bed.folder, flush=True)
os.kill(os.getpid(), 9)
"""


def test_nothing_outlives_the_process_that_died(private_libvirt, tmp_path):
    done = subprocess.run([sys.executable, "-c", DIES, str(TESTS), str(tmp_path)], capture_output=True, text=True)
    pid, folder = done.stdout.split()
    assert done.returncode == -9
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "QEMU gone")
    wait_for(lambda: not Path(folder).exists(), "folder gone")


def test_guest_agent_answers_and_freezes(guest):
    assert guest.run("cat /proc/mounts").count("/dev/vda /mnt ext4") == 1
    guest.run("echo kept > /mnt/file && sync")
    assert guest.domain.fsFreeze() == 1
    assert guest.domain.fsThaw() == 1
    assert guest.run("cat /mnt/file") == "kept\n"
    with pytest.raises(BedError):
        guest.run("exit 3")


def test_a_saved_guest_has_its_agent_its_clock_and_its_disk_again(private_libvirt, guest_parts, saved_guest, tmp_path):
    """And each is a new one: what the first has written to memory or disk is not in the second."""
    for number in range(2):
        with SavedGuest(private_libvirt, tmp_path / str(number), guest_parts, saved_guest) as vm:
            assert same_content(vm.disks["vda"].path, saved_guest.disk)
            assert "new" not in vm.run("ls /mnt /run")
            assert abs(int(vm.run("date +%s")) - time.time()) < 5
            vm.create_checkpoint("one")
            vm.run("echo new > /mnt/new; echo new > /run/new; sync")
            assert vm.bitmaps("vda")["one"]["count"] > 0
            assert vm.run("cat /proc/mounts").count("/dev/vda /mnt ext4") == 1
            assert not same_content(vm.disks["vda"].path, saved_guest.disk)


def test_guest_writes_by_itself(guest):
    guest.create_checkpoint("one")
    guest.start_writer()
    wait_for(lambda: guest.bitmaps("vda")["one"]["count"] > 0, "a write of the guest's own")
    guest.stop_writer()
    written = guest.run("ls -l --full-time /mnt/churn")
    assert guest.run("sleep 1; ls -l --full-time /mnt/churn") == written


def test_frozen_ext4_needs_no_recovery(guest, tmp_path):
    guest.start_writer()
    guest.run("until ls /mnt/churn/*; do sleep 0.1; done")
    guest.domain.fsFreeze()
    frozen = guest.freeze_copy("vda", tmp_path / "frozen.raw")
    guest.domain.fsThaw()
    guest.run("sync")
    running = guest.freeze_copy("vda", tmp_path / "running.raw")
    assert "needs_recovery" not in features(frozen)
    assert "needs_recovery" in features(running)


def same_content(image, other):
    """Compare with qemu-img, whose status 1 means a difference."""
    done = subprocess.run(["qemu-img", "compare", "-U", "-q", str(image), str(other)], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def features(image):
    listing = subprocess.run(["/usr/sbin/dumpe2fs", "-h", str(image)], capture_output=True, text=True, check=True)
    return next(line for line in listing.stdout.splitlines() if line.startswith("Filesystem features"))


def test_ioping_in_the_guest_writes_and_reports_each_time(private_libvirt, guest_parts, tmp_path):
    with Guest(private_libvirt, tmp_path, guest_parts, {"vdb": 16 * MIB}) as vm:
        vm.wait_agent()
        started = time.monotonic()
        vm.start_ioping("vdb")
        vm.run("sleep 1")
        times = vm.stop_ioping()
        assert times and 0 < sum(times) < time.monotonic() - started
        assert any(vm.content("vdb"))
