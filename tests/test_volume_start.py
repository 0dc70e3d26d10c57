"""Where an incremental backup of a virtual machine in a cluster starts: at what both the cluster and the store have."""

import pytest
import stores
from stores import KIB

from nbdpull.core import errors
from nbdpull.core.choices import OnLostBase
from nbdpull.format.manifest import FULL, INCREMENTAL
from nbdpull.kubevirt.given import Machine
from nbdpull.repository.points import Points
from nbdpull.volumes import start

MACHINE = Machine("prod", "db")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("made") / "store", points=3, size=300 * KIB)


@pytest.fixture
def vm(made, tmp_path):
    return made.copy(tmp_path / "store")


def found(vm, latest=None, full=False):
    """latest: the checkpoint that the cluster would start at; by default that of the newest point."""
    points = Points(vm.series, vm.series.heads()[0])
    latest = points.newest.manifest.checkpoint.name if latest is None else latest
    return start.by_tracker(vm.series, points, latest, full, lambda: None)


def choice(begun, vm, **sizes):
    """Of vda and vdb, of the same size as before unless given."""
    sizes = {**{name: disk.size for name, disk in vm.disks.items()}, **sizes}
    return begun.choice(begun.disk(MACHINE, name, None, size) for name, size in sizes.items())


def test_an_increment_starts_at_the_newest_point(vm):
    begun = found(vm)
    chosen = choice(begun, vm, vdb=400 * KIB)
    assert begun.checkpoint == vm.points[-1].manifest.checkpoint.name and begun.why == "" and not begun.warnings
    assert chosen.decisions == {"vda": (INCREMENTAL, "checkpoint"), "vdb": (INCREMENTAL, "grown")}
    assert chosen.parent == vm.points[-1] and begun.require(OnLostBase.FAIL) is None
    assert choice(begun, vm, vdc=KIB).decisions["vdc"][0] == FULL, "the point knows nothing of it"
    assert choice(begun, vm, vda=KIB).decisions["vda"] == (FULL, "shrunk")


@pytest.mark.parametrize("latest, why", [("", "checkpoint-lost"), ("nbdpull-of-a-failed-pull", "checkpoint-replaced")])
def test_no_increment_if_the_cluster_starts_elsewhere(vm, latest, why):
    """Its increment would lack what was written before, or bring what the point does not know of."""
    begun = found(vm, latest)
    chosen = choice(begun, vm)
    assert (begun.base, begun.why, chosen.base) == (None, why, None) and vm.points[-1].id in begun.warnings[0]
    assert {*chosen.decisions.values()} == {(FULL, why)}
    begun.require(OnLostBase.FULL)
    with pytest.raises(errors.CheckpointUnusable, match=why):
        begun.require(OnLostBase.FAIL)


def test_a_point_that_cannot_be_read_is_no_base(vm):
    """Then the newest one that can be read is not the one that the cluster's checkpoint was made with."""
    name = vm.points[-1].manifest.checkpoint.name
    (vm.folder / vm.points[-1].id / "manifest.json").write_bytes(b"?")
    assert found(vm, name).why == "checkpoint-replaced"


def test_a_base_with_an_unusable_disk(vm):
    """Of one disk the directory is damaged, of the other a file that can be done without."""
    begun = found(vm)
    path = vm.folder / vm.points[-1].id / "vdb.directory"
    path.write_bytes(stores.flipped(path.read_bytes(), 30))
    lost = stores.chunks_of(vm, vm.points[-1], "vda")[0]
    (vm.folder / lost.path).unlink()
    assert choice(begun, vm).decisions["vdb"][0] == INCREMENTAL, "that was looked at before"
    begun = found(vm)
    chosen = choice(begun, vm)
    assert chosen.decisions == {"vda": (INCREMENTAL, "healed"), "vdb": (FULL, "chain-broken")}
    assert chosen.bad("vda") == {lost.path} and len(begun.warnings) == 2
    with pytest.raises(errors.CheckpointUnusable):
        chosen.require_not_lost()


def test_changes_since_a_state_that_is_not_stored_are_no_base(vm):
    """Their point is laid over nothing, and what is laid over it could be restored by nobody."""
    vm.write("vda", 0, b"x")
    vm.pull("elsewhere", disks=["vda"])
    assert choice(found(vm), vm).decisions["vda"] == (FULL, "chain-broken")


def test_reasons_for_having_no_base(vm, tmp_path):
    assert found(vm, full=True).why == "requested"
    empty = Points(stores.Vm(tmp_path / "empty").series, [])
    assert start.by_tracker(None, Points(), "c", False, lambda: None).why == "first-point"
    assert start.by_tracker(None, empty, None, False, lambda: None).why == "first-point"
