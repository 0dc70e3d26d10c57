"""job.json: what is read is what was written, torn lines say nothing false, and the last owner counts."""

import json
import os
import random
from dataclasses import replace

import pytest

from nbdpull.repository import journal, marker

RUN = {
    "id": "20261122T194500Z-7f3a9c04", "domain": "vm1", "uuid": "u", "uri": "qemu:///system", "checkpoint": "c",
    "checkpoint_disks": ["vda"], "disks": {"vda": None}, "socket": "/s", "scratch_dir": "/var/tmp", "guest_runs": True,
    "store": "/store", "folder": "vm1/20261122T194500Z-7f3a9c04",
}  # fmt: skip


def chunks(name, older=0):
    """What a line tells of a chunk file, and of some of older points."""
    digest, elder = "0" * 64, "20261121T194500Z-00112233"
    return [[f"{RUN['id']}/{name}", 5, digest], *([f"{elder}/vda.{n:04d}.zst", 7, digest] for n in range(older))]


@pytest.fixture
def place(tmp_path):
    return marker.open_or_create(tmp_path / "store")


def read(place):
    return journal.decode(place.read("job.json"))


def test_it_tells_what_became_of_the_run(place):
    run = journal.of_this_process(**RUN)
    written = journal.Journal(place, "job.json", run)
    assert read(place) == replace(run, inode=os.stat(place.path("job.json")).st_ino)
    assert run.freeze is None and run.sealed == {} and run.is_alive
    written.begun("frozen", "")
    written.sealed("vda", chunks("vda.0000.zst", 2), 10)
    written.sealed("vdb", chunks("vdb.0000.zst"), 1)
    written.sealed("vda", chunks("vda.0001.zst"), 20)
    became = read(place)
    assert became.freeze == ("frozen", "")
    assert became.sealed == {
        "vda": [(chunks("vda.0000.zst", 2), 10), (chunks("vda.0001.zst"), 20)],
        "vdb": [(chunks("vdb.0000.zst"), 1)],
    }
    written.ending()
    assert read(place).freeze is None
    written.close()


def test_another_process_goes_on_with_it_after_a_torn_line(place):
    run = journal.of_this_process(**RUN)
    first = journal.Journal(place, "job.json", run)
    first.begun("crash-consistent", "not-requested")
    first.close()
    dead = {**json.loads(journal.encode(run)), "pid": 1, "started": 1, "host": "gone"}
    lines = (place.read("job.json")).splitlines(keepends=True)
    path = place.path("job.json")
    with open(path, "wb") as file:
        file.write(json.dumps(dead).encode() + b"\n" + lines[1] + b'{"event": "seal')
    assert read(place).is_alive is False
    again = journal.Journal.resumed(place, "job.json")
    again.sealed("vda", chunks("vda.0000.zst"), 3)
    again.close()
    became = read(place)
    assert became.is_alive and became.pid == os.getpid() and became.begun == run.begun
    assert became.freeze == ("crash-consistent", "not-requested") and len(became.sealed["vda"]) == 1


def test_any_beginning_of_it_is_read(place):
    written = journal.Journal(place, "job.json", journal.of_this_process(**RUN))
    written.begun("frozen", "")
    for number in range(20):
        disk = random.Random(number).choice(["vda", "vdb"])
        written.sealed(disk, chunks(f"{disk}.{number:04d}.zst", number % 3), number)
    written.ending()
    written.close()
    data = place.read("job.json")
    for end in range(len(data) + 1):
        whole_lines = end if data[end : end + 1] == b"\n" else data[:end].rfind(b"\n") + 1
        assert journal.decode(data[:end]) == journal.decode(data[:whole_lines])
    assert sum(map(len, journal.decode(data).sealed.values())) == 20


def test_a_file_that_was_made_again_counts_once(place):
    """With it goes all that came after: the run that made it again began there."""
    written = journal.Journal(place, "job.json", journal.of_this_process(**RUN))
    for number in range(4):
        written.sealed("vda", chunks(f"vda.000{number}.zst", 1), number)
    written.sealed("vda", chunks("vda.0001.zst"), 10)
    written.close()
    assert [each.read_bytes for each in read(place).sealed["vda"]] == [0, 10]


