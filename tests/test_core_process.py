"""Whether a process is alive: pids are used again, machines reboot, and a parent need not collect an exit code."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from nbdpull.core import process


@pytest.fixture
def child():
    """A process, and the Process that describes it."""
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started, process.of(started.pid)
    started.kill()
    started.communicate()


def test_a_process_lives_until_its_end(child):
    started, recorded = child
    assert recorded.is_alive and process.of().is_alive and process.of().pid == os.getpid()
    started.send_signal(signal.SIGSTOP)
    assert recorded.is_alive
    started.kill()
    started.wait()
    assert recorded.is_alive is False


def test_zombies_count_as_alive(child):
    """The parent of a killed pull need not have collected its exit code."""
    started, recorded = child
    started.kill()
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    with open(f"/proc/{started.pid}/stat") as stat:
        assert " Z " in stat.read()
    assert recorded.is_alive is False and recorded.is_dead and process.of(started.pid).is_alive is False


def test_another_process_of_the_same_pid_is_another_one(child):
    _, recorded = child
    assert replace(recorded, started=recorded.started - 1).is_alive is False
    assert replace(recorded, boot="before").is_alive is False
    assert process.Process().is_alive is None and replace(recorded, pid=0, started=0).is_alive is False


def test_what_is_on_another_machine_is_not_known(child):
    _, recorded = child
    assert replace(recorded, machine="another").is_alive is None and not replace(recorded, machine="another").is_dead
    assert replace(recorded, host="renamed").is_alive


@pytest.mark.parametrize("name", [") Z 1 1", "((", "a b"])
def test_a_process_of_an_odd_name(tmp_path, name):
    """/proc shows the name between brackets, unchanged."""
    program = shutil.copy(shutil.which("sleep"), tmp_path / name)
    with subprocess.Popen([program, "60"]) as started:
        try:
            with open(f"/proc/{started.pid}/stat") as stat:
                assert f"({name})" in stat.read()
            assert process.of(started.pid).is_alive
        finally:
            started.kill()


def test_a_machine_without_an_id_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(process, "_line", lambda path: "" if "machine-id" in path else "boot")
    assert process.of().machine == process.of().host != ""
