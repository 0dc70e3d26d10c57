"""Stores in which most data are hidden by newer points, and what is left of them after they are pruned."""

import random

import stores
from stores import KIB

from nbdpull.repository import half_points, removal, repack
from nbdpull.repository.repack import Wanted

HALF = Wanted(0.5)


def pruned(vm, ids, wanted=HALF, grace=0.0):
    """Remove points, sweep and repack; return the result of the repack."""
    with half_points.writing(vm.series):
        for point in [point for point in vm.series.points() if point.id in ids]:
            removal.remove(vm.series, point)
        removal.sweep(vm.series, grace)
        return repack.repack(vm.series, wanted)


def scattered(vm, rng, count):
    """Write so that most of what is stored is hidden."""
    blocks = vm.disks["vda"].size // 4096
    for number in rng.sample(range(blocks), count):
        vm.write("vda", number * 4096, rng.randbytes(4096))


def mostly_hidden(root, seed=1, rounds=4, chunk_size=100 * KIB):
    """Return a Vm with small frames, most of which newer points hide."""
    rng, vm = random.Random(seed), stores.Vm(root)
    vm.add_disk("vda", 100 * 4096)
    vm.add_disk("vdb", 5 * 4096)
    for _ in range(rounds):
        scattered(vm, rng, 80)
        vm.write("vdb", 0, rng.randbytes(4096))
        vm.pull(frame_size=4096, chunk_size=chunk_size, batch_size=16 * KIB)
    return vm
