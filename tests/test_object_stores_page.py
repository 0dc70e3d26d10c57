"""docs/object-stores.md: the rights of its roles suffice for them, on both servers, and allow no more."""

import datetime
import json
import re
import shlex
import time
from pathlib import Path

import object_store as object_stores
import pytest
import stores
from bed.machine import MIB
from command import nbdpull, said
from documents import blocks
from faulty_proxy import FaultyProxy

from nbdpull.core import errors
from nbdpull.repository import immutable
from nbdpull.storage.s3_client import Bucket

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parent.parent / "docs/object-stores.md").read_text()
ACCOUNT = "000000000000"  # SeaweedFS's
USERS = {"SeaweedFS": f"arn:aws:iam::{ACCOUNT}:user/nobody", "Rgw": "arn:aws:iam:::user/nobody"}


def document(name, place):
    """Return a JSON block of the page, for the place."""
    [text] = blocks(PAGE, f"json {name}")
    user = USERS[type(place.server).__name__]
    return (
        text.replace("arn:aws:iam::ACCOUNT:user/NAME", user)
        .replace("BUCKET", place.bucket)
        .replace("PREFIX", place.prefix)
    )


@pytest.fixture(params=["object_store", "rgw_store"])
def place(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def role(place):
    """Factory: the environment of a user with the rights that the page grants to a role."""

    def environment(name):
        place.client.put_bucket_policy(Bucket=place.bucket, Policy=document(name, place))
        return {**stores.package_environment(), **place.environment(keys=object_stores.NOBODY)}

    yield environment
    place.client.delete_bucket_policy(Bucket=place.bucket)


def run(environment, *words):
    done = nbdpull(*words, env=environment)
    assert "Traceback" not in done.stderr
    return done


def may(environment, monkeypatch, place, call, key, *what):
    """Return whether these keys may make the request."""
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            getattr(Bucket(place.bucket, 1.0), call)(place.key(key), *what)
        except errors.AccessDenied:
            return False
        return True


def test_each_role_can_do_what_it_does_and_no_more(machine, place, role, tmp_path, monkeypatch):
    root = {**stores.package_environment(), **place.environment()}
    assert run(root, "init", place.url).returncode == 0
    vm = machine({"vda": 4 * MIB})
    frozen = []
    pulling = role("pull")
    for value in (0x11, 0x22):
        vm.write("vda", 0, MIB, value)
        done = run(pulling, "pull", vm.name, "-o", place.url)
        assert (done.returncode, done.stderr) == (0, "")
        frozen.append(bytes([value]) * MIB + bytes(3 * MIB))
    manifest = next(name for name in place.objects() if name.endswith("/manifest.json"))
    assert not may(pulling, monkeypatch, place, "delete", manifest)

    restoring = role("restore")
    points = [point["id"] for point in json.loads(run(restoring, "list", place.url, "--json").stdout)]
    assert len(points) == len(frozen)
    for point, data in zip(points, frozen):
        done = run(restoring, "restore", place.url, "--point", point, "-o", tmp_path / point, "--format", "raw")
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / point / "vda.raw").read_bytes() == data
    for words in (["verify", place.url, "--no-record"], ["copy", place.url, tmp_path / "copy"]):
        assert run(restoring, *words).returncode == 0, words
    denied = run(restoring, "pin", place.url, "latest")
    assert denied.returncode == 7 and "allow s3:PutObject" in denied.stderr

    pruning = role("prune")
    for words in (["pin", place.url, "latest"], ["policy", place.url, "--keep-last", "1"], ["verify", place.url],
                  ["prune", place.url, "--force"]):  # fmt: skip
        assert run(pruning, *words).returncode == 0, words
    assert len([name for name in place.objects() if name.endswith("/manifest.json")]) == 1


