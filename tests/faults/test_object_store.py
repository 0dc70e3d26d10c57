"""A domain is pulled into an object store: the store holds what was read, whatever happens to the run, the server and
the network. The VM has no operating system."""

import json
import os
import random
import re
import shlex
import subprocess
import threading
import time

import command
import object_store as object_stores
import pytest
from bed.machine import MIB, Machine
from command import nbdpull
from faulty_proxy import FaultyProxy
from held import PHASES
from rig import Rig, environment

pytest.importorskip("libvirt")


class ObjectRig(Rig):
    """A Rig whose store is in an object store."""

    def __init__(self, vm, folder, place):
        super().__init__(vm, folder)
        self.place, self.store = place, place.url

    def points(self):
        names = [name for name in self.place.objects() if name.endswith("/manifest.json")]
        found = sorted((json.loads(self.place.read(name)) for name in names), key=lambda each: each["sequence"])
        return [{"id": each["point"], "checkpoint": (each["checkpoint"] or {}).get("name")} for each in found]

    def assert_clean(self, checkpoints=None):
        points = self.points()
        self.assert_domain_clean([p["checkpoint"] for p in points][-1:] if checkpoints is None else checkpoints)
        names = self.place.objects()
        assert {name.split("/")[1] for name in names if name.count("/") == 2} == {point["id"] for point in points}
        assert not [name for name in names if name.endswith("/run.json")] and self.journals() == []


@pytest.fixture(scope="module")
def rig(private_libvirt, tmp_path_factory, seaweedfs):
    folder = tmp_path_factory.mktemp("objects")
    place = object_stores.ObjectStore(seaweedfs, seaweedfs.bucket)
    with pytest.MonkeyPatch.context() as patch, Machine(private_libvirt, folder / "images", {"vda": 16 * MIB}) as vm:
        for name, value in place.environment().items():
            patch.setenv(name, value)
        vm.write("vda", 0, 8 * MIB, 0x11)
        rig = ObjectRig(vm, folder, place)
        rig.pull("--chunk-size", "1M")
        yield rig


VALUES = iter(range(0x21, 0xFF))


def change(rig):
    value = next(VALUES)
    rig.vm.write("vda", MIB, 5 * MIB, value)
    rig.vm.write_zeroes("vda", 2 * MIB, MIB)
    rig.vm.discard("vda", 7 * MIB, 65536)


def test_each_point_restores_to_its_source(rig):
    """A full point, and two of what changed; then points are pruned, and all others restore as before."""
    frozen = {rig.points()[-1]["id"]: rig.contents()}
    for _ in range(2):
        change(rig)
        made = rig.pull()
        assert [disk["mode"] for disk in made["details"]["disks"]] == ["incremental"]
        frozen[made["details"]["id"]] = rig.contents()
    for point, held in frozen.items():
        rig.assert_restores(held, point)
    rig.assert_clean()
    first, *kept = frozen
    assert rig.run("remove", rig.store, first).returncode == 0
    assert [point["id"] for point in rig.points()] == kept
    for point in kept:
        rig.assert_restores(frozen[point], point)


COMMITTED = ("committed", "dropping")
GONE_ON_WITH = ("reading", "copying")


@pytest.mark.parametrize("phase", PHASES)
def test_killed(rig, phase):
    change(rig)
    frozen, before = rig.contents(), len(rig.points())
    rig.start(phase=phase)
    rig.process.kill()
    rig.process.communicate()
    assert len(rig.points()) == before + (phase in COMMITTED)
    rig.vm.write("vda", 12 * MIB, 65536, 0x77)
    if phase in GONE_ON_WITH:
        made = rig.pull()
        assert made["resumed"]
        rig.assert_restores(frozen, made["details"]["id"])
    made = rig.pull()
    assert not made["resumed"]
    rig.assert_restores(rig.contents())
    assert not [name for name in rig.place.objects() if name.endswith("/run.json")] and rig.journals() == []


@pytest.fixture
def locking_rig(private_libvirt, tmp_path, locking_store):
    """A rig with another VM, whose points are immutable for 30 days."""
    with Machine(private_libvirt, tmp_path / "images", {"vda": 16 * MIB}) as vm:
        vm.write_bytes("vda", 0, random.Random(1).randbytes(6 * MIB))
        rig = ObjectRig(vm, tmp_path, locking_store)
        assert rig.run("init", rig.store, "--immutable-for", "30d").returncode == 0
        yield rig


def test_killed_and_resumed_with_immutable_points(locking_rig):
    """What the dead run made is locked: what is kept of it gets the time of the point, although the policy has a longer
    one by now; what is made again gets a name whose old version nobody can remove."""
    rig, frozen = locking_rig, locking_rig.contents()
    rig.start("--chunk-size", "1M", phase="sealed:3")
    rig.process.kill()
    rig.process.communicate()
    kept, *again = chunks = sorted(name for name in rig.place.objects() if name.endswith(".zst"))
    assert again and all(39 < days_locked(rig.place, name) < 41 for name in chunks)
    rig.place.client.put_object(Bucket=rig.place.bucket, Key=rig.place.key(again[0]), Body=b"forged")
    rig.vm.write("vda", 0, MIB, 0x77)
    assert rig.run("policy", rig.store, "--immutable-for", "60d").returncode == 0
    made = rig.pull("--chunk-size", "1M")
    assert made["resumed"]["kept_bytes"]
    rig.assert_restores(frozen, made["details"]["id"])
    names = [name for name in rig.place.objects() if name.count("/") == 2]
    assert all(days_locked(rig.place, name) > 69 for name in names) and {*chunks} <= {*names}
    assert [name for name in chunks if len(versions(rig.place, name)) > 1] == again
    rig.assert_clean()


