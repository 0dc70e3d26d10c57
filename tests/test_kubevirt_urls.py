"""`pull kubevirt:…` by URLs against the stub of KubeVirt: each generation, and the faults of its export server.

A black box: only the command line, the store, and what the cluster saw. Whatever happens, a run ends with a right
point, or with a clear failure that leaves nothing; and the next one, which may be incremental, is right again.
"""

import contextlib
import itertools
import os
import queue
import random
import signal
import time

import pytest
from command import last_event, nbdpull, start_nbdpull
from kubevirt_play import SIZES, Play, playing, rotating
from kubevirt_stub import BLOCK, CLUSTER, GENERATIONS, Cluster
from witness import assert_same, points_of

SECONDS = float(os.environ.get("NBDPULL_SECONDS", "2"))
ALWAYS = 1 << 30
FULL, SINCE = {"rootdisk": "full", "data": "full"}, {"rootdisk": "incremental", "data": "incremental"}


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    with playing(Play, tmp_path_factory) as plays:
        yield plays


@pytest.fixture(params=["v1.9"])
def every(request, plays):
    """A play whose guest has written; of another generation if a test says so."""
    play = plays[request.param]
    play.disk().write(0, os.urandom(4 * CLUSTER))
    yield play
    play.clear()


@pytest.fixture
def fresh(tmp_path):
    """A new cluster and store: fresh(generation, sizes, options of the cluster)."""
    with contextlib.ExitStack() as stack:

        def make(generation="v1.9", sizes=SIZES, **options):
            cluster = stack.enter_context(Cluster(generation, tmp_path, **options))
            return Play(cluster, tmp_path, sizes)

        yield make


# -- what is right


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_point_restores(fresh, generation):
    """Full, incremental, zeroed, discarded, grown, shrunk, shrunk and grown."""
    play = fresh(generation)
    root, data = play.disk(), play.disk("data")
    root.write(CLUSTER + 512, b"a" * 3 * CLUSTER)
    root.as_a_hole(2 * CLUSTER, BLOCK)  # reported as a hole, and not as zero: its bytes count
    data.write(data.size - 512, b"e" * 512)
    assert play.pull() == FULL
    root.write(2 * CLUSTER + 100, b"b" * 1000)
    root.zero(CLUSTER, BLOCK)
    root.discard(3 * CLUSTER, CLUSTER + 5)
    assert play.pull() == SINCE
    root.resize(root.size + 3 * CLUSTER + 512)
    data.resize(data.size + CLUSTER)
    data.write(data.size - CLUSTER - 4096, b"c" * 8192)
    play.pull()
    root.resize(2 * CLUSTER + 512)
    play.pull()
    root.resize(6 * CLUSTER)  # what was there is gone
    root.write(5 * CLUSTER, b"d" * 512)
    play.pull()
    play.assert_restores()


def test_a_disk_that_shrank_and_grew_between_two_pulls(fresh):
    """Its size is the same, and what was cut off is clean: only its zeroes are reported, from v1.9 on."""
    play = fresh()
    size = play.disk().size
    play.disk().write(0, b"a" * size)
    play.pull()
    play.disk().resize(CLUSTER)
    play.disk().resize(size)
    play.pull()
    play.assert_restores()


def test_what_the_guest_writes_meanwhile_is_not_read(every):
    every.faults.on("data", lambda: every.disk().write(0, b"later" * 40000), times=ALWAYS)
    every.pull()
    every.faults.clear()
    every.pull()
    every.assert_restores([*every.frozen][-2])
    assert_same(every.restored(), every.content())


def test_an_export_without_a_way_from_outside(fresh):
    play = fresh("main", reach="inside")
    play.disk().write(0, b"a" * CLUSTER)
    play.pull()
    play.assert_restores()


def test_ranges_are_bounded(fresh):
    """A proxy in front of the export ends a request after 30 s: no request is for a whole disk. Here it ends long
    ones."""
    play = fresh("main", {"rootdisk": 20 << 20})
    play.disk().write(0, os.urandom(1 << 20) * 18)
    play.pull()
    assert play.cluster.largest["data"] <= 16 << 20
    play.disk().write(1 << 20, os.urandom(1 << 20) * 4)
    play.cluster.longest = 2 << 20
    play.assert_right_or_nothing()


# -- what goes wrong

PASSING = {  # what a run gets over: it makes its point all the same
    "503 of a map": ("map", 503),
    "503 of data": ("data", 503),
    "reset of a map": ("map", "reset"),
    "reset of data": ("data", "reset"),
    "a cut map": ("map", "cut", 20),
    "cut data": ("data", "cut", 100_001),
    "data that is cut at once": ("data", "cut", 0),
}
LASTING = {  # what it cannot get over, or only by luck
    "503 of data": ("data", 503),
    "500 of maps": ("map", 500),
    "401 of data": ("data", 401),
    "401 of maps": ("map", 401),
    "data that is cut": ("data", "cut", 0),
    "data that ends early": ("data", "short", 0),
    **{f"a map that is {word}": ("map", word) for word in ("null", "gap", "late", "overlap", "stuck", "backwards")},
    "a map of less": ("map", "short"),
    "a map beyond the end": ("map", "beyond", 0, "data"),
    "a map of an unknown type": ("map", "type"),
    "a map with an empty extent": ("map", "empty"),
}


