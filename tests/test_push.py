"""A backup in push form: what a sink receives, in which order, and how it ends. test_api.py does it on real domains."""

import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("libvirt")
pytest.importorskip("nbd")

from nbdpull.api import push  # noqa: E402
from nbdpull.api.disk import DATA, ZERO, Disk  # noqa: E402
from nbdpull.core import errors, extents  # noqa: E402

SIZE = 100_000


class Source:
    """A disk in memory, as a Source shows it. found: [(offset, length, kind)]."""

    def __init__(self, content, found, fails_at=None):
        self.content, self._found, self._fails_at = content, found, fails_at

    def extents(self, start):
        for at in range(0, len(self._found), 3):
            yield extents.of(self._found[at : at + 3])

    @contextmanager
    def reading(self):
        yield self

    def read_batch(self, ranges):
        if self._fails_at is not None and any(offset <= self._fails_at < offset + length for offset, length in ranges):
            raise errors.SourceError("the disk cannot be read")
        return [self.content[offset : offset + length] for offset, length in ranges]


class Job(SimpleNamespace):
    def finish(self):
        self.calls.append("finish")

    def commit(self):
        self.calls.append("job.commit")
        if self.lost:
            raise errors.JobLost("the job is gone")
        self.committed = True
        return "the token"


class Sink:
    """Builds the disks from what it receives. fails: the call that raises, as a name."""

    def __init__(self, calls, fails=None):
        self.calls, self.fails, self.disks = calls, fails, {}

    def open(self, disk):
        self.calls.append(f"open {disk.name}")
        self.disks[disk.name] = self.disk = bytearray(b"\xff" * disk.size)
        self.reached = 0
        return self

    def data(self, offset, view):
        self._receive("data", offset, len(view))
        assert 0 < len(view) <= push.PIECE and view.readonly
        self.disk[offset : offset + len(view)] = view

    def zero(self, offset, length):
        self._receive("zero", offset, length)
        self.disk[offset : offset + length] = bytes(length)

    def close(self):
        self._receive("close", self.reached, 0)

    def commit(self, token):
        self.calls.append(f"commit {token}")
        self._fail("commit")

    def abort(self):
        self.calls.append("abort")
        self._fail("abort")

    def _receive(self, call, offset, length):
        assert offset >= self.reached  # ascending, disjoint
        self.reached = offset + length
        self._fail(call)

    def _fail(self, call):
        if self.fails == call:
            raise KeyError(call)


def some(chance):
    """Return the content of a disk and extents of it, with gaps that are unchanged."""
    found, at = [], 0
    while at < SIZE:
        length = min(chance.choice([1, 511, 4096, 20_000]), SIZE - at)
        kind = chance.choice([extents.DATA, extents.ZERO, None])
        if kind is not None:
            found.append((at, length, kind))
        at += length
    return chance.randbytes(SIZE), found


def disk(name, content, found, **more):
    return Disk(SimpleNamespace(target=name, size=len(content)), "incremental", "checkpoint",
                Source(content, found, **more))  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    """Return run(disks, sink fails, …): back up these disks; `run.calls`: what happened, `run.sink`, `run.events`."""

    def call(disks, fails=None, lost=False, check=None):
        facts = {"id": "a-run", "as_of": "then", "consistency": "", "consistency_reason": "", "warnings": []}
        job = Job(disks=disks, token="the token", committed=False, lost=lost, calls=call.calls, **facts)

        @contextmanager
        def open_backup(_options, _check):
            yield job
            call.calls.append("end")

        monkeypatch.setattr(push, "open_backup", open_backup)
        call.sink = Sink(call.calls, fails)
        options = SimpleNamespace(domain="vm1", connections=2)
        return push.backup(options, call.sink, lambda **event: call.events.append(event), check)

    call.calls, call.events = [], []
    return call


def test_a_sink_gets_every_byte_that_changed_once_and_in_order(run, monkeypatch):
    monkeypatch.setattr(push, "PIECE", 10_000)  # many pieces from little data
    monkeypatch.setattr(push, "EXTENTS", 5)
    chance = random.Random(7)
    contents = {name: some(chance) for name in ("vda", "vdb", "vdc")}
    result = run([disk(name, *each) for name, each in contents.items()])
    for (name, (content, found)), said in zip(contents.items(), result.disks):
        expected = bytearray(b"\xff" * SIZE)
        for offset, length, kind in found:
            expected[offset : offset + length] = (
                content[offset : offset + length] if kind == extents.DATA else bytes(length)
            )
        assert run.sink.disks[name] == expected
        sums = {kind: sum(each[1] for each in found if each[2] == kind) for kind in (extents.DATA, extents.ZERO)}
        assert (said.name, said.data_bytes, said.zero_bytes) == (name, sums[extents.DATA], sums[extents.ZERO])
    assert run.calls == ["open vda", "open vdb", "open vdc", "finish", "commit the token", "job.commit", "end"]
    for name, (_, found) in contents.items():
        last = [each for each in run.events if each["disk"] == name][-1]
        assert last["position"] == found[-1][0] + found[-1][1] and last["size"] == SIZE


def test_no_read_is_larger_than_a_piece_nor_has_too_many_extents(monkeypatch):
    monkeypatch.setattr(push, "PIECE", 10_000)
    monkeypatch.setattr(push, "EXTENTS", 5)
    chance = random.Random(8)
    for _ in range(20):
        content, found = some(chance)
        batches = list(push._batches(disk("vda", content, found)))
        assert all(0 < len(batch) <= 5 for batch in batches)
        assert all(sum(each.length for each in batch if each.kind == DATA) <= 10_000 for batch in batches)
        assert [each for batch in batches for each in batch if each.kind == ZERO] == [
            (offset, length, ZERO) for offset, length, kind in found if kind == extents.ZERO
        ]


@pytest.mark.parametrize("fails", ["data", "zero", "close", "commit"])
def test_what_a_sink_raises_ends_the_backup(run, fails):
    with pytest.raises(KeyError, match=fails):
        run([disk("vda", bytes(1000), [(0, 500, extents.DATA), (500, 500, extents.ZERO)])], fails)
    assert run.calls[-1] == "abort" and "job.commit" not in run.calls


def test_a_disk_that_cannot_be_read(run):
    with pytest.raises(errors.SourceError):
        run([disk("vda", bytes(1000), [(0, 500, extents.DATA)], fails_at=499), disk("vdb", bytes(9), [])])
    assert run.calls == ["open vda", "abort"]


def test_a_job_that_is_lost_after_the_sink_has_committed(run):
    with pytest.raises(errors.JobLost):
        run([disk("vda", bytes(9), [])], lost=True)
    assert run.calls[-3:] == ["commit the token", "job.commit", "abort"]


def test_a_sink_that_cannot_abort_hides_no_error(run):
    with pytest.raises(errors.SourceError):
        run([disk("vda", bytes(1000), [(0, 500, extents.DATA)], fails_at=0)], "abort")


def test_a_check_that_raises_ends_the_backup(run):
    def check():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        run([disk("vda", bytes(1000), [(0, 500, extents.DATA)])], check=check)
    assert run.calls[-1] == "abort"
