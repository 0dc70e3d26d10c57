"""Where journals are kept: for which domain, for how long, and what happens if one cannot be written."""

import os
import resource
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nbdpull.core import errors
from nbdpull.pulling import journal, journal_files
from nbdpull.storage.directory_file import DirectoryWriter

RUN = journal.of_this_process(
    id="20261122T194500Z-7f3a9c04", domain="vm1", uuid="u", uri="qemu:///system", checkpoint="c",
    checkpoint_disks=["vda"], disks={"vda": None}, socket="/s", scratch_dir="/var/tmp", guest_runs=True,
    store="/store", folder="vm1/20261122T194500Z-7f3a9c04",
)  # fmt: skip
LATER = replace(RUN, id="20261123T194500Z-00000000")


def no_space(_file):
    raise errors.OutputFull("cannot write: No space left on device")


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "a" / "b"))
    return tmp_path / "a" / "b"


def test_the_runs_of_a_domain_in_their_order(state):
    assert journal_files.runs("u") == []
    for run in (LATER, RUN, replace(RUN, uuid="another")):
        journal_files.begin(run).close()
    assert journal_files.runs("u") == [RUN, LATER]
    journal_files.remove(RUN)
    journal_files.remove(RUN)
    assert journal_files.runs("u") == [LATER] and len(journal_files.runs("another")) == 1


def test_only_their_owner_can_read_them(state):
    journal_files.begin(RUN).close()
    modes = [path.stat().st_mode & 0o777 for path in (state, state / "u", state / "u" / f"{RUN.id}.json")]
    assert modes == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("data", [b"", b"{", journal.encode(LATER), journal.encode(replace(RUN, uuid="another"))])
def test_a_file_that_is_not_the_journal_of_that_run_is_ignored(state, data):
    """Torn before its run began anything, or put there by somebody."""
    (state / "u").mkdir(parents=True)
    (state / "u" / f"{RUN.id}.json").write_bytes(data)
    assert journal_files.runs("u") == []


def test_no_run_has_the_journal_of_another(state):
    journal_files.begin(RUN).close()
    with pytest.raises(errors.OutputExists):
        journal_files.begin(RUN)


def test_a_dead_run_is_withdrawn(state):
    journal_files.begin(RUN).close()
    journal_files.withdraw(RUN)
    journal_files.withdraw(LATER)  # whose journal is gone: nothing to note
    assert journal_files.runs("u") == [replace(RUN, withdrawn=True)]


def test_where_none_can_be_kept_the_run_does_not_begin(state):
    state.parent.parent.mkdir(exist_ok=True)
    state.parent.write_text("a file")
    with pytest.raises(errors.OutputError, match="no journal of this run can be kept: .*NBDPULL_STATE_DIR"):
        journal_files.begin(RUN)


def test_a_journal_that_cannot_be_written_is_not_left(state, monkeypatch):
    """Nobody would ever remove it: it names no run."""
    monkeypatch.setattr(DirectoryWriter, "sync", no_space)
    with pytest.raises(errors.OutputFull, match="no journal of this run can be kept: .*No space left"):
        journal_files.begin(RUN)
    assert os.listdir(state / "u") == []


def test_a_line_that_cannot_be_written_fails_no_backup(state):
    """Nor are later lines written, which would contradict the lost one."""
    written = journal_files.begin(RUN)
    path = state / "u" / f"{RUN.id}.json"
    limit, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limit[1]))
    try:
        written.begun("frozen", "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, heard)
    written.sealed("vda", SimpleNamespace(path=f"{RUN.id}/vda.0000.zst", size=1, sha256="0" * 64), 1)
    written.close()
    assert journal_files.runs("u") == [RUN]


@pytest.mark.parametrize(
    "variables, uid, wanted",
    [
        ({}, 0, "/var/lib/nbdpull"),
        ({"XDG_STATE_HOME": "/x"}, 0, "/var/lib/nbdpull"),
        ({"XDG_STATE_HOME": "/x"}, 1000, "/x/nbdpull"),
        ({"HOME": "/home/me"}, 1000, "/home/me/.local/state/nbdpull"),
        ({"NBDPULL_STATE_DIR": "/here"}, 0, "/here"),
        ({"NBDPULL_STATE_DIR": "/here", "XDG_STATE_HOME": "/x"}, 1000, "/here"),
    ],
)
def test_their_directory(monkeypatch, variables, uid, wanted):
    for name in ("NBDPULL_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert journal_files.folder() == wanted