def test_a_puller_of_immutable_points_needs_the_right_to_lock(machine, object_store):
    """Without that right nothing is made, and the message names the right."""
    nobody = {**stores.package_environment(), **object_store.environment(keys=object_stores.NOBODY)}
    with object_stores.new_bucket(object_store.server, ObjectLockEnabledForBucket=True) as name:
        place = object_stores.ObjectStore(object_store.server, name, "store")
        assert nbdpull("init", place.url, "--immutable-for", "30d").returncode == 0
        vm = machine({"vda": 4 * MIB})
        vm.write("vda", 0, MIB, 0x11)
        policy = json.loads(document("pull", place))
        place.client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
        denied = run(nobody, "pull", vm.name, "-o", place.url)
        assert denied.returncode == 7 and "allow s3:PutObject and s3:PutObjectRetention on it" in denied.stderr
        policy["Statement"].append(json.loads(document("lock", place)))
        place.client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
        for _ in range(2):
            done = run(nobody, "pull", vm.name, "-o", place.url)
            assert (done.returncode, done.stderr) == (0, "")
        place.client.put_bucket_policy(Bucket=name, Policy=document("prune", place))
        done = run(nobody, "prune", place.url, "--keep-last", "1", "--dry-run")
        assert done.returncode == 0 and "allow s3:GetObjectRetention on it" in done.stderr


def test_points_hidden_by_a_thief(object_store, tmp_path):
    """The commands of the page; those that read have only the rights that it names."""
    nobody = {**stores.package_environment(), **object_store.environment(keys=object_stores.NOBODY)}
    with object_stores.new_bucket(object_store.server, ObjectLockEnabledForBucket=True) as name:
        place = object_stores.ObjectStore(object_store.server, name, "store")
        said("init", place.url, "--immutable-for", "30d")
        vm = stores.Vm(place.url)
        vm.add_disk("vda", MIB)
        vm.write("vda", 0, b"data")
        immutable.begin(vm.store)
        [point] = [vm.pull()]
        time.sleep(1.1)
        when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        time.sleep(1.1)
        for each in place.objects():
            place.client.delete_object(Bucket=name, Key=place.key(each))
        place.client.put_bucket_policy(Bucket=name, Policy=document("as-of", place))
        [text] = blocks(PAGE, "sh undelete")
        for line in text.replace("s3://BUCKET/PREFIX", place.url).replace("yesterday 18:00", when).splitlines():
            words = shlex.split(line)
            environment = {} if words[1] == "undelete" else {"env": nobody}
            done = nbdpull(*words[1:], cwd=tmp_path, **environment)
            assert (words[0], done.returncode, done.stderr) == ("nbdpull", 0, ""), line
        assert (tmp_path / "out/vda.qcow2").exists()
        assert point.id in said("list", place.url, "--wide")


def test_a_pull_only_creates(machine, object_store, monkeypatch):
    """AWS can enforce that."""
    assert json.loads(document("conditional", object_store))["Condition"] == {"Null": {"s3:if-none-match": "true"}}
    vm = machine({"vda": 4 * MIB})
    with FaultyProxy(object_store.server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        for value in (0x11, 0x22):
            vm.write("vda", 0, MIB, value)
            assert nbdpull("pull", vm.name, "-o", object_store.url).returncode == 0
    assert len([request for request in proxy.requests if request.method == "PUT"]) > 10
    assert proxy.unconditional == []


def test_the_rule_for_old_versions(object_store, capsys):
    with object_stores.new_bucket(object_store.server) as name:
        place = object_stores.ObjectStore(object_store.server, name, "store")
        place.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        rules = json.loads(document("lifecycle", place))
        place.client.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration=rules)
        done = nbdpull("init", place.url)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_commands(machine, object_store, tmp_path, monkeypatch):
    """Those of the page, in order, with another name of the VM."""
    vm = machine({"vda": 4 * MIB})
    vm.write("vda", 0, MIB, 0x11)
    [text] = blocks(PAGE, "sh")
    lines = [line.replace("s3://BUCKET/PREFIX", object_store.url).replace("vm1", vm.name)
             .replace("/mnt/usb", str(tmp_path)) for line in text.splitlines()]  # fmt: skip
    names = set(re.findall(r"(AWS_\w+)=", lines[0]))
    assert lines[0].startswith("export ") and names < set(object_store.environment())
    for line in lines[1:]:
        words = shlex.split(line)
        done = nbdpull(*words[1:], cwd=tmp_path)
        assert (words[0], done.returncode, done.stderr) == ("nbdpull", 0, ""), line