def test_what_a_later_nbdpull_adds_is_passed_over(place):
    data = (
        journal.encode(journal.of_this_process(**RUN))
        + b'{"event": "new", "x": 1}\n{"phase": "begun"}\n3\n{"event": "begun"}\n'
    )
    assert journal.decode(data) == journal.of_this_process(**RUN)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"[1]\n", b"null\n", b'{"id": 1}\n', b"[" * 100_000])
def test_what_says_nothing(data):
    assert journal.decode(data) is None


@pytest.mark.parametrize(
    "name, value",
    [
        ("id", 5),
        ("id", "../20261122T194500Z-7f3a9c04"),
        ("uuid", None),
        ("checkpoint", 5),
        ("checkpoint_disks", "vda"),
        ("checkpoint_disks", ["../vda"]),
        ("disks", ["vda"]),
        ("disks", {"vda": 1}),
        ("disks", {"x/../../../etc/passwd": None}),
        ("socket", ["/s"]),
        ("scratch_dir", "relative"),
        ("scratch_dir", "/var/tmp\0"),
        ("store", ""),
        ("guest_runs", "yes"),
        ("pid", -1),
        ("pid", 1.5),
        ("begun", "yesterday"),
        ("begun", "2026-11-22T19:45:00"),
        ("parent", ["only an id"]),
        ("parent", [1, 2]),
        ("freeze", ["frozen", ""]),
        ("sealed", {}),
        ("later", 1),
    ],
)
def test_a_run_that_cannot_be_says_nothing(name, value):
    """Whoever can write to the store can have written it, and things are removed by what it says."""
    run = json.loads(journal.encode(journal.of_this_process(**RUN)))
    assert journal.decode(json.dumps({**run, name: value}).encode() + b"\n") is None


GOOD = [f"{RUN['id']}/vda.0000.zst", 5, "0" * 64]


@pytest.mark.parametrize(
    "line",
    [
        {"event": "begun", "consistency": 1, "reason": ""},
        {"event": "begun", "consistency": "frozen"},
        {"event": "sealed", "disk": "vda", "chunks": [GOOD]},
        {"event": "sealed", "disk": ["vda"], "chunks": [GOOD], "read_bytes": 1},
        {"event": "sealed", "disk": "vda", "chunks": [GOOD], "read_bytes": "1"},
        {"event": "sealed", "disk": "vda", "chunks": "x", "read_bytes": 1},
        {"event": "sealed", "disk": "vda", "chunks": [5], "read_bytes": 1},
        {"event": "sealed", "disk": "vda", "chunks": [GOOD, GOOD[:2]], "read_bytes": 1},
        {"event": "sealed", "disk": "vda", "chunks": [["../../../etc/shadow", *GOOD[1:]]], "read_bytes": 1},
        {"event": "sealed", "disk": "vda", "chunks": [[GOOD[0], -5, GOOD[2]]], "read_bytes": 1},
        {"event": "sealed", "disk": "vda", "chunks": [[*GOOD[:2], "00"]], "read_bytes": 1},
        {"event": "resumed", "pid": "1", "started": 1, "boot": "", "machine": "", "host": ""},
        {"event": "resumed", "pid": 1},
        {"event": ["begun"]},
        {"event": None},
    ],
)
def test_an_event_that_cannot_be_is_passed_over(line):
    run = journal.of_this_process(**RUN)
    assert journal.decode(journal.encode(run) + json.dumps(line).encode() + b"\n") == run


def test_an_owner_that_takes_over_changes_nothing_else():
    run = journal.of_this_process(**RUN)
    owner = {"pid": 1, "started": 2, "boot": "b", "machine": "m", "host": "h"}
    line = {"event": "resumed", **owner, "store": "/etc", "id": "x", "freeze": "y"}
    assert journal.decode(journal.encode(run) + json.dumps(line).encode() + b"\n") == replace(run, **owner)
