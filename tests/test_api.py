"""The Python API as another program uses it: the images that it assembles equal the disks, and nothing changes without
a commit."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bed.machine import MIB, wait_for
from command import environment

import nbdpull

pytest.importorskip("libvirt")

KIB = 1 << 10


class Program:
    """Another program's repository: an image of each disk in memory, and the token of the last backup."""

    def __init__(self, vm, scratch, held=False):
        self.vm, self.scratch, self.images, self.token = vm, scratch, {}, None
        self.held = self._held if held else None
        scratch.mkdir()

    def options(self, **options):
        options = {"since": self.token, "uri": self.vm.bed.uri, "scratch_dir": str(self.scratch), **options}
        return nbdpull.Options(self.vm.name, **options, held=self.held)

    def take(self, job):
        """Read every extent into the images as they will be; return {disk: (bytes, [extent, …])}."""
        return {disk.name: self._taken(disk) for disk in job.disks}

    def _taken(self, disk):
        image = bytearray(self.images.get(disk.name, b"") if disk.mode == "incremental" else b"")
        image = image[: disk.size] + bytes(max(0, disk.size - len(image)))
        extents = list(disk.extents())
        for extent in extents:
            view = memoryview(image)[extent.offset : extent.offset + extent.length]
            if extent.kind == "data":
                disk.read_into(extent.offset, view)
            else:
                view[:] = bytes(extent.length)
        return bytes(image), extents

    def _held(self, disk, start, stop):
        """Return the blocks of 64 KiB that are not zero, not cut to the range."""
        image = self.images[disk]
        for offset in range(start // CLUSTER * CLUSTER, min(stop, len(image)), CLUSTER):
            if any(image[offset : offset + CLUSTER]):
                yield offset, CLUSTER

    def backup(self, **options):
        """Make a backup and commit it; return the Job."""
        frozen = {disk: self.vm.content(disk) for disk in self.vm.disks}
        with nbdpull.open_backup(self.options(**options)) as job:
            taken = self.take(job)
            assert {name: image for name, (image, _) in taken.items()} == {name: frozen[name] for name in taken}
            self.token = nbdpull.Token.loads(job.commit().dumps())
        self.images = {name: image for name, (image, _) in taken.items()}
        self.last = {name: extents for name, (_, extents) in taken.items()}
        self.assert_clean()
        return job

    def assert_clean(self):
        """Require that there is no job, no scratch, and no checkpoint but the base."""
        assert not self.vm.job_active() and os.listdir(self.scratch) == []
        made = self.token.checkpoint if self.token else None
        assert self.vm.checkpoints() == ([made.name] if made else [])
        assert not list(state(self.vm).glob("*"))


CLUSTER = 64 * KIB


def state(vm):
    return Path(os.environ["NBDPULL_STATE_DIR"], vm.uuid)


@pytest.fixture
def program(machine, tmp_path):
    def make(disks, **options):
        return Program(machine(disks), tmp_path / "scratch", **options)

    return make


def how(job):
    return {disk.name: (disk.mode, disk.reason) for disk in job.disks}


@pytest.mark.parametrize("held", [False, True])
def test_a_full_backup_and_increments(program, held):
    """A caller who does not say what the image holds gets more than what changed."""
    mine = program({"vda": 8 * MIB, "vdb": MIB}, held=held)
    vm, chance = mine.vm, random.Random(1)
    vm.write_bytes("vda", 3 * MIB, chance.randbytes(MIB + 512))
    first = mine.backup()
    assert how(first) == {"vda": ("full", "requested"), "vdb": ("full", "requested")}
    assert [disk.size for disk in first.disks] == [8 * MIB, MIB] and first.consistency == "crash-consistent"
    assert sum(extent.length for extent in mine.last["vda"]) == 8 * MIB, "a full backup reports the whole disk"
    for _ in range(3):
        vm.write_bytes("vda", chance.randrange(7) * MIB, chance.randbytes(70 * KIB))
        vm.write_zeroes("vda", 3 * MIB, 128 * KIB)
        job = mine.backup()
        assert how(job) == {"vda": ("incremental", "checkpoint"), "vdb": ("incremental", "checkpoint")}
        assert {extent.kind for extent in mine.last["vda"]} == {"data", "zero"}
        reported = sum(extent.length for extent in mine.last["vda"])
        assert reported <= 320 * KIB if held else reported > 6 * MIB
        assert len(job.dropped_checkpoints) == 1


@pytest.mark.parametrize("raised", [None, KeyError("of the caller's")])
def test_without_a_commit_nothing_moved(program, raised):
    mine = program({"vda": MIB})
    mine.backup()
    mine.vm.write("vda", 0, 64 * KIB, 0x22)
    try:
        with nbdpull.open_backup(mine.options()) as job:
            assert mine.vm.job_active() and len(mine.vm.checkpoints()) == 2
            if raised:
                raise raised
    except KeyError as error:
        assert error is raised
    mine.assert_clean()
    with pytest.raises(nbdpull.NbdpullError, match="disk vda cannot be read any more") as caught:
        job.disks[0].read_into(0, bytearray(512))
    assert caught.value.code == "usage"
    assert how(mine.backup()) == {"vda": ("incremental", "checkpoint")}


def test_a_failure_after_the_commit_undoes_nothing(program):
    mine = program({"vda": MIB})
    with pytest.raises(KeyError), nbdpull.open_backup(mine.options()) as job:
        mine.images = {name: image for name, (image, _) in mine.take(job).items()}
        mine.token = job.commit()
        assert job.commit() == mine.token, "a second one is nothing new"
        raise KeyError
    mine.assert_clean()
    assert how(mine.backup()) == {"vda": ("incremental", "checkpoint")}


def test_a_job_that_was_ended_by_somebody_cannot_be_committed(program):
    mine = program({"vda": MIB})
    mine.backup()
    with pytest.raises(nbdpull.NbdpullError) as caught, nbdpull.open_backup(mine.options()) as job:
        mine.vm.domain.abortJob()
        wait_for(lambda: not mine.vm.job_active(), "the job's end")
        job.commit()
    assert caught.value.code == "job-lost"
    mine.assert_clean()


KILLED = """
import os, sys
import nbdpull

name, uri, scratch, token, moment = sys.argv[1:]
since = nbdpull.Token.loads(token) if token else None
with nbdpull.open_backup(nbdpull.Options(name, since=since, uri=uri, scratch_dir=scratch)) as job:
    job.disks[0].read_into(0, bytearray(512))
    if moment == "committed":
        job.commit()
    print(job.id, job.token.dumps() if job.committed else "-", flush=True)
    sys.stdin.read()
"""


def killed(mine, moment="open"):
    """(id, Token or None) of a backup whose process was killed."""
    since = mine.token.dumps() if mine.token else ""
    words = [sys.executable, "-c", KILLED, mine.vm.name, mine.vm.bed.uri, str(mine.scratch), since, moment]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment(), **pipes) as process:
        run, token = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    return run, None if token == "-" else nbdpull.Token.loads(token)


