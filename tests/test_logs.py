"""cli/logs.py: what -v, -vv and a log file contain, and what happens if a log cannot be written."""

import io
import logging
import os
import re
import stat
import subprocess
import sys

import pytest
from bed.machine import MIB
from command import last_event, nbdpull

from nbdpull.cli import logs
from nbdpull.core import errors

TERMINAL_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (\S+): (.*)")
FILE_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (\d+) (\S+) (\S+): (.*)")

source = logging.getLogger("nbdpull.nbd")


def log_all():
    source.debug("read of %s bytes", 4096)
    source.info("connected to %s", "a.sock")
    logs.said(logging.WARNING, "the disk is slow")


@pytest.mark.parametrize("verbosity, lines", [(0, []), (1, ["connected to a.sock"]),
                                              (2, ["read of 4096 bytes", "connected to a.sock"])])  # fmt: skip
def test_logged_lines(capsys, verbosity, lines, monkeypatch):
    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)
    with logs.kept(verbosity, None, pytest.fail):
        log_all()
    log_all()  # outside, nobody hears it
    said = capsys.readouterr()
    assert said.out == ""
    assert [TERMINAL_LINE.fullmatch(line).groups() for line in said.err.splitlines()] == [
        ("nbd", text) for text in lines
    ]


@pytest.mark.parametrize("verbosity, levels", [(0, ["INFO", "WARNING"]), (2, ["DEBUG", "INFO", "WARNING"])])
def test_logged_lines_in_a_file(tmp_path, capsys, verbosity, levels, monkeypatch):
    """It also has what was printed on standard error, with the id of the process; a second run is appended."""
    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)
    path = tmp_path / "log"
    for _ in range(2):
        with logs.kept(verbosity, str(path), pytest.fail):
            log_all()
    found = [FILE_LINE.fullmatch(line).groups() for line in path.read_text().splitlines()]
    assert [level for _, level, _, _ in found] == levels * 2
    assert {pid for pid, _, _, _ in found} == {str(os.getpid())}
    assert found[-1][2:] == ("said", "the disk is slow")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "slow" not in capsys.readouterr().err


def test_a_line_is_one_line_and_harmless(tmp_path):
    path = tmp_path / "log"
    with logs.kept(0, str(path), pytest.fail):
        source.info("%s", "a\nb\x1b[2J\udc80")
    [line] = path.read_text().splitlines()
    assert line.endswith("nbd: a\\nb\\x1b[2J\\udc80")


def test_a_file_that_cannot_be_opened(tmp_path):
    refusal = pytest.raises(errors.OutputError, match=f"cannot write to {tmp_path}: Is a directory")
    with refusal, logs.kept(0, str(tmp_path), pytest.fail):
        pytest.fail("began without its log")


def test_a_full_log_is_reported_once_and_stops_nothing():
    reported = []
    with logs.kept(0, "/dev/full", reported.append):
        log_all()
        log_all()
    assert reported == ["the log /dev/full is no longer written: No space left on device"]


def test_steps_are_events_of_a_verb(tmp_path):
    """Their lists and null members are for programs."""
    path, heard = tmp_path / "log", []
    with logs.kept(1, str(path), pytest.fail):
        report = logs.with_steps(lambda event, **values: heard.append((event, values)), "restore")
        report("lost", disk="vda", offset=None, length=4096, ranges=[1])
        report("progress", disk="vda", position=1)
    assert heard == [("lost", {"disk": "vda", "offset": None, "length": 4096, "ranges": [1]}),
                     ("progress", {"disk": "vda", "position": 1})]  # fmt: skip
    assert [FILE_LINE.fullmatch(line).groups()[2:] for line in path.read_text().splitlines()] == [
        ("restore", "lost disk=vda length=4096")
    ]


def test_the_steps_of_a_pull(pulled):
    """Of an incremental one that supersedes a checkpoint, in order."""
    witness = pulled({"vda": 4 * MIB})
    before = witness.pull()
    witness.vm.write("vda", MIB, MIB, 0x55)
    done = nbdpull(*witness.words("-v"))
    point, old = last_event(done.stdout)["details"], before["checkpoint"]
    patterns = [
        r"series /\S+, points: 1",
        r"vda: incremental \(checkpoint\), 4\.0 MiB",
        rf"start domain=\S+ point={point['id']} resumed=False since={old} parent={before['id']}",
        "journal written",
        rf"backup job started: vda since {old}; checkpoint: {point['checkpoint']}",
        r"vda: map read, extents: 1, data: 1\.0 MiB",
        "backup job ended",
        r"vda: done: 1\.0 MiB read, \S+ \w+ stored, \d+\.\d s",
        rf"manifest of point {point['id']} published",
        f"superseded checkpoint {old} deleted",
    ]
    lines = [TERMINAL_LINE.fullmatch(line).groups() for line in done.stderr.splitlines()]
    steps = [text for topic, text in lines if topic == "pull"]
    assert len(steps) == len(patterns)
    assert all(re.fullmatch(*pair) for pair in zip(patterns, steps)), steps
    assert {topic for topic, _ in lines} == {"libvirt", "nbd", "guest", "pull"}


def test_programs_are_named_at_the_second_v(tmp_path):
    """In a process of its own, because the hook remains."""
    program = (
        "import subprocess; from nbdpull.cli import logs\n"
        "with logs.kept(2, None, print): subprocess.run(['true', b'a b'])"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=True)
    assert TERMINAL_LINE.fullmatch(done.stderr.rstrip("\n")).groups() == ("program", "true 'a b'")


JOURNAL = """
import logging, os, sys
about = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{about.st_dev}:{about.st_ino}" if sys.argv[1] == "journal" else "1:2"
from nbdpull.cli import logs
with logs.kept(2, None, print):
    logging.getLogger("nbdpull.a").debug("d")
    logging.getLogger("nbdpull.a").info("i")
    print(logs.priority(logging.ERROR) + "e", file=sys.stderr)
"""


def test_the_journal_gets_priorities_and_no_time():
    def said(where):
        command = [sys.executable, "-c", JOURNAL, where]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr.splitlines()

    assert said("journal") == ["<7>a: d", "<6>a: i", "<3>e"]
    assert said("file")[2] == "e" and TERMINAL_LINE.fullmatch(said("file")[0])


def test_standard_error_that_is_no_file(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert logs.priority(logging.ERROR) == ""
