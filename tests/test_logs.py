"""cli/logs.py: what -v, -vv and a log file contain, and what happens if a log cannot be written."""

import base64
import io
import logging
import os
import re
import stat
import subprocess
import sys

import pytest
from bed.machine import MIB
from command import answered, last_event, nbdpull
from identities import data, path, recipient
from sealed import chain as chain_of_secrets
from sealed import contains_secret, sealed_store
from stores import chain, flipped, ids

from nbdpull import __version__
from nbdpull.cli import logs
from nbdpull.core import errors
from nbdpull.crypto import age, identity_files, keys
from nbdpull.repository import keyring, marker

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
        r"vda: incremental \(checkpoint\), 4\.0 MiB",
        rf"start domain=\S+ point={point['id']} resumed=False since={old} parent={before['id']}",
        "journal written",
        rf"backup job started: vda since {old}; checkpoint: {point['checkpoint']}",
        r"vda: map read, extents: 1, data: 1\.0 MiB",
        "backup job ended",
        r"vda: done: 1\.0 MiB read, \S+ \w+ stored, \d+\.\d s",
        f"superseded checkpoint {old} deleted",
    ]
    lines = [TERMINAL_LINE.fullmatch(line).groups() for line in done.stderr.splitlines()]
    steps = [text for topic, text in lines if topic == "pull"]
    assert len(steps) == len(patterns)
    assert all(re.fullmatch(*pair) for pair in zip(patterns, steps)), steps
    assert {topic for topic, _ in lines} == {"nbdpull", "libvirt", "nbd", "guest", "store", "pull"}
    assert ("store", f"point {point['id']} of {witness.vm.name} committed") in lines


def steps(errors):
    """Return the lines of -v as "topic: text"."""
    found = [TERMINAL_LINE.fullmatch(line) for line in errors.splitlines()]
    return [f"{line[1]}: {line[2]}" for line in found if line]


def assert_in_order(patterns, lines):
    left = iter(lines)
    assert [each for each in patterns if not any(re.fullmatch(each, line) for line in left)] == [], "\n".join(lines)


def test_the_steps_of_verbs_of_a_store(tmp_path, capsys, monkeypatch):
    """Each says what it began with, what it found, what it changed, and how it ended."""
    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)
    vm = chain(tmp_path / "s", points=2)
    first, second = ids(vm)
    copy, out = tmp_path / "d", tmp_path / "out"
    opened = rf"store: opened {vm.root}, which is not sealed"
    found = rf"store: points in {vm.folder}: 2; unreadable: 0"

    def assert_steps(words, patterns, code=0):
        done, _, said = answered(capsys, *words)
        assert done == code, said
        last = rf"nbdpull: ended with exit code {code} after \d+\.\d s"
        assert_in_order([rf"nbdpull: {words[0]} begins, version {__version__}", *patterns, last], steps(said))

    seen = r"\d+ files, \d+ frames \(.* KiB\), damages: 0, \d+\.\d s"
    record = rf"store: result recorded in {vm.folder}/\S+\.verify\.json"
    checked = [f"verify: point {each}: {seen}" for each in (first, second)]
    assert_steps(["verify", vm.root, "-v"], [opened, found, *checked, record])
    rolling = [r"verify: vm1: \d+ files to check, unchecked since 2\S+",
               r"verify: vm1: \d+ files \(.* KiB\) checked, damaged: 0"]  # fmt: skip
    assert_steps(["verify", vm.root, "--oldest", "-v"], [opened, found, *rolling])
    chosen = [rf"restore: point {second} of vm1: vda, vdb", rf"restore: vda, 2\.1 MiB: to the new image {out}/vda\.raw",
              r"restore: vda: done: .* written, \d+\.\d s"]  # fmt: skip
    assert_steps(["restore", vm.root, "-o", out, "--format", "raw", "-v"], [opened, found, *chosen])
    assert_steps(["digest", vm.root, "-v"], [opened, found, rf"digest: point {second}, vda: 2\.1 MiB, .* s"])
    copied = [rf"copy: copied domain=vm1 point={each} files=8 copied_bytes=\d+" for each in (first, second)]
    made = [f"store: made {copy} a store", f"store: opened {copy}, .*", f"store: locked {copy}/vm1"]
    assert_steps(["copy", vm.root, copy, "-v"], [opened, *made, *copied])
    bad = copy / "vm1" / second / "vda.0000.zst"
    bad.write_bytes(flipped(bad.read_bytes(), 90))
    healed = [r"verify: damage domain=vm1 .*", rf"store: locked {copy}/vm1",
              rf"store: {second}/vda\.0000\.zst of vm1: healed"]  # fmt: skip
    assert_steps(["verify", copy, "--heal-from", vm.root, "-v"], healed)
    gone = [f"store: {copy}/vm1/{first}/manifest.json renamed to manifest.removed",
            f"store: point {first} of vm1 removed", f"store: {copy}/vm1/{first}/\\S+ removed",
            r"store: files of removed points of vm1: .* KiB freed, 0 B waiting"]  # fmt: skip
    assert_steps(["remove", copy, first, "--now", "-vv"], gone)
    assert_steps(["show", tmp_path / "nothing", first, "-v"], [], code=10)


