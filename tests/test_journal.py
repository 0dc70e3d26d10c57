"""job.json: what is read is what was written, torn lines say nothing false, and the last owner counts."""

import json
import os
import random

import pytest

from nbdpull import journal, store

RUN = {
    "id": "20261122T194500Z-7f3a9c04", "domain": "vm1", "uuid": "u", "uri": "qemu:///system", "checkpoint": "c",
    "checkpoint_disks": ["vda"], "disks": {"vda": None}, "socket": "/s", "scratch_dir": "/var/tmp", "guest_runs": True,
    "store": "/store", "folder": "vm1/20261122T194500Z-7f3a9c04",
}  # fmt: skip
CHUNKS = [["p/vda.0000.zst", 5, "00"], ["q/vda.0000.zst", 7, "11"]]


@pytest.fixture
def place(tmp_path):
    return store.open_or_create(tmp_path / "store")


def read(place):
    return journal.decode(place.read("job.json"))


def test_it_tells_what_became_of_the_run(place):
    run = journal.of_this_process(**RUN)
    written = journal.Journal(place, "job.json", run)
    assert read(place) == run and run.freeze is None and run.sealed == {} and run.is_alive
    written.begun("frozen", "")
    written.sealed("vda", CHUNKS, 10)
    written.sealed("vdb", CHUNKS[:1], 1)
    written.sealed("vda", CHUNKS[1:], 20)
    became = read(place)
    assert became.freeze == ("frozen", "")
    assert became.sealed == {"vda": [(CHUNKS, 10), (CHUNKS[1:], 20)], "vdb": [(CHUNKS[:1], 1)]}
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
    again.sealed("vda", CHUNKS, 3)
    again.close()
    became = read(place)
    assert became.is_alive and became.pid == os.getpid() and became.begun == run.begun
    assert became.freeze == ("crash-consistent", "not-requested") and len(became.sealed["vda"]) == 1


def test_any_beginning_of_it_is_read(place):
    written = journal.Journal(place, "job.json", journal.of_this_process(**RUN))
    written.begun("frozen", "")
    for number in range(20):
        written.sealed(random.Random(number).choice(["vda", "vdb"]), CHUNKS, number)
    written.ending()
    written.close()
    data = place.read("job.json")
    for end in range(len(data) + 1):
        whole_lines = end if data[end : end + 1] == b"\n" else data[:end].rfind(b"\n") + 1
        assert journal.decode(data[:end]) == journal.decode(data[:whole_lines])
    assert sum(map(len, journal.decode(data).sealed.values())) == 20


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"[1]\n", b"null\n", b'{"id": 1}\n'])
def test_what_says_nothing(data):
    assert journal.decode(data) is None
