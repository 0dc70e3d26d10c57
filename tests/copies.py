"""Points of one test store, such as `of_one_disk`, copied into another. Knows nothing of the expected result."""

import random

from stores import KIB, Vm

from nbdpull.core.throttle import Throttle
from nbdpull.repository import half_points, incoming, matching
from nbdpull.repository.resealed_point import Pair, Resealing
from nbdpull.storage.directory import DirectoryStore
from nbdpull.storage.directory_file import DirectoryWriter

# What changes a store of a directory, see dying.
CHANGES = {
    DirectoryStore: (
        "make_folder",
        "create",
        "reopen",
        "publish",
        "rename",
        "delete",
        "remove_file",
        "remove_folder",
        "sync_folder",
    ),
    DirectoryWriter: ("write", "sync"),
}


def of_one_disk(root):
    """Return a Vm with two points, of a few files each."""
    vm = Vm(root)
    vm.add_disk("vda", 200 * KIB)
    for number in range(2):
        vm.write("vda", 64 * KIB * number, random.Random(number).randbytes(100 * KIB))
        vm.pull()
    return vm


def over(vm, root, keys=None):
    """Return the Vm as if its pulls had gone into another store, to compare that store with what the Vm knows."""
    other = Vm(root, vm.name, vm.uuid, keys)
    other.images = vm.images
    return other


def take(vm, other, *points):
    """Copy these points, or all; return what was copied for each."""
    with half_points.writing(other.series):
        taking = incoming.Incoming(vm.series, other.series, other.series.points(), Throttle())
        return [taking.take(point) for point in points or vm.points]


def resealing(vm, other):
    """Return a copier of a Vm's points into another Vm's store, whose seal may differ; with small chunk files."""
    here, there = vm.series.points(), {point.id: point for point in other.series.points()}
    pairs = [Pair(point, there[point.id]) for point in matching.matched(here, [*there.values()]).same]
    return Resealing(vm.series, other.series, [*there.values()], pairs, Throttle(), chunk_size=100 * KIB)


def reseal(vm, other, *points, taking=None):
    """Copy these points with `resealing`, or all that are missing; return what was copied for each."""
    with half_points.writing(other.series):
        taking = taking or resealing(vm, other)
        there = {point.id for point in other.series.points()}
        return [taking.take(point) for point in points or vm.series.points() if point.id not in there]