@rotating(PASSING, "fault")
def test_faults_that_a_run_survives(every, fault):
    kind, *what = PASSING[fault]
    every.faults.on(kind, *what)
    every.pull()
    assert every.faults.done[kind], "the fault was not met"
    every.assert_restores_last()


@rotating(LASTING, "fault")
def test_faults_that_end_a_run(every, fault):
    kind, *what = LASTING[fault]
    every.faults.on(kind, *what, times=ALWAYS)
    every.assert_right_or_nothing()


@pytest.mark.parametrize("word", ["null", "gap", "short"])
def test_a_map_that_is_wrong_later(every, word):
    """It is requested again at the end."""
    every.faults.on("map", word, after=2, times=ALWAYS)
    every.assert_right_or_nothing()


def deleted(play):
    """Somebody deletes the backup's object."""
    play.cluster.objects.delete("virtualmachinebackups", "ns1", play.cluster.backups[0])


def stopped(play):
    play.vm.running = False


EVENTS = {  # what happens to a backup that is being read
    "the export is made anew": lambda play: play.cluster.recreate_export(),
    "its time ends": lambda play: play.cluster.controller.end_ttl(),
    "the job fails": lambda play: play.cluster.controller.fail(),
    "somebody deletes it": deleted,
    "the VM stops": stopped,
}


@rotating(itertools.product(EVENTS, ["data", "map"]), "event")
def test_events_during_the_read(every, event):
    what, when = event
    every.faults.on(when, EVENTS[what], every)
    assert not every.attempt()


# -- wrong answers


def test_an_increment_without_its_base(every):
    """A backup since somebody else's checkpoint is refused, whether the store has no checkpoint or others."""
    every.pull()
    every.cluster.foreign_backup("ns1", "t")
    every.disk().write(0, os.urandom(CLUSTER))
    every.checkpoint = every.base  # the vendor forgets to force a full one
    assert not every.attempt()
    assert (every.result["exit_code"], every.result["code"]) == (4, "checkpoint-unusable")
    every.checkpoint = None
    assert every.pull() == FULL
    every.assert_restores_last()


@pytest.mark.parametrize("expected", ["full", "incremental"])
def test_a_type_that_is_not_the_backup_s(every, expected):
    """The numbers of a map have other meanings in the other type."""
    every.pull()
    every.checkpoint = None if expected == "incremental" else every.checkpoint
    with every.backup() as words:
        words[words.index("--type") + 1] = expected
        words = [*words, "--since", every.base] if expected == "incremental" else without(words, "--since")
        done = nbdpull(*words)
    every.assert_failed(done)


def without(words, option):
    at = words.index(option)
    return words[:at] + words[at + 2 :]


@pytest.mark.parametrize("lie", ["token", "ca"])
def test_a_token_or_a_certificate_of_another(every, lie):
    path = getattr(every, lie)
    text = path.read_text()
    with every.backup() as words:
        path.write_text("hunter2\n" if lie == "token" else every.cluster.ca_paths[0].read_text())
        done = nbdpull(*words)
    path.write_text(text)
    every.assert_failed(done)
    assert "hunter2" not in done.stdout + done.stderr


# -- the process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended(every, number):
    """By a signal while it reads: no point, and the next one is right."""
    points, started = points_of(every.store), queue.SimpleQueue()
    with every.backup() as words:
        every.faults.on("data", lambda: started.get(timeout=60).send_signal(number))
        every.faults.on("data", "cut", 100)  # so that it has more to do
        process = start_nbdpull(*words)
        started.put(process)
        output, problem = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number, problem
        assert "Traceback" not in problem and last_event(output)["left_behind"] == []
        assert points_of(every.store) == points
    every.faults.clear()
    every.disk().write(CLUSTER, os.urandom(CLUSTER))
    assert set(every.pull().values()) == {"full"}  # the tracker has moved
    every.assert_restores_last()


# -- anything


def test_any_sequence_of_writes_faults_and_pulls(fresh):
    """NBDPULL_SEED=n plays another sequence, NBDPULL_SECONDS=n plays longer."""
    seed = int(os.environ.get("NBDPULL_SEED", "1"))
    print(f"NBDPULL_SEED={seed}")
    chance = random.Random(seed)
    play = fresh(chance.choice([*GENERATIONS]))
    until = time.monotonic() + SECONDS
    while time.monotonic() < until or len(play.frozen) < 3:
        for _ in range(chance.randrange(4)):
            play.change(chance)
        if chance.random() < 0.5:
            kind, *what = chance.choice([*PASSING.values(), *LASTING.values()])
            play.faults.on(kind, *what, after=chance.randrange(4), times=chance.choice([1, 2, ALWAYS]))
        if chance.random() < 0.2:
            play.faults.on(chance.choice(["map", "data"]), chance.choice([*EVENTS.values()]), play)
        if chance.random() < 0.1 and play.base:
            play.cluster.foreign_backup("ns1", "t")
        play.assert_right_or_nothing()
        play.faults.clear()
        play.vm.running = True
    play.assert_restores()
