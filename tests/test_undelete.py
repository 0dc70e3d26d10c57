"""undelete and --as-of: points that somebody with the keys of a bucket deleted or overwrote. Of a real SeaweedFS."""

import datetime
import random
import time

import botocore.exceptions
import object_store as object_stores
import pytest
import stores
from command import answered, answered_json, said
from identities import path, recipient

from nbdpull.core import errors
from nbdpull.crypto import identity_files
from nbdpull.format import layout
from nbdpull.repository import half_points, immutable, keyring, marker

pytestmark = pytest.mark.e2e
KIB = stores.KIB


@pytest.fixture(scope="module")
def locking(seaweedfs):
    """The name of a bucket that locks objects."""
    with object_stores.new_bucket(seaweedfs, ObjectLockEnabledForBucket=True) as name:
        yield name


@pytest.fixture
def place(object_store, locking):
    return object_stores.ObjectStore(object_store.server, locking, object_store.prefix)


def instant():
    """A time, as a user writes it: the server counts whole seconds."""
    time.sleep(1.1)
    found = datetime.datetime.now(datetime.timezone.utc)
    time.sleep(1.1)
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")


def filled(url, points=3, keys=None):
    vm = stores.Vm(url, keys=keys)
    vm.add_disk("vda", 300 * KIB)
    for number in range(points):
        immutable.begin(vm.store)
        vm.write("vda", 70 * KIB * number, b"%d" % number * 1000)
        vm.pull()
    return vm


def attack(place, chance):
    """Delete or overwrite everything, and try to remove what is left of it."""
    client, names = place.client, [*place.objects()]
    for name in names:
        key = place.key(name)
        if chance.random() < 0.5:
            client.put_object(Bucket=place.bucket, Key=key, Body=b"forged")
        if chance.random() < 0.7:
            client.delete_object(Bucket=place.bucket, Key=key)
    told = client.list_object_versions(Bucket=place.bucket, Prefix=place.key(""))["Versions"]
    for each in told:
        try:
            client.delete_object(Bucket=place.bucket, Key=each["Key"], VersionId=each["VersionId"])
        except botocore.exceptions.ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied"


def assert_restores(vm, point, url, folder, *words):
    said("restore", url, "--point", point, "-o", folder, "--format", "raw", *words)
    assert (folder / "vda.raw").read_bytes() == vm.images[point]["vda"]


def test_a_thief_of_all_keys_takes_nothing(place, tmp_path, capsys):
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url)
    ids = [point.id for point in vm.points]
    before, known = instant(), answered(capsys, "list", place.url)[1]
    attack(place, random.Random(1))
    assert answered(capsys, "list", place.url)[1] != known

    code, listed, _ = answered_json(capsys, "list", place.url, "--as-of", before)
    assert (code, [point["id"] for point in listed]) == (0, ids)
    code, told, problem = answered(capsys, "verify", place.url, "--as-of", before)
    assert (code, problem) == (0, "") and "3 points" in told
    for number, point in enumerate(ids):
        assert_restores(vm, point, place.url, tmp_path / f"as-of-{number}", "--as-of", before)

    code, told, _ = answered(capsys, "undelete", place.url, "all", "--as-of", before)
    assert code == 0 and told.count(" is back: ") >= 1 and told.count("\n") == 3
    assert answered(capsys, "verify", place.url)[::2] == (0, "")
    for number, point in enumerate(ids):
        assert_restores(vm, point, place.url, tmp_path / f"back-{number}")
    for name in place.objects():
        if any(point in name for point in ids):  # what the next pull counts on
            place.client.get_object_retention(Bucket=place.bucket, Key=place.key(name))
    code, told, _ = answered(capsys, "undelete", place.url, "all", "--as-of", before)
    assert code == 0 and told.count("is there as it was\n") == 3


def test_a_point_as_it_was_made(place, tmp_path, capsys):
    """Without a word of when: what was written over its manifest since is no point, or a later one."""
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url)
    first, second, _ = (point.id for point in vm.points)
    instant()
    for name in place.objects():
        if second in name:
            place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=b"forged")
            place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    code, told, _ = answered_json(capsys, "undelete", place.url, second[:20], "--domain", "vm1")
    assert code == 0 and [each["point"] for each in told["points"]] == [second] and told["points"][0]["files"] > 3
    assert_restores(vm, second, place.url, tmp_path / "out")
    code, _, problem = answered(capsys, "undelete", place.url, "20010101T000000Z-00000000")
    assert code == 10 and "has no version of a point 20010101T000000Z-00000000" in problem
    assert answered(capsys, "undelete", place.url, first[:4])[0] == 10


def test_what_remove_took_comes_back(place, tmp_path, capsys):
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url, points=2)
    first = vm.points[0].id
    said("remove", place.url, first)
    assert f"vm1/{first}/{half_points.REMOVED}" in place.objects()
    said("undelete", place.url, first)
    assert_restores(vm, first, place.url, tmp_path / "out")
    assert f"vm1/{first}/{half_points.REMOVED}" not in place.objects()
    assert answered(capsys, "verify", place.url)[0] == 0


def test_who_was_shut_out_stays_so(place, capsys, monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    said("init", place.url, "--recipient", recipient("age1"), "--recipient", recipient("ed25519"))
    filled(place.url, 1, keyring.keys_of(marker.open_store(place.url), identity_files.given([path("age1")])))
    before = instant()
    said("key", "remove", place.url, recipient("age1"), "--identity", path("ed25519"))
    place.client.delete_object(Bucket=place.bucket, Key=place.key(layout.MARKER))
    said("undelete", place.url, "all", "--as-of", before)
    assert answered(capsys, "key", "test", place.url, "--identity", path("age1"))[0] == 16
    for name in [name for name in place.objects() if name.startswith(layout.KEYS)]:
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    said("undelete", place.url, "all", "--as-of", before)
    assert answered(capsys, "key", "test", place.url, "--identity", path("age1"))[0] == 0, "else nobody could"


def test_what_serve_shows_as_of_a_time(place, tmp_path, monkeypatch):
    """nbdkit opens the store itself."""
    from nbdpull.operations import serve
    from nbdpull.serving import nbd_server

    said("init", place.url)
    vm = filled(place.url, 1)
    before = instant()
    for name in place.objects():
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    seen = []

    def wait(server, tell):
        seen.append((server.point, [export.size for export in server.exports]))
        raise errors.Interrupted(2)

    monkeypatch.setattr(nbd_server.Server, "wait", wait)
    serve.serve(serve.Options(place.url, as_of=before))
    assert seen == [(vm.points[0].id, [300 * KIB])]


def test_where_nothing_tells_of_the_past(tmp_path, object_store, capsys):
    vm = stores.chain(tmp_path / "store", points=1, size=300 * KIB)
    for words in (["undelete", vm.root, "all"], ["list", vm.root, "--as-of", "yesterday"]):
        code, _, problem = answered(capsys, *words)
        assert code == 2 and "is a directory, and only a bucket that keeps old versions" in problem
    for words, told in {
        ("undelete", object_store.url, "all"): "all: say as of when, with --as-of",
        ("list", object_store.url, "--as-of", "then"): "--as-of then: not a time; write 2026-11-22",
        ("list", object_store.url, "--as-of", "2026-02-30"): "is not a time that exists",
        ("verify", object_store.url, "--as-of", "today", "--heal-from", vm.root): "--as-of only reads",
    }.items():
        code, _, problem = answered(capsys, *words)
        assert code == 2 and told in problem
    assert answered(capsys, "list", object_store.url, "--as-of", "yesterday")[0] == 10
