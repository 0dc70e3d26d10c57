"""`pull kubevirt:NAMESPACE/VM` against the stub of KubeVirt's API: nbdpull creates the tracker, the backup and the
token.

A black box, like test_kubevirt_urls.py, which tests the faults of the export server. Here: the life of the objects, the
base, and everything that happens to a backup from outside. After each run the cluster holds no backup and no secret.
"""

import contextlib
import json
import os
import queue
import signal

import pytest
from command import environment, last_event, nbdpull, start_nbdpull
from kubevirt_play import Play, playing, rotating
from kubevirt_stub import CLUSTER, Cluster

ALWAYS = 1 << 30
OPTIONS = ("--stall-timeout", "1s")


class ClusterPlay(Play):
    """A Play with the API of the cluster."""

    def prepare(self):
        self.claims = self.names("persistentvolumeclaims")

    def names(self, resource):
        return [each["metadata"]["name"] for each in self.cluster.all(resource)]

    @property
    def base(self):
        (checkpoint,) = self.cluster.trackers.values()
        return checkpoint

    @property
    def command(self):
        return ["pull", "kubevirt:ns1/vm1", "-o", self.store, "--json", *OPTIONS]

    @property
    def env(self):
        return {**environment(), "KUBECONFIG": str(self.cluster.kubeconfig)}

    def run(self, *options):
        return nbdpull(*self.command, *options, env=self.env)

    def assert_nothing_left(self):
        """The tracker stays: it is the base."""
        self.cluster.wait(lambda: not self.cluster.backups, 2)
        assert self.names("secrets") == [] and self.names("persistentvolumeclaims") == self.claims
        assert len(self.cluster.trackers) <= 1


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    with playing(ClusterPlay, tmp_path_factory) as plays:
        yield plays


@pytest.fixture(params=["v1.9"])
def every(request, plays):
    """A play that has a base, and whose guest has written since."""
    play = plays[request.param]
    if not play.frozen or play.base != play.checkpoint:
        play.pull()
    play.disk().write(0, os.urandom(4 * CLUSTER))
    yield play
    play.clear()


@pytest.fixture
def fresh(tmp_path):
    """A new cluster and store: fresh(generation, options of the cluster)."""
    with contextlib.ExitStack() as stack:
        yield lambda generation="v1.9", **options: ClusterPlay(
            stack.enter_context(Cluster(generation, tmp_path, **options)), tmp_path
        )


# -- what is right


@rotating([1, 2, 3], "number")
def test_full_and_incremental(every, number):
    assert set(every.pull().values()) == {"incremental"}
    every.assert_restores()


@pytest.mark.parametrize("options", [{"reach": "inside"}, {"system_ca": True}], ids=["inside", "system's CA"])
def test_other_ways_to_the_export(fresh, options):
    play = fresh("main", **options)
    before = play.content()
    env = {**play.env, "SSL_CERT_FILE": str(play.cluster.ca_paths[1])}
    play.made(nbdpull(*play.command, env=env), before)
    play.assert_restores()


def test_a_kubeconfig_that_names_files(fresh):
    play = fresh()
    before = play.content()
    env = {**environment(), "KUBECONFIG": str(play.cluster.kubeconfig_of_files)}
    play.made(nbdpull(*play.command, env=env), before)


def test_the_backup_is_deleted_after_our_commit_only(fresh):
    play, seen = fresh(), []
    play.faults.on("delete virtualmachinebackups", lambda: seen.append(listed(play.store)), times=ALWAYS)
    play.pull()
    play.pull()
    assert [len(points) for points in seen] == [1, 2]


def listed(store):
    return json.loads(nbdpull("list", store, "--json").stdout)


# -- the base


def foreign(play):
    (tracker,) = play.cluster.trackers
    play.cluster.foreign_backup("ns1", tracker)


def lost(play):
    """A restart of the VM finds its bitmaps corrupt."""
    play.vm.lose_bitmaps()
    (tracker,) = play.cluster.all("virtualmachinebackuptrackers")
    del tracker["status"]["latestCheckpoint"]
    play.cluster.objects.update("virtualmachinebackuptrackers", tracker)


def removed(play):
    (tracker,) = play.cluster.trackers
    play.cluster.objects.delete("virtualmachinebackuptrackers", "ns1", tracker)


