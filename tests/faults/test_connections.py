"""The connections to QEMU's NBD server: how many, and when they are made."""

import subprocess
import sys

import pytest
from bed.machine import MIB, Machine, wait_for
from rig import Rig, environment

pytest.importorskip("libvirt")

CROWD = [f"sd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def rig(machine, tmp_path):
    vm = machine({disk: 8 * MIB for disk in CROWD})
    for disk in CROWD:
        vm.write(disk, 0, 8 * MIB, 0x11)
    return Rig(vm, tmp_path)


def test_many_disks_and_many_threads(rig):
    """26 disks and 8 threads would make 234 connections, and QEMU lets the 101st wait without any error."""
    rig.start("--threads", "8", "--stall-timeout", "10")
    code, result, said = rig.end()
    assert code == 0, said
    rig.vm.write("sdz", 0, 65536, 0x22)
    rig.assert_next_is_right("--threads", "8", "--stall-timeout", "10")


def test_the_job_is_ended_by_somebody_else(rig):
    """Repeatedly, as soon as something is read: QEMU keeps running, and nothing is left."""
    for _ in range(3):
        rig.start(phase="copying")
        rig.vm.domain.abortJob()
        rig.vm.hmp("info status")  # it does not hang
        wait_for(lambda: not rig.vm.job_active(), "end of the job")
        code, result, _ = rig.end()
        assert code == 6 and result["code"] == "job-lost" and result["left_behind"] == []
        rig.assert_clean([])
    rig.assert_next_is_right()


STANDING = """
import sys, threading, time
from nbdpull.cli import main as cli
from nbdpull.nbd import source_connection
standing = threading.Barrier(2)  # threads: one reads over all connections but the last one, another over that
def stand(connection, cookie, doing, failed, wait=source_connection.SourceConnection._wait):
    if doing.startswith("reading"):
        if standing.wait() == 0:
            print('{"event": "held"}', flush=True)
        time.sleep(600)
    wait(connection, cookie, doing, failed)
source_connection.SourceConnection._wait = stand
sys.exit(cli.main(sys.argv[1:]))
"""


def test_unread_answers(private_libvirt, tmp_path):
    """If we are stopped in the middle of our reads, QEMU can still pause and resume the guest at once."""
    with Machine(private_libvirt, tmp_path / "images", {"vda": 16 * MIB}, paused=False) as vm:
        vm.write("vda", 0, 16 * MIB, 0x11)
        rig = Rig(vm, tmp_path)
        rig.process = subprocess.Popen([sys.executable, "-c", STANDING, *rig.words("--threads", "4")], text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())  # fmt: skip
        try:
            rig.wait_event("held")
            vm.suspend()
            vm.resume()
        finally:
            rig.process.kill()
            rig.process.communicate()
        rig.assert_next_is_right("--resume=never")
