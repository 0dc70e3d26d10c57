"""Forked command lines end like others."""

import command
import pytest

HELD = """
import atexit, json, os, sys, threading, time

import numpy
from nbdpull.core import errors, software

def write(text, to=os.write):
    to(1, text.encode() + b"\\n")

class Held:
    def __init__(self, where):
        self.where = where

    def __del__(self, write=write):
        write(self.where)

here, errors.held, numpy.held = Held("of the program"), Held("of the package"), Held("of a library")
software.PACKAGES["held"] = Held("of a table")
atexit.register(lambda: write("at exit"))
threading.Thread(target=lambda: (time.sleep(0.1), json.dumps([]), write("of a thread"))).start()
sys.exit(7)
"""


@pytest.mark.parametrize("forked", [True, False])
def test_its_teardown(tmp_path, forked):
    """The whole package, after threads and exit handlers; not other libraries, and not what they may hold, such as the
    program's own globals."""
    program = tmp_path / "program.py"
    program.write_text(HELD)
    process = command.start_nbdpull(program=[program], child=not forked)
    assert isinstance(process, command.Forked) is forked
    out, err = process.communicate(timeout=60)
    wanted = [
        "of a thread",
        "at exit",
        "of the package",
        "of a table",
        *([] if forked else ["of a library", "of the program"]),
    ]
    assert (process.returncode, sorted(out.splitlines()), err) == (7, sorted(wanted), "")
    assert out.splitlines()[:2] == wanted[:2]