def versions(place, name):
    listed = place.client.list_object_versions(Bucket=place.bucket, Prefix=place.key(name))
    return listed.get("Versions", [])


def days_locked(place, name):
    """Return for how long the current version is locked; the server removes none of its versions before that."""
    lock = place.client.get_object_retention(Bucket=place.bucket, Key=place.key(name))["Retention"]
    return (lock["RetainUntilDate"].timestamp() - time.time()) / 86400


def test_a_server_that_hangs_for_a_while(rig):
    change(rig)
    frozen = rig.contents()
    rig.start(phase="copying")
    with rig.place.server.paused():
        rig.release()
        time.sleep(3)
    code, made, error = rig.end()
    assert code == 0, error
    rig.assert_restores(frozen, made["details"]["id"])


@pytest.fixture
def proxy(rig, monkeypatch):
    proxy = FaultyProxy(rig.place.server.port)
    for name, value in rig.place.environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.away()


def test_a_server_that_is_gone_for_a_while(rig, proxy):
    change(rig)
    frozen = rig.contents()
    rig.start(phase="copying")
    proxy.away()
    rig.release()
    timer = threading.Timer(2, proxy.back)
    timer.start()
    code, made, error = rig.end()
    timer.join()
    assert code == 0, error
    rig.assert_restores(frozen, made["details"]["id"])


def test_a_server_that_is_gone_for_good(rig, proxy, monkeypatch):
    """The job ends, nothing is committed, and the base is unchanged; the next pull removes what was uploaded."""
    change(rig)
    before = rig.points()
    rig.start("--stall-timeout", "2", phase="copying")
    proxy.away()
    code, _, error = rig.end()
    assert code == 9 and "2 s of retries did not help" in error and "Traceback" not in error
    rig.assert_domain_clean([before[-1]["checkpoint"]])
    assert rig.points() == before
    for name, value in rig.place.environment().items():
        monkeypatch.setenv(name, value)
    made = rig.pull()
    assert [disk["mode"] for disk in made["details"]["disks"]] == ["incremental"]
    rig.assert_restores(rig.contents())
    assert not [name for name in rig.place.objects() if name.endswith("/run.json")]


@pytest.mark.parametrize(
    "variables, place, code, message",
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, 7, "the secret key does not belong to the access key"),
        (
            dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), object_stores.NOBODY)),
            None,
            7,
            "allow s3:GetObject",
        ),
        ({}, "s3://no-such-bucket/store", 10, "s3://no-such-bucket: there is no such bucket"),
        ({}, "s3://", 2, "name it as s3://BUCKET"),
    ],
)
def test_refused_commands(rig, variables, place, code, message):
    done = nbdpull("list", place or rig.store, env={**environment(), **variables})
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not {*object_stores.ROOT, *object_stores.NOBODY} & {*done.stderr.split()}


def test_no_key_is_written_down(rig):
    """Neither in a journal nor in the store."""
    change(rig)
    rig.start(phase="copying")
    journals = [path.read_text() for path in rig.journals()]
    [run] = [rig.place.read(name) for name in rig.place.objects() if name.endswith("/run.json")]
    with open(f"/proc/{rig.process.pid}/cmdline") as file:
        line = file.read()
    assert rig.end()[0] == 0
    assert journals and not any(key in text for text in [*journals, run.decode(), line] for key in object_stores.ROOT)
    assert not os.path.exists("s3:")


def test_the_commands_of_the_manual(rig):
    """Each in turn, with the places of this test."""
    text = (command.PROJECT / "docs/nbdpull.1.md").read_text(encoding="utf-8")
    [block] = re.findall(r"## OBJECT STORES\n.*?```sh\n(.*?)```", text, re.DOTALL)
    change(rig)
    rig.run("copy", rig.store, rig.folder / "dir")
    names = {"s3://backups/vms": rig.store, "dir/": f"{rig.folder}/dir", "out/": f"{rig.folder}/manual"}
    names["s3://backups/vms2"] = f"{rig.store}-2"
    for line in block.splitlines():
        _, *words = shlex.split(line)
        if words[0] == "vm1":
            words = [rig.vm.name, *words[1:], "-c", rig.vm.bed.uri, "--scratch-dir", rig.scratch]
        done = rig.run(*[names.get(word, word) for word in words])
        assert done.returncode == 0, (line, done.stderr)
    assert os.path.exists(f"{rig.folder}/manual/vda.qcow2")


@pytest.mark.usefixtures("nbdkit")
def test_a_point_is_served(rig):
    """Its bytes are read by ranges."""
    change(rig)
    rig.pull()
    process = rig.start(words=["serve", rig.store, "--json"])
    try:
        serving = rig.wait_event("serving")
        [disk] = serving["exports"]
        image = rig.folder / "served"
        subprocess.run(["nbdcopy", disk["uri"], image], check=True)
        assert image.read_bytes() == rig.contents()["vda"]
    finally:
        process.terminate()
        process.communicate()
