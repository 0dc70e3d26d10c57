"""Faults between a store and its server: everything that was reported as done exists, and nothing else does.

NBDPULL_S3_FAULTS=500 runs that many rounds instead of a few.
"""

import os
import random
import signal
import time

import pytest
import stores
from bed.machine import wait_for
from command import environment, start_nbdpull
from faulty_proxy import FaultyProxy, at_random
from stores import KIB, Vm

from nbdpull.core import errors
from nbdpull.repository import half_points, removal
from nbdpull.storage import s3_client
from nbdpull.storage.s3 import S3Store

pytestmark = pytest.mark.e2e

FAULTS = int(os.environ.get("NBDPULL_S3_FAULTS", "40"))
SHARE = 0.25  # of the requests


@pytest.fixture
def proxy(object_store, monkeypatch):
    monkeypatch.setattr(s3_client, "_PAUSES", (0.001, 0.05))  # nobody waits long for a fault of ours
    with FaultyProxy(object_store.server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


def rounds(proxy):
    """Yield numbers of rounds, each with faults of its own, until there were enough."""
    number = 0
    while len(proxy.faults()) < FAULTS:
        proxy.decide = at_random(number, SHARE)
        yield number
        number += 1


# -- files ------------------------------------------------------------------------------------------------------------


class Model:
    """What a store has to contain: {path: bytes}."""

    def __init__(self, store, rng):
        self.store, self.rng, self.files = store, rng, {}

    def step(self):
        getattr(self, self.rng.choice(["publish", "again", "replace", "delete", "rename", "read", "look"]))()

    def name(self):
        """Return the name of an existing file; or of one that does not exist."""
        return self.rng.choice([*self.files, "vm/none"])

    def data(self):
        return self.rng.randbytes(self.rng.choice([0, 1, 5000]))

    def publish(self):
        path = f"vm/{self.rng.getrandbits(40):x}"
        self.files[path] = self.data()
        self.store.publish(path, self.files[path])

    def again(self):
        path = self.name()
        if path in self.files:
            with pytest.raises(errors.OutputExists):
                self.store.publish(path, b"other bytes")

    def replace(self):
        path = self.name()
        self.files[path] = self.data()
        self.store.replace(path, self.files[path])

    def delete(self):
        path = self.name()
        self.files.pop(path, None)
        self.store.delete(path)

    def rename(self):
        path = self.name()
        if path in self.files:
            self.files[f"{path}-"] = self.files.pop(path)
            self.store.rename(path, f"{path}-")

    def read(self):
        path = self.name()
        assert self.store.find(path) == self.files.get(path)
        assert self.store.size(path) == (len(self.files[path]) if path in self.files else None)

    def look(self):
        assert sorted(f"vm/{name}" for name in self.store.files("vm")) == sorted(self.files)


def test_files(object_store, proxy):
    store, rng = S3Store(object_store.url), random.Random(1)
    model = Model(store, rng)
    for _ in rounds(proxy):
        for _ in range(10):
            model.step()
    there = {name: object_store.read(name) for name in object_store.objects()}
    assert there == model.files


def test_a_signal_ends_the_wait_for_a_server(object_store, proxy):
    """And nothing is asked then to find out which domain it was."""
    proxy.decide = lambda *_: "503"
    process = start_nbdpull(
        "verify", object_store.url, "--json", env={**environment(), "AWS_ENDPOINT_URL_S3": proxy.endpoint}
    )
    with process:
        wait_for(lambda: proxy.requests, "a request")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, problem = process.communicate(timeout=50)
    assert (process.returncode, problem) == (143, "nbdpull: stopped by SIGTERM\n")
    assert time.monotonic() - began < 20


# -- points -----------------------------------------------------------------------------------------------------------


def test_points(object_store, proxy, tmp_path):
    """Pulled, removed and restored; then, without faults, the store contains what was reported."""
    vm = Vm(object_store.url)
    vm.root, rng = object_store.url, random.Random(2)
    vm.add_disk("vda", 300 * KIB)
    vm.add_disk("vdb", 40 * KIB)
    removed = set()
    for number in rounds(proxy):
        for name in vm.disks:
            stores.scribble(vm, name, rng, count=3, longest=50 * KIB)
        vm.pull(dedupe=True, frame_size=8 * KIB, chunk_size=32 * KIB, batch_size=16 * KIB)
        point = rng.choice([each for each in vm.points if each.id not in removed])
        assert stores.restored(vm, point, tmp_path / "out") == vm.images[point.id]
        if number % 3 == 2:
            with half_points.writing(vm.series):
                removal.remove(vm.series, vm.points[number - 2])
            removed.add(vm.points[number - 2].id)
    proxy.decide = lambda *_: None
    kept = [point for point in vm.points if point.id not in removed]
    assert stores.ids(vm) == [point.id for point in kept]
    for point in kept:
        assert stores.restored(vm, point, tmp_path / "out") == vm.images[point.id]
    assert stores.verify_store(object_store.url).damages == []
    assert not [name for name in object_store.objects() if name.endswith(("run.json", ".draft"))]