@rotating([foreign, lost, removed], "happening")
def test_without_our_base_everything_is_read(every, happening):
    happening(every)
    every.disk().write(2 * CLUSTER, os.urandom(CLUSTER))
    assert set(every.pull().values()) == {"full"}
    every.assert_restores_last()


# -- what happens while it is read


def deleted(play):
    """Somebody deletes the backup's object."""
    play.cluster.objects.delete("virtualmachinebackups", "ns1", play.cluster.backups[0])


def stopped(play):
    play.vm.running = False


EVENTS = {  # and whether the tracker has moved after it
    "its time ends": (lambda play: play.cluster.controller.end_ttl(), True),
    "the job fails": (lambda play: play.cluster.controller.fail(), False),
    "somebody deletes it": (deleted, True),
    "the VM stops": (stopped, False),
    "it is not authorized": (401, True),
}


@rotating(EVENTS, "event")
def test_faults_that_end_a_run(every, event):
    """The next one is not incremental if the tracker has moved, whoever moved it."""
    what, moved = EVENTS[event]
    every.faults.on("data", what, *[every][: callable(what)], times=ALWAYS)
    assert not every.attempt()
    every.faults.clear()
    every.vm.running = True
    every.disk().write(CLUSTER, os.urandom(CLUSTER))
    assert set(every.pull().values()) == {"full" if moved else "incremental"}
    every.assert_restores_last()


@rotating(["map", "data"], "when")
def test_an_export_that_is_made_anew(every, when):
    """The status reports its other URLs and certificate."""
    every.faults.on(when, every.cluster.recreate_export)
    every.assert_right_or_nothing()


@rotating([503, "reset"], "what")
def test_an_api_that_is_away_for_a_moment(every, what):
    for verb in ("get", "watch", "list", "create", "delete"):
        every.faults.on(f"{verb} virtualmachinebackups", what)
    every.assert_right_or_nothing()


@rotating(["create", "delete"], "verb")
def test_an_answer_that_gets_lost(every, verb):
    """The object was created or deleted, but the answer was lost."""
    every.faults.on(f"{verb} virtualmachinebackups", "lost")
    every.faults.on(f"{verb} secrets", "lost")
    every.assert_right_or_nothing()


# -- others


def test_a_second_backup_of_our_tracker(every):
    (tracker,) = every.cluster.trackers
    every.cluster.create("Secret", "ns1", "theirs", data={"token": "c2VjcmV0"})
    every.cluster.start_backup("ns1", "theirs", tracker)
    done = every.run()
    assert done.returncode == 5, done.stderr
    assert every.cluster.backups == every.names("secrets") == ["theirs"]
    every.cluster.objects.delete("secrets", "ns1", "theirs")
    every.cluster.end_backup("ns1", "theirs")
    assert set(every.pull().values()) == {"full"}
    every.assert_restores_last()


@pytest.mark.parametrize("resource", ["virtualmachinebackups", "secrets"])
def test_what_the_role_does_not_allow(fresh, resource):
    play = fresh()
    play.cluster.forbidden.add(("create", resource))
    assert not play.attempt()
    assert play.result["exit_code"] == 7, play.result


def test_a_vm_that_is_not_there(fresh):
    play = fresh()
    for resource in ("virtualmachines", "virtualmachineinstances"):
        play.cluster.objects.delete(resource, "ns1", "vm1")
    del play.cluster.controller.vms["ns1", "vm1"]
    assert not play.attempt()
    assert play.result["exit_code"] == 3, play.result


def test_a_bearer_token_that_is_not_valid(fresh):
    play = fresh()
    env = play.env
    play.cluster.bearer = "another"
    done = nbdpull(*play.command, env=env)
    assert done.returncode == 7, done.stderr


@rotating([signal.SIGINT, signal.SIGTERM, signal.SIGKILL], "number")
def test_a_run_that_is_ended(every, number):
    """The next run removes what a killed one leaves in the cluster, and does not use it as a base."""
    started = queue.SimpleQueue()
    every.faults.on("data", lambda: started.get(timeout=60).send_signal(number))
    every.faults.on("data", "cut", 100)
    process = start_nbdpull(*every.command, env=every.env)
    started.put(process)
    output, problem = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number, problem
        assert "Traceback" not in problem and last_event(output)["left_behind"] == []
        every.assert_nothing_left()
    every.faults.clear()
    every.disk().write(CLUSTER, os.urandom(CLUSTER))
    assert set(every.pull().values()) == {"full"}
    every.assert_restores_last()
