"""A run's journal: it is read as it was written, torn lines cause no false statement, and the last owner counts."""

import json
import random
from dataclasses import asdict, replace

import pytest

from nbdpull.core import process
from nbdpull.format.manifest import FileEntry
from nbdpull.pulling import journal, journal_files

RUN = {
    "id": "20261122T194500Z-7f3a9c04", "domain": "vm1", "uuid": "u", "uri": "qemu:///system", "checkpoint": "c",
    "checkpoint_disks": ["vda"], "disks": {"vda": None}, "socket": "/s", "scratch_dir": "/var/tmp", "guest_runs": True,
    "store": "/store", "folder": "vm1/20261122T194500Z-7f3a9c04",
}  # fmt: skip


def entry(name):
    """Return the FileEntry of a chunk file."""
    return FileEntry(f"{RUN['id']}/{name}", 5, "0" * 64)


def sealed(name, read_bytes):
    """Return what a line records about it."""
    return journal.Sealed(*asdict(entry(name)).values(), read_bytes)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The path of the journal."""
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "u" / f"{RUN['id']}.json"


def read(place):
    return journal.decode(place.read_bytes())


def test_it_records_the_fate_of_the_run(place):
    run = journal.of_this_process(**RUN)
    written = journal_files.begin(run)
    assert read(place) == run and journal_files.runs("u") == [run]
    assert run.freeze is None and run.sealed == {} and run.is_alive
    at_server = replace(run, server="https://rgw.example.com")
    assert journal.decode(journal.encode(at_server)) == at_server and b'"server"' not in journal.encode(run)
    written.begun("frozen", "")
    written.sealed("vda", entry("vda.0000.zst"), 10)
    written.sealed("vdb", entry("vdb.0000.zst"), 1)
    written.sealed("vda", entry("vda.0001.zst"), 20)
    became = read(place)
    assert became.freeze == ("frozen", "")
    assert became.sealed == {
        "vda": [sealed("vda.0000.zst", 10), sealed("vda.0001.zst", 20)],
        "vdb": [sealed("vdb.0000.zst", 1)],
    }
    with pytest.raises(KeyError), written.reading("crash-consistent", "not-requested"):
        assert read(place).freeze == ("crash-consistent", "not-requested")
        raise KeyError
    assert read(place).freeze is None and not read(place).withdrawn
    written.withdrawn()
    assert read(place).withdrawn
    written.close()


def test_another_process_continues_it_after_a_torn_line(place):
    run = journal.of_this_process(**RUN)
    first = journal_files.begin(run)
    first.begun("crash-consistent", "not-requested")
    first.close()
    dead = replace(run, process=replace(run.process, pid=1, started=1, host="gone"))
    lines = place.read_bytes().splitlines(keepends=True)
    place.write_bytes(journal.encode(dead) + lines[1] + b'{"event": "seal')
    assert read(place).is_alive is False
    again = journal_files.resume(dead)
    again.sealed("vda", entry("vda.0000.zst"), 3)
    again.close()
    became = read(place)
    assert became.is_alive and became.process == process.of() and became.begun == run.begun
    assert became.freeze == ("crash-consistent", "not-requested") and len(became.sealed["vda"]) == 1


def test_any_prefix_of_it_can_be_read(place):
    written = journal_files.begin(journal.of_this_process(**RUN))
    written.begun("frozen", "")
    for number in range(8):
        disk = random.Random(number).choice(["vda", "vdb"])
        written.sealed(disk, entry(f"{disk}.{number:04d}.zst"), number)
    written.close()
    data = place.read_bytes()
    for end in range(len(data) + 1):
        whole_lines = end if data[end : end + 1] == b"\n" else data[:end].rfind(b"\n") + 1
        assert journal.decode(data[:end]) == journal.decode(data[:whole_lines])
    assert sum(map(len, journal.decode(data).sealed.values())) == 8


def test_a_file_that_was_made_again_counts_once(place):
    """Everything after it is discarded, too: the run that made it again started there."""
    written = journal_files.begin(journal.of_this_process(**RUN))
    for number in range(4):
        written.sealed("vda", entry(f"vda.000{number}.zst"), number)
    written.sealed("vda", entry("vda.0001.zst"), 10)
    written.close()
    assert [each.read_bytes for each in read(place).sealed["vda"]] == [0, 10]


def test_additions_of_a_later_nbdpull_are_ignored(place):
    data = (
        journal.encode(journal.of_this_process(**RUN))
        + b'{"event": "new", "x": 1}\n{"phase": "begun"}\n3\n{"event": "begun"}\n'
    )
    assert journal.decode(data) == journal.of_this_process(**RUN)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"[1]\n", b"null\n", b'{"id": 1}\n', b"[" * 100_000])
def test_files_that_are_not_journals(data):
    assert journal.decode(data) is None


@pytest.mark.parametrize(
    "name, value",
    [
        ("id", 5),
        ("id", "../20261122T194500Z-7f3a9c04"),
        ("uuid", None),
        ("checkpoint", 5),
        ("checkpoint_disks", "vda"),
        ("disks", ["vda"]),
        ("disks", {"vda": 1}),
        ("socket", ["/s"]),
        ("scratch_dir", "/var/tmp\0"),
        ("guest_runs", "yes"),
        ("process", None),
        ("process", {"pid": -1}),
        ("process", {"pid": 1.5}),
        ("begun", "yesterday"),
        ("begun", "2026-11-22T19:45:00"),
        ("parent", ["only an id"]),
        ("parent", [1, 2]),
        ("freeze", ["frozen", ""]),
        ("sealed", {}),
        ("withdrawn", True),
        ("later", 1),
    ],
)
def test_an_impossible_run_is_ignored(name, value):
    """Things are removed because of its content."""
    run = json.loads(journal.encode(journal.of_this_process(**RUN)))
    assert journal.decode(json.dumps({**run, name: value}).encode() + b"\n") is None


GOOD = {"event": "sealed", "disk": "vda", **sealed("vda.0000.zst", 1)._asdict()}


def test_a_file_that_was_sealed():
    run = journal.of_this_process(**RUN)
    found = journal.decode(journal.encode(run) + json.dumps(GOOD).encode() + b"\n")
    assert found == replace(run, sealed={"vda": [sealed("vda.0000.zst", 1)]})


@pytest.mark.parametrize(
    "line",
    [
        {"event": "begun", "consistency": 1, "reason": ""},
        {"event": "begun", "consistency": "frozen"},
        *({name: value for name, value in GOOD.items() if name != lost} for lost in GOOD),
        {**GOOD, "disk": ["vda"]},
        {**GOOD, "read_bytes": "1"},
        {**GOOD, "read_bytes": -1},
        {**GOOD, "path": 5},
        {**GOOD, "path": "../../../etc/shadow"},
        {**GOOD, "path": GOOD["path"].replace(".0000.zst", ".index")},
        {**GOOD, "size": -5},
        {**GOOD, "size": 1.5},
        {**GOOD, "sha256": "00"},
        {**GOOD, "sha256": None},
        {"event": "resumed", "process": {"pid": "1", "started": 1, "boot": "", "machine": "", "host": ""}},
        {"event": "resumed", "process": 1},
        {"event": "resumed", "pid": 1},
        {"event": ["begun"]},
        {"event": None},
    ],
)
def test_an_impossible_event_is_ignored(line):
    run = journal.of_this_process(**RUN)
    assert journal.decode(journal.encode(run) + json.dumps(line).encode() + b"\n") == run


def test_an_owner_that_takes_over_changes_nothing_else():
    run = journal.of_this_process(**RUN)
    owner = process.Process(1, 2, "b", "m", "h")
    line = {"event": "resumed", "process": asdict(owner), "store": "/etc", "id": "x", "freeze": "y"}
    assert journal.decode(journal.encode(run) + json.dumps(line).encode() + b"\n") == replace(run, process=owner)