def test_a_killed_backup_is_cleaned_by_the_next_one(program):
    mine = program({"vda": MIB})
    mine.backup()
    mine.vm.write("vda", 0, 64 * KIB, 0x33)
    killed(mine)
    assert mine.vm.job_active() and len(list(state(mine.vm).glob("*"))) == 1
    assert how(mine.backup()) == {"vda": ("incremental", "checkpoint")}


NEVER_LEFT = """
import sys
import nbdpull

name, uri, scratch = sys.argv[1:]
block = nbdpull.open_backup(nbdpull.Options(name, uri=uri, scratch_dir=scratch))
job = block.__enter__()
some = job.disks[0].extents()
print(next(some))
"""


def test_a_program_ends_inside_of_a_block(program):
    """In order, as with an ExitStack that nobody closes. It waited for its own threads, which were no longer run."""
    mine = program({"vda": MIB})
    words = [sys.executable, "-X", "dev", "-W", "error", "-c", NEVER_LEFT, mine.vm.name, mine.vm.bed.uri]
    done = subprocess.run([*words, str(mine.scratch)], env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Extent(offset=0")
    mine.assert_clean()


def test_killed_behind_its_commit_it_is_the_base(program):
    mine = program({"vda": MIB}, held=True)
    mine.vm.write("vda", 0, 64 * KIB, 0x33)
    mine.backup()
    mine.vm.write("vda", 64 * KIB, 64 * KIB, 0x34)
    frozen = mine.vm.content("vda")
    _, mine.token = killed(mine, "committed")
    mine.images["vda"] = frozen
    mine.vm.write("vda", 128 * KIB, 64 * KIB, 0x35)
    assert how(mine.backup()) == {"vda": ("incremental", "checkpoint")}
    assert [extent.offset for extent in mine.last["vda"] if extent.kind == "data"] == [128 * KIB]


def test_a_killed_backup_is_resumed_by_its_id(program):
    mine = program({"vda": MIB})
    mine.backup()
    mine.vm.write("vda", 0, 64 * KIB, 0x44)
    frozen = mine.vm.content("vda")
    run, _ = killed(mine)
    mine.vm.write("vda", 0, MIB, 0x55)  # is not in it
    with nbdpull.open_backup(mine.options(resume=run)) as job:
        assert job.id == run and mine.take(job)["vda"][0] == frozen
        mine.token = job.commit()
    mine.images = {"vda": frozen}
    mine.assert_clean()
    mine.backup()
    with pytest.raises(nbdpull.NbdpullError, match=f"backup {run} .* cannot be resumed") as caught:
        nbdpull.open_backup(mine.options(resume=run)).__enter__()
    assert caught.value.code == "job-lost"


def test_a_run_that_does_not_match_is_not_resumed(program):
    mine = program({"vda": MIB, "vdb": MIB})
    mine.backup()
    run, _ = killed(mine)
    for options, why in (({"checkpoint": False}, "another checkpoint"), ({"disks": ["vda"]}, "another checkpoint"),
                         ({"since": None}, "another base"), ({"scratch_limit": 1}, "scratch")):  # fmt: skip
        mine.vm.write("vda", 0, MIB, 0x61)
        with pytest.raises(nbdpull.NbdpullError, match=f"{run} .* cannot be resumed: .*{why}"):
            nbdpull.open_backup(mine.options(resume=run, **options)).__enter__()
        assert mine.vm.job_active(), "it may yet be resumed as it was"
    mine.backup()


@pytest.mark.parametrize("where", ["read", "begin", "later"])
def test_what_a_check_raises_comes_out_as_it_is(program, where):
    """From whatever thread, and everything is undone."""
    mine = program({"vda": MIB})
    mine.backup()
    raised, armed = ZeroDivisionError("of the caller's"), [where == "begin"]

    def check():
        if armed[0]:
            raise raised

    with pytest.raises(ZeroDivisionError) as caught, nbdpull.open_backup(mine.options(), check) as job:
        armed[0] = True
        if where == "read":
            job.disks[0].read_into(0, bytearray(512))
        job.commit()
    assert caught.value is raised
    mine.assert_clean()


@pytest.mark.parametrize("moment", ["on_ready", "on_cut"])
def test_what_a_moment_raises_comes_out_as_it_is(program, moment):
    mine = program({"vda": MIB})
    mine.backup()

    def fail(*_):
        raise ZeroDivisionError(moment)

    with pytest.raises(ZeroDivisionError, match=moment):
        nbdpull.open_backup(mine.options(**{moment: fail})).__enter__()
    mine.assert_clean()


def test_the_next_backup_removes_leftovers_of_this_process(program):
    """The process makes many backups, and is alive."""
    mine = program({"vda": MIB})
    mine.backup()
    with pytest.raises(nbdpull.NbdpullError) as caught, nbdpull.open_backup(mine.options()) as job:
        mine.vm.stop()
        job.disks[0].read_into(0, bytearray(512))
    assert any("checkpoint" in each for each in caught.value.left_behind)
    mine.vm.start()
    assert len(mine.vm.checkpoints()) == 2
    assert how(mine.backup()) == {"vda": ("incremental", "checkpoint")}


def test_a_domain_that_is_off_and_only_read(program):
    mine = program({"vda": MIB})
    mine.vm.write("vda", 0, MIB // 2, 0x71)
    mine.vm.stop()
    with nbdpull.open_backup(mine.options(offline="read")) as job:
        taken = mine.take(job)
        token = job.commit()
    mine.vm.start()
    assert taken["vda"][0] == mine.vm.content("vda") and token.checkpoint is None
    mine.token, mine.images = token, {"vda": taken["vda"][0]}
    assert how(mine.backup()) == {"vda": ("full", "no-checkpoint")}


def test_a_checkpoint_that_could_not_be_deleted_is_deleted_later(program):
    mine = program({"vda": MIB, "vdb": MIB})
    mine.backup()
    old = mine.token.checkpoint.name
    with nbdpull.open_backup(mine.options(disks=["vda"])) as job:
        mine.images["vda"] = mine.take(job)["vda"][0]
        token = job.commit()
    assert job.dropped_checkpoints == [] and set(mine.vm.checkpoints()) == {old, token.checkpoint.name}
    assert [made.name for made in token.older] == [old]
    mine.token = nbdpull.Token.loads(token.dumps())
    mine.images.clear()
    assert how(mine.backup()) == {"vda": ("incremental", "checkpoint"), "vdb": ("full", "not-in-checkpoint")}
    assert mine.token.older and len(mine.vm.checkpoints()) == 1


def test_a_token_is_there_once_the_backup_is_finished(program):
    mine = program({"vda": MIB})
    with nbdpull.open_backup(mine.options()) as job:
        with pytest.raises(nbdpull.NbdpullError, match="call finish"):
            job.token  # noqa: B018
        mine.take(job)
        job.finish()
        assert not mine.vm.job_active() and len(mine.vm.checkpoints()) == 1
        kept = job.token
    mine.assert_clean()
    with pytest.raises(nbdpull.NbdpullError, match="checkpoint-lost"):
        nbdpull.open_backup(mine.options(since=kept, on_lost_base="fail")).__enter__()


def test_a_commit_that_a_child_holds_no_lock_after(program):
    """A process that was forked meanwhile has a copy of every descriptor."""
    mine = program({"vda": MIB})
    with nbdpull.open_backup(mine.options()) as job:
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        mine.images = {name: image for name, (image, _) in mine.take(job).items()}
        mine.token = job.commit()
    try:
        mine.backup()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("held", [False, True])
def test_a_disk_that_grew_and_one_that_was_shrunk_and_grown(program, held):
    """No bitmap records what was cut off: the caller's image shows it, or every range that reads as zero is
    reported."""
    mine = program({"vda": 4 * MIB, "vdb": 4 * MIB, "vdc": 4 * MIB}, held=held)
    for disk in mine.vm.disks:
        mine.vm.write(disk, 0, 4 * MIB, 0x11)
    mine.vm.write_zeroes("vdc", MIB, MIB)
    mine.backup()
    mine.vm.resize("vda", 6 * MIB)
    mine.vm.resize("vdb", 2 * MIB)
    mine.vm.resize("vdb", 4 * MIB)
    job = mine.backup()
    assert how(job)["vda"] == ("incremental", "grown") and how(job)["vdb"] == ("incremental", "checkpoint")
    zeros = {disk: [tuple(each) for each in found if each.kind == "zero"] for disk, found in mine.last.items()}
    assert zeros["vdb"] == [(2 * MIB, 2 * MIB, "zero")] and zeros["vdc"] == ([] if held else [(MIB, MIB, "zero")])


def test_a_base_that_is_lost_is_read_in_full_or_refused(program):
    mine = program({"vda": MIB})
    mine.backup()
    mine.vm.delete_checkpoint(mine.token.checkpoint.name)
    with pytest.raises(nbdpull.NbdpullError) as caught:
        nbdpull.open_backup(mine.options(on_lost_base="fail")).__enter__()
    assert caught.value.code == "checkpoint-unusable" and not mine.vm.job_active()
    job = mine.backup()
    assert how(job) == {"vda": ("full", "checkpoint-lost")} and any("checkpoint-lost" in each for each in job.warnings)


def test_a_token_of_another_domain(program, machine, tmp_path):
    mine, other = program({"vda": MIB}), machine({"vda": MIB})
    mine.backup()
    with pytest.raises(nbdpull.NbdpullError, match="token is of another domain") as caught:
        Program(other, tmp_path / "other").backup(since=mine.token)
    assert caught.value.code == "other-domain"


def test_callbacks_at_each_moment(program):
    mine, moments = program({"vda": MIB}), []
    ready = {"on_ready": lambda: moments.append(mine.vm.job_active()), "on_cut": moments.append}
    with nbdpull.open_backup(mine.options(**ready)) as job:
        assert moments == [False, job.as_of]


def test_threads_read_at_once(program):
    mine = program({"vda": 16 * MIB})
    data = random.Random(5).randbytes(16 * MIB)
    mine.vm.write_bytes("vda", 0, data)
    found = bytearray(16 * MIB)

    def part(disk, start):
        view = memoryview(found)[start : start + MIB]
        disk.read_many((start + at, view[at : at + 300 * KIB]) for at in range(0, MIB, 300 * KIB))

    with nbdpull.open_backup(mine.options()) as job:
        disk = job.disks[0]
        threads = [threading.Thread(target=part, args=(disk, at * MIB)) for at in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == data
        again = bytearray(3 * 512)
        disk.read_many([(512, memoryview(again)[:1024]), (0, memoryview(again)[1024:])])
        assert again == data[512:1536] + data[:512]
        for offset, length in ((16 * MIB - 1, 2), (-1, 1), (17 * MIB, 0)):
            with pytest.raises(nbdpull.NbdpullError, match="disk vda has 16777216 bytes"):
                disk.read_into(offset, bytearray(length))
    gc.collect()


class Sink:
    """A sink that records its calls in order, and raises an exception at one of them."""

    def __init__(self, images=None, fails=None):
        self.images, self.calls, self.fails = dict(images or {}), [], fails

    def open(self, disk):
        self.note("open", disk.name)
        whole = bytearray(self.images.get(disk.name, b"") if disk.mode == "incremental" else b"")
        self.image = whole[: disk.size] + bytes(max(0, disk.size - len(whole)))
        self.disk, self.reached = disk.name, 0
        return self

    def data(self, offset, view):
        assert len(view) <= MIB and offset >= self.reached and view.readonly
        self.image[offset : offset + len(view)] = view
        self.reached = offset + len(view)
        self.note("data", offset)

    def zero(self, offset, length):
        assert offset >= self.reached
        self.image[offset : offset + length] = bytes(length)
        self.reached = offset + length
        self.note("zero", offset)

    def close(self):
        self.images[self.disk] = bytes(self.image)
        self.note("close", self.disk)

    def commit(self, token):
        self.token = token
        self.note("commit", token.run)

    def abort(self):
        self.calls.append(("abort", None))

    def note(self, *call):
        self.calls.append(call)
        if call[0] == self.fails:
            raise ArithmeticError(call)


def test_a_sink_receives_everything(program):
    mine, chance = program({"vda": 8 * MIB, "vdb": MIB}), random.Random(3)
    mine.vm.write_bytes("vda", MIB, chance.randbytes(4 * MIB))
    sink, reported = Sink(), []
    for _ in range(3):
        frozen = {disk: mine.vm.content(disk) for disk in mine.vm.disks}
        sink = Sink(sink.images)
        result = nbdpull.backup(mine.options(), sink, report=lambda **event: reported.append(event))
        assert sink.images == frozen and sink.token == result.token
        assert [call for call in sink.calls if call[0] not in ("data", "zero")] == [
            ("open", "vda"), ("close", "vda"), ("open", "vdb"), ("close", "vdb"), ("commit", result.id)
        ]  # fmt: skip
        counted = {disk.name: disk.data_bytes + disk.zero_bytes for disk in result.disks}
        assert counted == {"vda": 8 * MIB, "vdb": MIB} if mine.token is None else counted["vda"] < 8 * MIB + 1
        mine.token = result.token
        mine.assert_clean()
        for _ in range(5):
            mine.vm.write_bytes("vda", chance.randrange(100) * CLUSTER, chance.randbytes(CLUSTER))
    assert {event["event"] for event in reported} == {"progress"} and reported[-1]["disk"] == "vdb"


def test_a_sink_that_has_committed_is_called_no_more(program, monkeypatch):
    """Whatever happens after the commit."""
    mine = program({"vda": MIB})
    mine.backup()
    sink = Sink(mine.images)
    monkeypatch.setattr("nbdpull.pulling.token_base.drop", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nbdpull.backup(mine.options(), sink)
    assert sink.calls[-1][0] == "commit"
    monkeypatch.undo()
    mine.token, mine.images = sink.token, sink.images
    mine.backup()


@pytest.mark.parametrize("call", ["open", "data", "zero", "close", "commit"])
def test_a_sink_that_fails(program, call):
    """Wherever it fails: its `abort` is called, nothing has changed, and the caller gets the sink's own exception."""
    mine = program({"vda": 4 * MIB})
    mine.vm.write("vda", 0, MIB, 0x12)
    mine.backup()
    mine.vm.write("vda", MIB, MIB, 0x13)
    mine.vm.write_zeroes("vda", 0, CLUSTER)
    sink = Sink(mine.images, fails=call)
    with pytest.raises(ArithmeticError, match=call):
        nbdpull.backup(mine.options(), sink)
    assert sink.calls[-1] == ("abort", None)
    mine.assert_clean()
    assert how(mine.backup()) == {"vda": ("incremental", "checkpoint")}


def test_extents_from_some_offset_on(program):
    mine = program({"vda": 4 * MIB})
    mine.vm.write("vda", 0, 4 * MIB, 0x11)
    with nbdpull.open_backup(mine.options()) as job:
        (extent,) = job.disks[0].extents(MIB)
    assert extent == nbdpull.Extent(MIB, 3 * MIB, "data") and extent.kind == "data"
