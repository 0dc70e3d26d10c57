"""What keeps a pull out of the guest's way: a rate, few reads at once, a nice value, one budget for all disks.

Owns: that each option has its effect in the real program. test_throttle has the arithmetic of a rate.
"""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from bed.machine import MIB, wait_for
from command import last_event, next_event, start_nbdpull

from nbdpull.nbd import source

pytest.importorskip("libvirt")


@contextmanager
def pulling(vm, folder, *options, **how):
    """A pull that has begun to copy; it has ended at the end of the block."""
    words = ["pull", "-o", folder / "store", "--json", "-c", vm.bed.uri, "--no-checkpoint", "--full", *options]
    process = start_nbdpull(*words, "--", vm.name, **how)
    try:
        next_event(process, "progress")
        yield process
        process.terminate()
        process.communicate()
    finally:
        process.kill()
        process.communicate()


OTHERS = 4  # threads beside the readers: the command line, and who looks at scratch, at the guest, and at the domain


def threads_of(process):
    """Return how many threads it has now: each call of libvirt has one for as long as it takes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Threads:"))


def connections_to(server):
    """Return how many clients a Unix socket has."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(fields[5] == "03" and fields[7] == str(server) for fields in lines if len(fields) == 8)


@pytest.fixture
def filled(machine):
    """Factory: a machine with that many disks, each with that many MiB of data."""

    def make(disks, size):
        vm = machine({f"vd{letter}": size * MIB for letter in "abcdefghijkl"[:disks]})
        for disk in vm.disks:
            vm.write_bytes(disk, 0, os.urandom(size * MIB))
        return vm

    return make


def test_the_rate_is_kept_and_changes_while_the_pull_runs(filled, tmp_path):
    vm, rate = filled(1, 48), tmp_path / "rate"
    began = time.monotonic()
    with pulling(vm, tmp_path, "--threads", "1", "--max-rate", "1M", "--max-rate-file", rate) as process:
        while next_event(process, "progress")["position"] < 3 * MIB:
            pass
        rate.write_text("0\n")
        reported, problem = process.communicate(timeout=60)
        assert process.returncode == 0, problem
    assert last_event(reported)["details"]["disks"][0]["read_bytes"] == 48 * MIB
    assert 2.5 < time.monotonic() - began < 47.5  # what 3 MiB take at that rate, and what all would have


SLOWLY = ("--max-rate", "1M")  # it goes on for as long as anything here may be waited for


@pytest.mark.parametrize("options, nice", [(["--gentle"], 19), (["--nice", "7"], 7), ([], 0)])
def test_nice(filled, tmp_path, options, nice):
    with pulling(filled(1, 24), tmp_path, *SLOWLY, *options) as process:
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)


@pytest.mark.parametrize("options, readers", [(["--gentle"], 1), (["--threads", "6"], source.READERS)])
def test_gentle_reads_through_one_connection(filled, tmp_path, options, readers):
    """One more is for the map; however many threads there are, a disk has no more than READERS."""
    with pulling(filled(1, 24), tmp_path, "--socket", tmp_path / "s", *SLOWLY, *options):
        assert connections_to(tmp_path / "s") == readers + 1


def test_all_disks_share_the_threads(filled, tmp_path):
    with pulling(filled(6, 4), tmp_path, *SLOWLY, "--threads", "3") as process:
        wait_for(lambda: threads_of(process) == 3 + OTHERS, "its readers")


@pytest.mark.parametrize("cores", [1, None])
def test_threads_follow_the_cores(filled, tmp_path, cores):
    some = sorted(os.sched_getaffinity(0))[:cores]
    with pulling(filled(1, 24), tmp_path, *SLOWLY, preexec_fn=lambda: os.sched_setaffinity(0, some)) as process:
        wait_for(lambda: threads_of(process) == min(len(some) + 2, 16) + OTHERS, "its readers")
