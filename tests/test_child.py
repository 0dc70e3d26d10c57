"""A program that must not outlive us: it ends when we do, however we end."""

import os
import select
import subprocess
import sys

import pytest
from command import PROJECT, environment

STARTS = """
import os, signal, subprocess, sys
from nbdpull.core.child import ended_with_us
end, kept, *number = map(int, sys.argv[1:])
how = {"preexec_fn": ended_with_us(*number), "pass_fds": [kept]}
child = subprocess.Popen(["sleep", "100"], stdout=subprocess.DEVNULL, **how)
print(child.pid, flush=True)
os.kill(os.getpid(), end)
"""


@pytest.mark.parametrize("end", [9, 15])
@pytest.mark.parametrize("number", [[], [15]], ids=["SIGKILL", "SIGTERM"])
def test_it_ends_with_its_parent(end, number):
    reading, writing = os.pipe()  # the child has that end of it as long as it lives
    command = [sys.executable, "-c", STARTS, str(end), str(writing), *map(str, number)]
    with os.fdopen(reading) as alive:
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=PROJECT, timeout=60,
                              pass_fds=[writing])  # fmt: skip
        os.close(writing)
        assert done.returncode == -end, done.stderr
        ended, _, _ = select.select([alive], [], [], 20)  # nobody has the other end any more
        assert ended and alive.read() == ""


def test_a_child_of_a_dead_parent_ends_itself(monkeypatch):
    """The parent may end between the fork and the request; nothing would notify the child then."""
    from nbdpull.core import child

    prepare = child.ended_with_us()
    reported = []
    monkeypatch.setattr(child.os, "getppid", lambda: 1)
    monkeypatch.setattr(child.os, "kill", lambda *how: reported.append(how))
    monkeypatch.setattr(child, "_PRCTL", lambda *_: 0)
    prepare()
    assert reported == [(os.getpid(), 9)]
