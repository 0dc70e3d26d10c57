"""Domains pulled at once into a cluster that loses one of its servers meanwhile: all points exist.

NBDPULL_S3_DOMAINS=20 pulls that many instead of a few.
"""

import os
import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import stores
from stores import KIB, Vm

pytestmark = pytest.mark.e2e

DOMAINS = int(os.environ.get("NBDPULL_S3_DOMAINS", "3"))
PULLS = 4
KILLED_AFTER = 2  # of each domain


def domain(place, number):
    vm = Vm(place.url, f"vm{number}", str(uuid.UUID(int=number + 1)))
    vm.root = place.url
    vm.add_disk("vda", 500 * KIB)
    return vm


@pytest.mark.timeout_seconds(600)
def test_a_volume_server_that_dies_costs_nothing(cluster_store, tmp_path):
    vms = [domain(cluster_store, number) for number in range(DOMAINS)]
    half_way = threading.Barrier(DOMAINS + 1)

    def pull(vm):
        rng = random.Random(vm.name)
        for number in range(PULLS):
            if number == KILLED_AFTER:
                half_way.wait(300)
            stores.scribble(vm, "vda", rng, count=4, longest=100 * KIB)
            vm.pull(dedupe=True, chunk_size=32 * KIB, batch_size=16 * KIB)

    with ThreadPoolExecutor(DOMAINS) as pulling:
        pulls = [pulling.submit(pull, vm) for vm in vms]
        half_way.wait(300)
        cluster_store.server.kill_volumes(0)
        for each in pulls:
            each.result()
    for vm in vms:
        assert stores.ids(vm) == [point.id for point in vm.points] and len(vm.points) == PULLS
        for point in vm.points:
            assert stores.restored(vm, point, tmp_path / "out") == vm.images[point.id]
    assert stores.verify_store(cluster_store.url).damages == []
