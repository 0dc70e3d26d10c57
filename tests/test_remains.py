"""What runs left in a cluster: what is ours, what could not be listed, and how a backup goes. test_kubevirt_cluster.py
has it in a cluster that answers as KubeVirt does."""

from types import SimpleNamespace

import pytest

from nbdpull.core import errors
from nbdpull.kubevirt import objects, ours, remains
from nbdpull.kubevirt.backup import Who
from nbdpull.kubevirt.given import Machine
from nbdpull.kubevirt.remains import Remain

MACHINE, OTHER = Machine("ns", "vm1"), Machine("ns", "vm2")
STORE, ELSEWHERE = "0b5ee1c4-9d22-4ff1-8f0c-5b5a0c1d7d11", "11111111-9d22-4ff1-8f0c-5b5a0c1d7d11"
RUN = "20261122T194500Z-7f3a9c04"
DONE = {"status": {"conditions": [{"type": "Done", "status": "True"}]}}


class Cluster:
    """Objects in memory, by kind. stays: how often a deleted object is still there; `calls`: what was asked."""

    inside = False

    def __init__(self, listed=None, stays=0):
        self.listed, self.stays, self.calls = listed or {}, stays, []

    def items(self, kind, namespace, labels):
        assert namespace == "ns" and labels["app.kubernetes.io/managed-by"] == "nbdpull"
        found = self.listed.get(kind, [])
        if isinstance(found, Exception):
            raise found
        return [each for each in found if labels.items() <= each["metadata"]["labels"].items()]

    def delete(self, kind, _namespace, name):
        self.calls.append(("delete", objects.plural(kind), name))

    def get(self, _kind, _namespace, name):
        self.stays -= 1
        return {"metadata": {"name": name}} if self.stays >= 0 else None

    def pause(self, seconds):
        self.calls.append(("pause", seconds))


def made(machine=MACHINE, store=STORE, run=RUN):
    """Return {kind: [the object that a run makes]}."""
    who = Who(machine, store, run)
    labels = ours.labels(store, run, who.tracker)
    return {
        objects.BACKUP: [ours.backup(who.name, labels, ours.Wish(who.tracker, True, False, None, "c"))],
        objects.SECRET: [ours.secret(who.name, labels, "a-token")],
        objects.CLAIM: [ours.claim(who.name, labels, 1)],
        objects.TRACKER: [ours.tracker(machine, who.tracker, labels)],
    }


def of_all(*several):
    return {kind: [each for one in several for each in one[kind]] for kind in several[0]}


def test_only_what_runs_made_for_this_machine_and_store():
    runs = RUN, RUN[:-1] + "5", RUN[:-1] + "6"
    cluster = Cluster(of_all(made(), made(OTHER, run=runs[1]), made(store=ELSEWHERE, run=runs[2])))
    name = ours.run_name(RUN)
    assert remains.found(cluster, MACHINE, STORE) == ([Remain(kind, name, RUN) for kind in remains.OF_A_RUN], [])
    found = remains.found(cluster, MACHINE, None).found
    assert {each.run for each in found} == {RUN, runs[2]}
    assert [each.kind for each in found] == [kind for kind in remains.OF_A_RUN for _ in range(2)]  # backups first
    trackers = remains.found(cluster, MACHINE, STORE, (objects.TRACKER,)).found
    assert [each.what for each in trackers] == [f"tracker {Who(MACHINE, STORE, RUN).tracker}"]


@pytest.mark.parametrize("error", [errors.AccessDenied("may not list"), errors.Unsupported("no such kind")])
@pytest.mark.parametrize("kind, called", [(objects.SECRET, "secrets"), (objects.CLAIM, "claims")])
def test_what_cannot_be_listed_is_that_of_the_backups(error, kind, called):
    """It has the same names."""
    cluster = Cluster({**made(), kind: error})
    found, hidden = remains.found(cluster, MACHINE, STORE)
    assert [(each.kind, each.run) for each in found] == [(each, RUN) for each in remains.OF_A_RUN]
    assert hidden == [(called, str(error))]


def test_backups_that_cannot_be_listed_are_an_error():
    with pytest.raises(errors.AccessDenied):
        remains.found(Cluster({objects.BACKUP: errors.AccessDenied("no")}), MACHINE, STORE)


def test_a_backup_that_is_over_does_not_run():
    listed = made()
    assert remains.running(Cluster(listed), MACHINE, STORE) == listed[objects.BACKUP]
    assert remains.running(Cluster(listed), MACHINE, ELSEWHERE) == []
    listed[objects.BACKUP][0].update(DONE)
    assert remains.running(Cluster(listed), MACHINE, STORE) == []


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock takes a second."""
    seconds = iter(range(1000))
    monkeypatch.setattr(remains, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


def test_a_backup_is_waited_for_ever_less_often(clock):
    cluster = Cluster(stays=7)
    remains.remove(cluster, MACHINE, Remain(objects.BACKUP, "b"), 60.0)
    assert cluster.calls[0] == ("delete", "virtualmachinebackups", "b")
    assert [seconds for _, seconds in cluster.calls[1:]] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_what_needs_no_backup_is_not_waited_for(clock):
    cluster = Cluster(stays=7)
    remains.remove(cluster, MACHINE, Remain(objects.SECRET, "s"), 60.0)
    assert len(cluster.calls) == 1


def test_a_backup_that_does_not_go(clock):
    with pytest.raises(errors.HypervisorError, match="backup b is still being deleted after 5 s"):
        remains.remove(Cluster(stays=100), MACHINE, Remain(objects.BACKUP, "b"), 5.0)