def test_a_log_that_cannot_be_written_stops_no_verb(tmp_path, capsys):
    """If it cannot even be opened, nothing is begun."""
    vm = chain(tmp_path / "s", points=1)
    code, output, said = answered(capsys, "copy", vm.root, tmp_path / "d", "--log-file", "/dev/full")
    assert code == 0 and output and ids(vm) == os.listdir(tmp_path / "d/vm1")
    assert said == "nbdpull: warning: the log /dev/full is no longer written: No space left on device\n"
    code, output, said = answered(capsys, "copy", vm.root, tmp_path / "e", "--log-file", tmp_path)
    assert (code, output, said) == (9, "", f"nbdpull: cannot write to {tmp_path}: Is a directory\n")
    assert not (tmp_path / "e").exists()


def test_no_secret_of_a_store_is_logged(tmp_path, capsys, monkeypatch):
    """Neither what opens it nor what is in it, by any verb that has either."""
    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)
    monkeypatch.setattr(
        age, "wrap_by_passphrase", lambda secret, passphrase: data("by-passphrase.age")
    )  # takes a second
    root, log = tmp_path / "store", tmp_path / "log"
    mine = ("--identity", path("age1"))
    store_keys = sealed_store(root)
    master = keyring.open_master(marker.open_store(str(root)), identity_files.given([path("age1")])).master
    vm = chain_of_secrets(root, store_keys=store_keys)
    first = vm.points[0].id
    for words in (
        ["init", tmp_path / "new", "--passphrase-file", path("passphrase")],
        ["key", "add", root, "--passphrase-file", path("passphrase"), *mine],
        ["key", "add", root, "--recipient", recipient("age2"), *mine],
        ["key", "test", root, *mine],
        ["key", "export", root, "--recipient", recipient("age2"), *mine],
        ["key", "rotate", root, "--recipient", recipient("age1"), *mine],
        ["verify", root, *mine],
        ["restore", root, "-o", tmp_path / "out", *mine],
        ["show", root, first, "--xml", *mine],
        ["digest", root, *mine],
        ["copy", root, tmp_path / "copy", *mine],
        ["prune", root, "--keep-last", "1", "--force", *mine],
    ):
        code, _, said = answered(capsys, *words, "-vv", "--log-file", log)
        assert code == 0 and steps(said), said
        text = (said + log.read_text()).encode()
        secrets = [master, master.hex().encode(), base64.b64encode(master)[:-2], data("passphrase").strip(),
                   keys.text_of(master).encode(), *re.findall(rb"AGE-SECRET-KEY-\w+", data("age1"))]  # fmt: skip
        assert len(secrets) == 6 and not any(secret in text for secret in secrets)
        assert not contains_secret(text), words


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
