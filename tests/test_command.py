"""core/command: a user's command, and its whole process group, end with us wherever we are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bed.machine import wait_for

from nbdpull.core import child, command, errors

PROGRAM = """
import os, signal, subprocess, sys, time
from nbdpull.core import command

command.GRACE = 0.2
begin = subprocess.Popen

def killed_at_once(*words, **how):
    begin(*words, **how)
    while not os.path.exists("pids"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

subprocess.Popen = killed_at_once
command.run(sys.argv[1:], os.environ, None, lambda: None)
"""
STANDS = ["sh", "-c", "sleep 1000 & echo $! $$ > new; mv new pids; wait"]
IGNORES = ["sh", "-c", "trap '' TERM; sleep 1000 & echo $! $$ > new; mv new pids; wait; sleep 1000"]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(folder):
    """Return the process ids of a command and its child, once they exist."""
    return [int(word) for word in (folder / "pids").read_text().split()] if (folder / "pids").exists() else []


@pytest.mark.parametrize("words", [STANDS, IGNORES], ids=["that stands", "that ignores TERM"])
def test_the_whole_command_ends_if_nbdpull_is_killed_as_it_starts(tmp_path, words):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, env=child.finding_us())
    assert done.returncode == -signal.SIGKILL
    assert len(pids(tmp_path)) == 2
    wait_for(lambda: not any(map(is_alive, pids(tmp_path))), "the end of the command and its child")


@pytest.mark.parametrize("words, code", [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], -9)])
def test_how_it_ended(words, code):
    before = set(os.listdir("/proc/self/fd"))
    assert command.run(words, os.environ, None, lambda: None) == code
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_command_that_has_ended_leaves_what_it_began(tmp_path):
    """The command counts on that: nothing is killed once it has ended by itself."""
    words = ["sh", "-c", f"sleep 1000 >{tmp_path}/out & echo $! > {tmp_path}/pid"]
    assert command.run(words, os.environ, None, lambda: None) == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        assert is_alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("words, waits", [(STANDS, False), (IGNORES, True)], ids=["that stands", "that ignores TERM"])
def test_an_exception_of_check_ends_it(tmp_path, monkeypatch, words, waits):
    """All of it: at once if TERM suffices, else by KILL once its time is over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "GRACE", 0.3 if waits else 1000)

    def check():
        if pids(tmp_path):
            raise errors.LimitReached("over")

    begun = time.monotonic()
    with pytest.raises(errors.LimitReached):
        command.run(words, os.environ, None, check)
    assert (time.monotonic() - begun >= 0.3) or not waits
    wait_for(lambda: not any(map(is_alive, pids(tmp_path))), "the end of the command and its child")


def test_a_command_has_ten_seconds_to_end():
    assert command.GRACE == 10, "as the manual says"


def test_a_program_that_cannot_be_run(tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(errors.CommandFailed, match="could not be run"):
        command.run([str(broken)], os.environ, None, lambda: None)
