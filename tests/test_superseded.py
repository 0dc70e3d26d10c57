"""Which checkpoints a new point replaces as a base: no disk ever loses its only one, and no other program loses any."""

import random
from types import SimpleNamespace

import pytest

pytest.importorskip("libvirt")

from nbdpull.core import errors  # noqa: E402
from nbdpull.definitions.domain_xml import Checkpoint  # noqa: E402
from nbdpull.format.manifest import FULL, INCREMENTAL, CheckpointEntry, ParentEntry  # noqa: E402
from nbdpull.pulling import superseded  # noqa: E402

NOW = 1795376700


class Vm:
    """checkpoints: {name: Checkpoint}; broken: names that cannot be deleted. It is its own `checkpoints`."""

    def __init__(self, disks, broken=()):
        self.checkpoints, self._targets, self._broken, self.there, self.deleted = self, disks, broken, {}, []

    def disks(self):
        return [SimpleNamespace(target=target) for target in self._targets]

    def names(self):
        return list(self.there)

    def get(self, name):
        if name not in self.there:
            raise errors.NoSuchCheckpoint(name)
        return self.there[name]

    def delete(self, name):
        if name in self._broken:
            raise errors.HypervisorError("libvirt says no")
        self.deleted.append(name)
        return self.there.pop(name, None) is not None


class Points:
    """Points like those of a series: see repository/points.py."""

    def __init__(self, points):
        self._points = points

    def newest_first(self):
        return reversed(self._points)

    def get(self, name):
        return next((each for each in self._points if each.id == name), None)


def point(number, disks, parent=None, automatic=True, checkpoint=True):
    """disks: {target: mode}"""
    made = CheckpointEntry(f"nbdpull-p{number}", NOW + number, automatic) if checkpoint else None
    entries = [SimpleNamespace(name=name, mode=mode) for name, mode in disks.items()]
    below = ParentEntry(parent.id, parent.sha256) if parent else None
    manifest = SimpleNamespace(disks=entries, sequence=number, checkpoint=made, parent=below)
    return SimpleNamespace(id=f"p{number}", sha256=f"sha of p{number}", parent=parent, manifest=manifest)


def checkpoint_of(made, disks, **changes):
    entry = made.manifest.checkpoint
    fields = {"name": entry.name, "creation_time": entry.creation_time, "run": made.id, **changes}
    return Checkpoint(
        fields["name"], fields["creation_time"], f"nbdpull run {fields['run']}", dict.fromkeys(disks, True), ""
    )


def naive(points, new, vm, covered):
    """Return the names that are deleted by the rule as it is documented: those of the ancestors, and those of all
    points before the last full one, or the last one whose parent was removed."""
    chain, below = [], new
    while below and any(disk.mode == INCREMENTAL for disk in below.manifest.disks):
        if below.parent and below.parent not in points:
            break
        below = below.parent
        chain.append(below)
    replaced = {each.id for each in chain if each}
    if below:
        replaced |= {each.id for each in points if each.manifest.sequence < below.manifest.sequence}
    present = {disk.target for disk in vm.disks()}
    names = set()
    for each in points:
        made = each.manifest.checkpoint
        if each.id not in replaced or not made or not made.automatic or made.name not in vm.there:
            continue
        there = vm.there[made.name]
        the_very_one = (there.creation_time, there.run_id) == (made.creation_time, each.id)
        if the_very_one and not (set(there.disks) & present) - covered:
            names.add(made.name)
    return names


@pytest.mark.parametrize("seed", range(200))
def test_random_series(seed):
    rng = random.Random(seed)
    targets = ["vda", "vdb", "vdc"]
    vm, points = Vm(rng.sample(targets, rng.randrange(1, 4))), []
    for number in range(rng.randrange(1, 7)):
        parent = rng.choice([None, *points[-2:]])
        modes = [FULL] if parent is None else [FULL, INCREMENTAL]
        disks = {target: rng.choice(modes) for target in rng.sample(targets, rng.randrange(1, 4))}
        new = point(number, disks, parent, rng.random() < 0.8, number == 0 or rng.random() < 0.8)
        points.append(new)
        if new.manifest.checkpoint and rng.random() < 0.9:
            other = rng.choice([{}, {}, {}, {}, {"creation_time": NOW - 9}, {"run": "p99"}, {"run": None}])
            there = checkpoint_of(new, rng.sample(targets, rng.randrange(1, 4)), **other)
            vm.there[there.name] = there
    new = points.pop()
    points = [each for each in points if rng.random() < 0.9]  # the others were removed
    made = new.manifest.checkpoint
    if made:
        vm.there[made.name] = checkpoint_of(new, rng.sample(targets, rng.randrange(1, 4)))
        expected = naive(points, new, vm, set(vm.there[made.name].disks))
    else:
        expected = set()
    dropped = superseded.drop(vm, Points(points), new)
    assert set(dropped.checkpoints) == set(vm.deleted) == expected and dropped.warnings == []
    assert len(vm.deleted) == len(expected), "each once"


def test_one_that_cannot_be_deleted_keeps_no_other():
    first = point(1, {"vda": FULL})
    second = point(2, {"vda": INCREMENTAL}, first)
    new = point(3, {"vda": INCREMENTAL}, second)
    vm = Vm(["vda"], broken=["nbdpull-p2"])
    for each in (first, second, new):
        vm.there[each.manifest.checkpoint.name] = checkpoint_of(each, ["vda"])
    dropped = superseded.drop(vm, Points([first, second]), new)
    assert dropped.checkpoints == ["nbdpull-p1"]
    assert dropped.warnings == ["the superseded checkpoint nbdpull-p2 could not be deleted: libvirt says no"]


def test_the_new_one_was_deleted_by_someone_else():
    """The old one stays, although it is no base for the new point, and the user hears of it now, not when the next
    backup is full."""
    first = point(1, {"vda": FULL})
    new = point(2, {"vda": INCREMENTAL}, first)
    vm = Vm(["vda"])
    vm.there["nbdpull-p1"] = checkpoint_of(first, ["vda"])
    dropped = superseded.drop(vm, Points([first]), new)
    assert dropped.checkpoints == vm.deleted == []
    assert dropped.warnings == [
        "the superseded checkpoint nbdpull-p1 could not be deleted: checkpoint nbdpull-p2, which replaces it, was "
        "deleted by someone else: the next backup may have no base"
    ]
