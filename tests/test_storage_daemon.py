"""A qemu-storage-daemon of our own: it answers, or is abandoned in time, ends with us, and cannot be found by
others."""

import os
import signal
import subprocess
import sys
import time

import pytest
from bed.machine import wait_for

from nbdpull.core import errors
from nbdpull.nbd import storage_daemon
from nbdpull.nbd.storage_daemon import StorageDaemon


def daemons_of(pid):
    """Return the process ids of the daemons that a process started."""
    found = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "qemu-storage-da" in line]


def ended(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = descriptors()
    with StorageDaemon() as daemon:
        (pid,) = daemons_of(os.getpid())
        assert tuple(map(int, daemon.version.split("."))) >= (6, 1, 0)
        assert os.listdir(tmp_path) == []  # its socket has no name
    assert ended(pid) and descriptors() <= before


def test_long_tmpdir(tmp_path, monkeypatch):
    """The path of a socket has at most 107 bytes."""
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with StorageDaemon() as daemon:
        assert daemon.ask("query-block-exports") == []
    assert os.listdir(folder) == []


def test_refusal_is_raised(tmp_path):
    with StorageDaemon() as daemon:
        with pytest.raises(storage_daemon.Refused, match="No such file"):
            daemon.ask("blockdev-add", node_name="n", driver="file", filename=str(tmp_path / "none"))
        daemon.require_alive()


def test_daemon_is_killed():
    with StorageDaemon() as daemon:
        os.kill(daemons_of(os.getpid())[0], signal.SIGKILL)
        with pytest.raises(errors.JobLost, match="by signal 9"):
            daemon.ask("query-block-exports")
        with pytest.raises(errors.JobLost, match="by signal 9"):
            daemon.require_alive()


def test_daemon_is_silent():
    with StorageDaemon(stall_timeout=0.3) as daemon:
        (pid,) = daemons_of(os.getpid())
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(errors.SourceError, match="was silent for 0.3 s over query-block-exports"):
            daemon.ask("query-block-exports")
    assert ended(pid)


def test_a_signal_ends_the_wait():
    stopped = []

    def check():
        if stopped:
            raise errors.Interrupted(signal.SIGINT)

    with StorageDaemon(check) as daemon:
        os.kill(daemons_of(os.getpid())[0], signal.SIGSTOP)
        stopped.append(True)
        with pytest.raises(errors.Interrupted):
            daemon.ask("query-block-exports")


def test_it_ends_with_nbdpull_even_after_a_kill():
    begin = "from nbdpull.nbd.storage_daemon import StorageDaemon; daemon = StorageDaemon()"
    program = f"{begin}; print(1, flush=True); input()"
    us = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    us.stdout.readline()
    (pid,) = daemons_of(us.pid)
    us.kill()
    us.communicate()
    wait_for(lambda: ended(pid), "the end of the daemon")


def test_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.MissingSoftware, match="qemu-utils .*qemu-img"):
        StorageDaemon()


@pytest.mark.parametrize("says", ["exit 3", "echo nonsense >&2; exit 3"])
def test_daemon_that_does_not_start(monkeypatch, tmp_path, says):
    program = tmp_path / "qemu-storage-daemon"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before, began = descriptors(), time.monotonic()
    with pytest.raises(errors.JobLost, match="with code 3"):
        StorageDaemon()
    assert descriptors() <= before and time.monotonic() < began + 5
