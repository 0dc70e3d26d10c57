"""What keeps a pull from getting in the guest's way: a rate, few reads at once, a nice value, one budget for all disks.

Owns: that each option has its effect in the real program. The arithmetic of a rate is in test_throttle.
"""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from bed.machine import MIB, wait_for
from test_pull import last_event, next_event, start_nbdpull

from nbdpull import source

pytest.importorskip("libvirt")


@contextmanager
def pulling(vm, folder, *options, **how):
    """A pull that has begun to copy; it has ended when the block is left."""
    words = ["pull", "-o", folder / "store", "--json", "-c", vm.bed.uri, "--no-checkpoint", "--full", *options]
    process = start_nbdpull(*words, "--", vm.name, **how)
    try:
        next_event(process, "progress")
        yield process
        process.terminate()
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()


def threads_of(process):
    """The least of a few looks: each call of libvirt has a thread for as long as it takes."""
    counts = []
    for _ in range(5):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        counts += [int(line.split()[1]) for line in lines if line.startswith("Threads:")]
        time.sleep(0.02)
    return min(counts)


def sockets_of(process):
    links = (Path(f"/proc/{process.pid}/fd") / name for name in os.listdir(f"/proc/{process.pid}/fd"))
    return sum(os.readlink(link).startswith("socket:") for link in links)


@pytest.fixture
def filled(machine):
    """Factory: a machine with so many disks that hold so many MiB of data each."""

    def make(disks, size):
        vm = machine({f"vd{letter}": size * MIB for letter in "abcdefghijkl"[:disks]})
        for disk in vm.disks:
            vm.write_bytes(disk, 0, os.urandom(size * MIB))
        return vm

    return make


def test_the_rate_is_kept_and_changes_while_the_pull_runs(filled, tmp_path):
    vm, rate = filled(1, 24), tmp_path / "rate"
    began = time.monotonic()
    with pulling(vm, tmp_path, "--max-rate", "2M", "--max-rate-file", rate) as process:
        time.sleep(2)
        assert process.poll() is None
        rate.write_text("0\n")
        told, problem = process.communicate(timeout=60)
        assert process.returncode == 0, problem
    assert last_event(told)["point"]["disks"][0]["read_bytes"] == 24 * MIB
    assert 2 < time.monotonic() - began < 10  # of 12 at the first rate


@pytest.mark.parametrize("options, nice", [(["--gentle"], 19), (["--nice", "7"], 7), ([], 0)])
def test_nice(filled, tmp_path, options, nice):
    with pulling(filled(1, 8), tmp_path, "--max-rate", "1M", *options) as process:
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + nice


def test_gentle_reads_through_one_connection(filled, tmp_path):
    """And one more is for the map; however many threads there are, a disk has no more than READERS."""
    vm = filled(1, 24)
    with pulling(vm, tmp_path / "a", "--max-rate", "16M", "--gentle") as process:
        gentle = sockets_of(process)
    with pulling(vm, tmp_path / "b", "--max-rate", "16M", "--threads", "6") as process:
        wait_for(lambda: sockets_of(process) == gentle + source.READERS - 1, "its connections")


def test_all_disks_share_the_threads(filled, tmp_path):
    with pulling(filled(6, 4), tmp_path / "a", "--max-rate", "2M", "--threads", "3") as process:
        time.sleep(1)
        many = threads_of(process)
    assert many <= 3 + 1 + 2 + 1  # readers, the command line, who looks at scratch and at the guest, the map


def test_threads_follow_the_cores(filled, tmp_path):
    vm, counts = filled(1, 16), []
    cores = sorted(os.sched_getaffinity(0))
    for number, some in enumerate((cores[:1], cores)):
        how = {"preexec_fn": lambda some=some: os.sched_setaffinity(0, some)}
        with pulling(vm, tmp_path / str(number), "--max-rate", "2M", **how) as process:
            time.sleep(1)
            counts.append(threads_of(process))
    assert counts[1] - counts[0] == min(len(cores) + 2, 16) - 3
