"""Points in a bucket with object lock: what is locked, for how long, by how many requests, and what is reported.

Real locks of a real server: SeaweedFS. Tests never wait for a time: a lock that ends soon stands for one that was set
long ago.
"""

import datetime
import random

import botocore.exceptions
import object_store as object_stores
import pytest
import stores
from command import answered, answered_json, said
from hours import Hours
from identities import path, recipient
from worn import HALF, mostly_hidden, pruned

from nbdpull.core import errors
from nbdpull.core.choices import LockMode
from nbdpull.crypto import identity_files
from nbdpull.definitions.domain_xml import Checkpoint
from nbdpull.format import layout
from nbdpull.operations import copy, unlocking, verify
from nbdpull.pulling import copies, held_series
from nbdpull.pulling.base import Base, Choice
from nbdpull.repository import (
    half_points,
    immutable,
    keyring,
    live_frames,
    marker,
    pins,
    policies,
    references,
    removal,
    repack,
)
from nbdpull.repository.incoming import Incoming
from nbdpull.repository.policies import Immutability
from nbdpull.repository.retention import Policy
from nbdpull.storage import s3_client
from nbdpull.storage.base import Protection
from nbdpull.storage.s3 import S3Store

pytestmark = pytest.mark.e2e
KIB, DAY, UTC = stores.KIB, 86400.0, datetime.timezone.utc


@pytest.fixture
def place(locking_store):
    return locking_store


def after(seconds):
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(seconds=seconds)


def until(seconds, mode=LockMode.GOVERNANCE):
    return Protection(after(seconds), mode, after(seconds))


def lock_of(place, name):
    """Return (mode, seconds left) according to the server; None if there is no lock."""
    try:
        lock = place.client.get_object_retention(Bucket=place.bucket, Key=place.key(name))["Retention"]
    except botocore.exceptions.ClientError:
        return None
    return lock["Mode"], (lock["RetainUntilDate"] - after(0)).total_seconds()


def versions(place, name=""):
    """Return [(name, id, whether it is a delete marker)] of all objects with that prefix."""
    listed = place.client.list_object_versions(Bucket=place.bucket, Prefix=place.key(name))
    found = [(each, False) for each in listed.get("Versions", [])] + [
        (each, True) for each in listed.get("DeleteMarkers", [])
    ]
    return [(each["Key"][len(place.prefix) + 1 :], each["VersionId"], gone) for each, gone in found]


def pull(vm, data=None):
    """Pull the domain, with other bytes in a frame of its disk, or at its beginning."""
    immutable.begin(vm.store)
    vm.write("vda", 0 if data else 64 * KIB * len(vm.points), data or b"other")
    return vm.pull()


@pytest.fixture
def vm(place):
    """A Vm whose points are immutable for 30 days."""
    said("init", place.url, "--immutable-for", "30d")
    made = stores.Vm(place.url)
    made.add_disk("vda", 300 * KIB)
    made.write("vda", 0, bytes(range(1, 251)) * 1000)
    return made


# -- files ------------------------------------------------------------------------------------------------------------


def test_what_is_protected_is_not_removed(place):
    store = S3Store(place.url)
    store.protection = until(60)
    with store.create("vm/data") as file:
        file.write(b"locked")
    store.publish("vm/small", b"also", store.protection)
    store.publish("vm/free", b"not")
    for name in ("vm/data", "vm/small"):
        assert 0 < (store.protected_until(name) - after(0)).total_seconds() <= 60
        [(_, version, _)] = versions(place, name)
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            place.client.delete_object(Bucket=place.bucket, Key=place.key(name), VersionId=version)
    assert store.protected_until("vm/free") is store.protected_until("none") is lock_of(place, "vm/free") is None
    store.delete("vm/data")  # nothing fails: it only shows no more
    assert store.find("vm/data") is None and len(versions(place, "vm/data")) == 2


def test_a_lock_is_made_longer_never_shorter(place, requests_made):
    store = S3Store(place.url)
    store.publish("one", b"1")
    store.publish("two", b"2", until(3000))
    store.protect(["one", "two", "one"], until(1000, LockMode.COMPLIANCE))
    assert requests_made["put_object_retention"] == 1, "it knows of the other one"
    assert lock_of(place, "one")[0] == "COMPLIANCE" and 2900 < lock_of(place, "two")[1] <= 3000
    other = S3Store(place.url)
    other.protect(["one"], until(500, LockMode.COMPLIANCE))
    assert 900 < lock_of(place, "one")[1] <= 1000
    with pytest.raises(errors.Damaged, match="none: the file is missing"):
        other.protect(["none"], until(60))


def test_a_missing_right_is_named(place, monkeypatch):
    store = S3Store(place.url)
    store.publish("file", b"")
    key, secret = object_stores.NOBODY
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    nobody = S3Store(place.url, 1.0)
    for right, attempt in {
        "s3:PutObject and s3:PutObjectRetention": lambda: nobody.publish("new", b"", until(60)),
        "s3:PutObjectRetention": lambda: nobody.protect(["file"], until(60)),
        "s3:GetObjectRetention": lambda: nobody.protected_until("file"),
    }.items():
        with pytest.raises(errors.AccessDenied, match=f"allow {right} on it"):
            attempt()


# -- stores -----------------------------------------------------------------------------------------------------------


def test_a_store_whose_points_are_immutable(place, capsys):
    code, result, _ = answered_json(capsys, "init", place.url, "--immutable-for", "30d", "--lock-mode", "governance")
    assert (code, result["immutable"]) == (0, {"seconds": 30 * DAY, "mode": "governance"})
    mode, left = lock_of(place, layout.MARKER)
    assert mode == "GOVERNANCE" and 39 * DAY < left < 41 * DAY
    assert lock_of(place, layout.POLICY) is None
    assert {*place.objects()} == {layout.MARKER, layout.POLICY}, "the trial left nothing that shows"


@pytest.mark.parametrize("verb", ["init", "policy"])
def test_where_nothing_can_be_locked(object_store, tmp_path, capsys, verb):
    for where, message in {
        object_store.url: "the bucket locks no objects, so nothing in it can be immutable: make another one, with "
        "object lock from the beginning",
        tmp_path / "store": "the files of a directory cannot be locked: name a bucket with object lock, or have a "
        "second host copy the store",
    }.items():
        if verb == "policy":
            said("init", where)
        code, _, complaint = answered(capsys, verb, where, "--immutable-for", "30d")
        assert code == 10 and message in complaint
        if verb == "init":
            assert answered(capsys, "list", where)[0] == 10, "and no store was made"


def test_a_server_that_ignores_locks_is_refused(place, monkeypatch, capsys):
    """It accepts locks, and removes the objects nevertheless."""
    real = s3_client.Bucket.tried
    monkeypatch.setattr(s3_client.Bucket, "tried", lambda bucket, call, **what: (
        ("", {}) if call == "delete_object" and "BypassGovernanceRetention" not in what else real(bucket, call, **what)
    ))  # fmt: skip
    code, _, complaint = answered(capsys, "init", place.url, "--immutable-for", "30d")
    assert code == 10 and "the server accepts locks, but ignores them" in complaint


def test_it_is_changed_by_policy(place, capsys):
    said("init", place.url)
    assert answered(capsys, "policy", place.url, "--keep-last", "3")[0] == 0
    code, output, _ = answered(capsys, "policy", place.url, "--immutable-for", "90d")
    assert (code, output) == (0, "points are immutable for 90d (compliance: nobody can shorten it)\n"
                               "all domains:\n  --keep-last 3\n")  # fmt: skip
    assert lock_of(place, layout.MARKER)[0] == "COMPLIANCE"
    said("policy", place.url, "--remove")
    assert policies.immutability(S3Store(place.url)) == Immutability(90 * DAY)
    code, output, _ = answered_json(capsys, "policy", place.url, "--immutable-for", "0")
    assert (output["immutable"], output["changed"], policies.immutability(S3Store(place.url))) == (None, True, None)
    said("policy", place.url, "--immutable-for", "30d")
    code, output, _ = answered(capsys, "status", place.url)
    assert code == 15 and output.endswith("points are immutable for 30d (compliance: nobody can shorten it)\n")
    output = answered_json(capsys, "status", place.url)[1]
    assert output["immutable"] == {"seconds": 30 * DAY, "mode": "compliance"}
    code, _, complaint = answered(capsys, "policy", place.url, "--domain", "vm1", "--immutable-for", "1d")
    assert code == 2 and "--immutable-for is for all of a store" in complaint
    assert answered(capsys, "policy", place.url, "--immutable-for", "40000d")[0] == 2


def test_a_run_that_takes_longer_than_its_locks(vm, place):
    vm.store.protection = until(-5)
    for refused in (lambda: vm.store.create("file").seal(), lambda: vm.store.protect([layout.POLICY], until(-5))):
        with pytest.raises(errors.OutputError, match=r"which is past: points are immutable for a shorter time than"):
            refused()


def test_an_unreadable_policy_ends_a_pull(vm):
    """Otherwise unprotected points would be made."""
    vm.store.replace(layout.POLICY, b"{}")
    with pytest.raises(errors.Damaged, match="policy.json.*to write them anew with nbdpull policy"):
        immutable.begin(vm.store)


def test_a_bucket_that_locks_by_the_other_mode(object_store, capsys):
    """No half store is left: its files are locked as requested from their creation on."""
    with object_stores.new_bucket(object_store.server, ObjectLockEnabledForBucket=True) as name:
        place = object_stores.ObjectStore(object_store.server, name, "store")
        rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 35}}
        place.client.put_object_lock_configuration(
            Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule})  # fmt: skip
        said("init", place.url, "--immutable-for", "30d")
        assert lock_of(place, layout.MARKER)[0] == "COMPLIANCE"
        vm = stores.Vm(place.url)
        vm.add_disk("vda", 300 * KIB)
        for _ in range(2):
            again(vm)
            assert_all_is_locked(vm, place, 30)


def test_the_mode_is_kept_unless_another_one_is_given(place, capsys):
    said("init", place.url, "--immutable-for", "30d", "--lock-mode", "governance")
    said("policy", place.url, "--immutable-for", "60d")
    assert policies.immutability(S3Store(place.url)) == Immutability(60 * DAY, LockMode.GOVERNANCE)
    for words in (["policy", place.url, "--keep-last", "3"], ["policy", place.url], ["init", f"{place.url}/other"]):
        code, _, problem = answered(capsys, *words, "--lock-mode", "compliance")
        assert code == 2 and "--lock-mode has no effect without --immutable-for" in problem
    assert policies.load(S3Store(place.url)) == []


def test_what_cannot_be_locked_changes_no_policy(place, monkeypatch, capsys):
    said("init", place.url)

    def denied(bucket, key, lock):
        raise errors.AccessDenied("allow s3:PutObjectRetention on it")

    monkeypatch.setattr(s3_client.Bucket, "lock", denied)
    assert answered(capsys, "policy", place.url, "--immutable-for", "30d")[0] == 7
    assert policies.immutability(S3Store(place.url)) is None


def test_a_store_that_was_deleted_is_not_made_anew(vm, place, tmp_path, capsys):
    """By a pull or a copy: new points would be made without locks, and nobody would learn of the old ones."""
    pull(vm)
    stores.chain(tmp_path / "store", points=1, size=300 * KIB)
    for name in place.objects():
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    with pytest.raises(errors.StoreError, match="was a store, and its nbdpull.json was deleted: nbdpull undelete"):
        unlocking.for_pull(place.url, None, (), pytest.fail)
    assert answered(capsys, "copy", tmp_path / "store", place.url)[0] == 10
    said("init", place.url)
    assert unlocking.for_pull(place.url, None, (), pytest.fail).root == place.url


# -- points -----------------------------------------------------------------------------------------------------------


def test_all_of_a_point_is_locked_and_nothing_else(vm, place):
    point = pull(vm)
    half_points.set_apart(vm.series, layout.new_point_id())
    locked = {name for name in place.objects() if lock_of(place, name)}
    of_point = {name for name in place.objects() if name.startswith(f"vm1/{point.id}/")}
    assert locked == {layout.MARKER, *of_point} and f"vm1/{point.id}/{layout.MANIFEST}" in of_point
    assert all(39 * DAY < lock_of(place, name)[1] < 41 * DAY for name in locked)


def test_what_a_point_refers_to_is_locked_as_long_as_it(vm, place, requests_made):
    """With one request a file, once the reserve is used up; otherwise with none."""
    first = pull(vm)
    requests_made.clear()
    second = pull(vm)
    assert requests_made["put_object_retention"] == 0 and requests_made["get_object_retention"] == 1
    ends = [vm.store.protected_until(f"vm1/{point.id}/{layout.MANIFEST}") for point in (first, second)]
    assert ends[0] == ends[1] and second.manifest.locked.until == first.manifest.locked.until
    policies.put_immutability(vm.store, Immutability(60 * DAY))  # as if the reserve were used up
    requests_made.clear()
    third = pull(vm)
    shared = requests_made["put_object_retention"]
    names = {name for name in place.objects() if name.startswith("vm1/") and lock_of(place, name)[1] > 69 * DAY}
    chunks = {f"vm1/{each.id}/vda.0000.zst" for each in (first, second, third)}
    assert chunks | {f"vm1/{third.id}/{layout.MANIFEST}"} <= names
    assert f"vm1/{first.id}/{layout.MANIFEST}" not in names and shared == 3  # 2 chunk files, the marker
    requests_made.clear()
    pull(vm)
    assert requests_made["put_object_retention"] == 0


def again(vm, **how):
    """Make another pull, by another process."""
    vm.store._protected.clear()
    immutable.begin(vm.store)
    vm.write("vda", 64 * KIB * (len(vm.points) % 4), b"%d" % len(vm.points))
    return vm.pull(**how)


def in_chunks(vm):
    """Make a point of several chunk files."""
    vm.write("vda", 0, random.Random(1).randbytes(250 * KIB))
    return again(vm, chunk_size=60 * KIB, batch_size=64 * KIB)


def assert_all_is_locked(vm, place, days, mode="COMPLIANCE"):
    """Require that the last point and everything that it refers to are locked for at least that long, and as long as
    its manifest says."""
    point = vm.points[-1]
    paths = [f"vm1/{entry.path}" for entry in references.of_point(vm.series, point)]
    for name in [*paths, f"vm1/{point.id}/{layout.MANIFEST}", layout.MARKER]:
        held, left = lock_of(place, name)
        assert held == mode and left > days * DAY - 60, name
    until = datetime.datetime.fromisoformat(point.manifest.locked.until)
    assert min(lock_of(place, name)[1] for name in paths) >= (until - after(0)).total_seconds() - 5


def test_an_extended_lock_says_nothing_about_other_files(vm, place):
    """Neither those of the base's manifest, nor those of files that it refers to."""
    first = in_chunks(vm)
    policies.put_immutability(vm.store, Immutability(60 * DAY))
    for name in (layout.MANIFEST, "vda.0000.zst", "domain.xml"):
        key = place.key(f"vm1/{first.id}/{name}")
        locked = {"Mode": "COMPLIANCE", "RetainUntilDate": after(400 * DAY)}
        place.client.put_object_retention(Bucket=place.bucket, Key=key, Retention=locked)
    again(vm)
    assert_all_is_locked(vm, place, 60)


def test_a_default_lock_says_nothing_about_other_files(object_store):
    """It says nothing about the files of points that were made while nothing else locked them."""
    with object_stores.new_bucket(object_store.server, ObjectLockEnabledForBucket=True) as name:
        place = object_stores.ObjectStore(object_store.server, name, "store")
        said("init", place.url, "--immutable-for", "30d")
        vm = stores.Vm(place.url)
        vm.add_disk("vda", 300 * KIB)
        in_chunks(vm)
        policies.put_immutability(vm.store, None)
        again(vm)
        again(vm)
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 35}}
        place.client.put_object_lock_configuration(
            Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule})  # fmt: skip
        again(vm)
        policies.put_immutability(vm.store, Immutability(20 * DAY))
        again(vm)
        assert_all_is_locked(vm, place, 20)


def test_findings_without_a_lock_do_not_count(vm, place, tmp_path):
    """A store that was copied by other means has the manifests, but no locks."""
    in_chunks(vm)
    for name in [*place.objects()]:
        place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=place.read(name))
    assert lock_of(place, f"vm1/{vm.points[0].id}/{layout.MANIFEST}") is None
    again(vm)
    assert_all_is_locked(vm, place, 30)


def test_the_other_mode_does_not_count(vm, place, requests_made):
    policies.put_immutability(vm.store, Immutability(30 * DAY, LockMode.GOVERNANCE))
    in_chunks(vm)
    policies.put_immutability(vm.store, Immutability(20 * DAY, LockMode.COMPLIANCE))
    requests_made.clear()
    again(vm)
    assert requests_made["put_object_retention"] > 5, "the server decides which mode a file keeps"
    requests_made.clear()
    again(vm)
    assert requests_made["put_object_retention"] == 0


def test_key_files_are_locked_as_points_are(place, capsys):
    said("init", place.url, "--immutable-for", "30d", "--recipient", recipient("age1"))
    keys = keyring.keys_of(S3Store(place.url), identity_files.given([path("age1")]))
    vm = stores.Vm(place.url, keys=keys)
    vm.add_disk("vda", 300 * KIB)
    again(vm)
    first = "--identity", path("age1")
    said("key", "rotate", place.url, *first, "--recipient", recipient("ed25519"), "--force")
    names = [name for name in place.objects() if name.startswith(layout.KEYS)]
    assert names and all(lock_of(place, name)[1] > 39 * DAY for name in names)
    for name in names:  # as another version of nbdpull puts them
        place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=place.read(name))
    again(vm)
    assert all(lock_of(place, name)[1] > 39 * DAY for name in names)


def test_a_healed_file_is_locked_as_long_as_what_it_replaces(vm, place):
    first = in_chunks(vm)
    path = f"vm1/{first.id}/vda.0002.zst"
    was, data, store = lock_of(place, path), place.read(path), marker.open_store(place.url)
    for seconds in (None, 10 * DAY):
        policies.put_immutability(store, Immutability(seconds) if seconds else None)
        immutable.begin(store)
        with store.replacing(path) as file:
            file.write(data)
        mode, left = lock_of(place, path)
        assert mode == was[0] and abs(left - was[1]) < 60
        assert len(versions(place, path)) > 1


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_a_healed_file_of_unknown_lock_is_locked_for_the_time_in_its_points(vm, place, tmp_path, how):
    """It got only the time in the policy of that day."""
    first = in_chunks(vm)
    said("copy", place.url, tmp_path / "copy")
    name = f"vm1/{first.id}/vda.0001.zst"
    policies.put_immutability(vm.store, Immutability(DAY))
    if how == "deleted":
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    else:
        place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=b"forged")
    found = verify.verify(verify.Options(place.url, level="files", heal_from=str(tmp_path / "copy")))
    assert [f"vm1/{each.path}" for each in found.healed] == [name] and not found.is_bad
    mode, left = lock_of(place, name)
    assert mode == "COMPLIANCE" and 39 * DAY < left < 41 * DAY


@pytest.mark.parametrize("seconds", [None, DAY])
def test_a_mended_file_of_unknown_lock_is_locked_for_the_time_in_its_base(vm, place, seconds):
    """It was not locked at all if the policy was gone."""
    first = in_chunks(vm)
    name = f"vm1/{first.id}/vda.0002.zst"
    data = place.read(name)
    place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=stores.flipped(data, len(data) // 4))
    policies.put_immutability(vm.store, Immutability(seconds) if seconds else None)
    vm.bad = frozenset({name.partition("/")[2]})
    now = vm.series, again(vm)
    like = Base(Checkpoint("", 0, "", {}, ""), first, whole=frozenset({"vda"}), bad={"vda": vm.bad})
    choice, found = Choice(None, {"vda": ("full", "requested")}, like=like), [copies.Healed("vda", 0, [*vm.bad], [])]
    [healed], _ = copies.mended(now, choice, found, 1, lambda: None)
    assert healed.mended == [*vm.bad] and place.read(name) == data
    mode, left = lock_of(place, name)
    assert mode == "COMPLIANCE" and 39 * DAY < left < 41 * DAY


def test_a_rebuilt_file_is_locked_for_the_time_in_its_points(vm, place, capsys):
    """Even if no more files are to be locked."""
    point = pull(vm, b"1" * 100 * KIB)
    pull(vm)
    index = f"vm1/{point.id}/vda.index"
    place.client.delete_object(Bucket=place.bucket, Key=place.key(index))
    output = answered(capsys, "policy", place.url, "--immutable-for", "0")[1]
    assert output == "what is made from now on is not immutable; existing locks remain\nno policy\n"
    assert answered(capsys, "index", place.url, point.id, "vda", "--rebuild")[::2] == (0, "")
    assert abs(lock_of(place, index)[1] - 40 * DAY) < 60


def test_a_file_that_is_exchanged_is_locked_anew(place):
    store, protection = S3Store(place.url), until(100)
    store.publish("file", b"first", protection)
    store.replace("file", b"second", b"first")
    store.protect(["file"], protection)
    assert lock_of(place, "file")


def test_each_point_of_a_long_copy_has_its_time(place, tmp_path, monkeypatch):
    """Counted from when its own copy began."""
    vm = stores.chain(tmp_path / "store", points=2, size=300 * KIB)
    said("init", place.url, "--immutable-for", "30d")
    begun = {}

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(days=15 * len(begun))

    def take(incoming, point, *args):
        begun[point.id] = Later.now(UTC)
        return real(incoming, point, *args)

    monkeypatch.setattr(immutable, "datetime", Later)
    real = Incoming._take_once
    monkeypatch.setattr(Incoming, "_take_once", take)
    copy.copy(copy.Options(str(vm.root), place.url))
    left = [lock_of(place, f"vm1/{point.id}/{layout.MANIFEST}")[1] for point in vm.points]
    assert left[0] > 39 * DAY and left[1] > 54 * DAY


def test_a_removal_that_is_taken_back_leaves_the_manifest_locked(vm, place, monkeypatch):
    first, calls = pull(vm), []

    def pinned(series, point):
        calls.append(point)
        if len(calls) == 2:
            raise errors.UsageError("it is pinned")

    monkeypatch.setattr(pins, "require_none", pinned)
    with pytest.raises(errors.UsageError):
        removal.remove(vm.series, first)
    assert lock_of(place, f"vm1/{first.id}/{layout.MANIFEST}")[1] > 39 * DAY


def test_moved_files_are_locked_where_they_are(place, tmp_path, monkeypatch):
    """The files that the directories name no longer exist."""
    monkeypatch.setattr(live_frames, "FILE_COST", 300)
    made = mostly_hidden(tmp_path / "store")
    pruned(made, [point.id for point in made.points[:-1]])
    said("init", place.url, "--immutable-for", "30d")
    copy.copy(copy.Options(str(made.root), place.url))
    vm = stores.Vm(place.url)
    vm.disks, vm.points, vm.images = made.disks, [*made.points], made.images
    again(vm)
    tables = [name for name in place.objects() if name.endswith(layout.MOVED)]
    assert tables and all(lock_of(place, name) for name in tables)
    gone = [each for each in versions(place) if each[2] and each[0].endswith(".zst")]
    assert not [each for each in gone if lock_of(place, each[0])]


@pytest.fixture
def hours():
    with Hours(S3Store) as passing:
        yield passing


def test_what_a_lock_keeps_is_not_repacked(place, tmp_path, monkeypatch, hours):
    """It would exist twice. Moved data is locked as long as what it replaces."""
    monkeypatch.setattr(live_frames, "FILE_COST", 300)
    made = mostly_hidden(tmp_path / "store")
    for point in made.points[:-1]:
        removal.remove(made.series, point)
    removal.sweep(made.series, 0)
    copy.copy(copy.Options(str(made.root), place.url))
    hours.let_pass(27)
    vm = stores.Vm(place.url)
    vm.disks, vm.points, vm.images = made.disks, [*made.points], made.images
    half = repack.would_repack(vm.series, [], HALF)
    for name in (name for name in place.objects() if name.endswith(".zst")):
        vm.store.protect([name], until(2 * DAY))
    assert repack.would_repack(vm.series, [], HALF).moved == 0 < half.moved
    assert repack.repack(vm.series, HALF).moved == 0
    monkeypatch.setattr(repack, "_is_locked", lambda *_: False)
    said("policy", place.url, "--immutable-for", "30d")
    vm = stores.Vm(place.url)
    vm.disks, vm.points, vm.images = made.disks, [*made.points], made.images
    assert repack.repack(vm.series, HALF).moved
    new = [name for name in place.objects() if name.endswith(layout.MOVED)]
    new += [f"vm1/{name}/vda.0000.zst" for name in half_points.repacked(vm.series)]
    assert len(new) > 1 and all(lock_of(place, name)[1] > 41 * DAY for name in new)
    again(vm)
    assert all(lock_of(place, name)[1] > 39 * DAY for name in place.objects() if name.endswith(".zst"))


def test_locks_of_a_killed_run_say_nothing_about_other_files(vm, place):
    """What it locked says nothing about the rest: only a manifest does."""
    first = pull(vm)
    policies.put_immutability(vm.store, Immutability(60 * DAY))
    immutable.begin(vm.store)
    vm.store.protect([f"vm1/{first.id}/vda.0000.zst"], vm.store.protection)
    again(vm)
    assert_all_is_locked(vm, place, 60)


def test_a_pull_warns_that_its_point_is_no_longer_protected(vm, place):
    """Anyone with the keys of a pull can write the policy."""
    pull(vm)

    def warnings_of_a_pull():
        immutable.begin(vm.store)
        with held_series.for_new_point(stores.series.Series(marker.open_store(place.url), "vm1")) as held:
            return held.warnings

    vm.store.protects = marker.open_store(place.url).protects
    place.client.delete_object(Bucket=place.bucket, Key=place.key(layout.POLICY))
    [warning] = warnings_of_a_pull()
    assert "the last point is locked until" in warning and "if you did not change it, somebody else did" in warning
    pull(vm)
    assert warnings_of_a_pull() == [], "it is said once"


def test_a_bucket_that_got_locks_after_the_store_was_made(vm, place):
    """The marker states that there are none. It is never written again."""
    vm.store.protects = False
    point = pull(vm, b"1" * 100 * KIB)
    assert vm.store.protects
    path = f"vm1/{point.id}/vda.0000.zst"
    data = place.read(path)
    place.client.delete_object(Bucket=place.bucket, Key=place.key(path))
    other = marker.open_store(place.url)
    other.protects = False
    with other.replacing(path) as file:
        file.write(data)
    series = stores.series.Series(other, "vm1")
    assert immutable.keep_promises(series, path.partition("/")[2], [point]) == [] and lock_of(place, path)
    place.client.delete_object(Bucket=place.bucket, Key=place.key(layout.POLICY))
    immutable.begin(other)
    with held_series.for_new_point(series) as held:
        assert "the last point is locked until" in held.warnings[0]


@pytest.mark.parametrize(
    "before, now", [(LockMode.GOVERNANCE, LockMode.COMPLIANCE), (LockMode.COMPLIANCE, LockMode.GOVERNANCE)]
)
def test_what_is_locked_keeps_its_mode(vm, place, before, now):
    """No server lets everybody change the mode, not even to the stronger one; but the time is extended."""
    policies.put_immutability(vm.store, Immutability(30 * DAY, before))
    first = pull(vm)
    policies.put_immutability(vm.store, Immutability(60 * DAY, now))
    second = pull(vm)
    locks = [lock_of(place, f"vm1/{point.id}/vda.0000.zst") for point in (first, second)]
    assert [mode for mode, _ in locks] == [before.upper(), now.upper()]
    assert all(left > 69 * DAY for _, left in locks)


def test_a_copy_is_immutable_too(place, tmp_path, requests_made):
    vm = stores.chain(tmp_path / "store", points=3, size=300 * KIB)
    said("init", place.url, "--immutable-for", "30d")
    copy.copy(copy.Options(str(vm.root), place.url))
    for name in place.objects():
        ephemeral = name == layout.POLICY or name.endswith((half_points.REMOVED, ".json")) and "manifest" not in name
        assert bool(lock_of(place, name)) == (not ephemeral or name == layout.MARKER), name


# -- removing ---------------------------------------------------------------------------------------------------------


def test_prune_reports_what_remains_locked(vm, place, capsys):
    points = [pull(vm, bytes([number]) * (300 * KIB)) for number in (1, 2, 3)]
    policies.put(vm.store, None, Policy(keep_last=1))
    code, output, problem = answered(capsys, "prune", place.url, "--force", "--dry-run")
    assert (code, problem) == (0, "") and "would free 0 B" in output and " more are locked until " in output
    code, output, problem = answered(capsys, "prune", place.url, "--force")
    assert (code, problem) == (0, "") and " more are locked until " in output and "more are freed" not in output
    with half_points.writing(vm.series):
        swept = removal.sweep(vm.series, 0)
    assert swept.freed == 0 and swept.locked > 300 and set(swept.points) == {point.id for point in points[:2]}
    assert abs((swept.locked_until - after(40 * DAY)).total_seconds()) < 60
    assert [name for name in place.objects() if points[0].id in name and "manifest" not in name] == []
    assert len([each for each in versions(place, f"vm1/{points[0].id}/vda.0000.zst") if not each[2]]) == 1


def test_prune_works_without_the_right_to_read_locks(vm, monkeypatch):
    pull(vm, b"1" * 200 * KIB)
    half = vm.series.points()[0]
    pull(vm, b"2" * 250 * KIB)

    def denied(path):
        raise errors.AccessDenied("allow s3:GetObjectRetention on it")

    monkeypatch.setattr(vm.store, "protected_until", denied)
    with half_points.writing(vm.series):
        removal.remove(vm.series, half)
        swept = removal.sweep(vm.series, 0)
    assert swept.freed > 0 and "allow s3:GetObjectRetention" in swept.warnings[0]


def test_a_lock_by_default_is_a_warning_and_no_more(object_store, capsys):
    """In a bucket that locks each object, even small ones."""
    with object_stores.new_bucket(object_store.server, ObjectLockEnabledForBucket=True) as name:
        rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
        object_store.client.put_object_lock_configuration(
            Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule})  # fmt: skip
        url = f"s3://{name}/store"
        code, _, warnings = answered(capsys, "init", url)
        assert code == 0 and "the bucket locks each object for 1 days" in warnings
        vm = stores.Vm(url)
        vm.add_disk("vda", 100 * KIB)
        points = [pull(vm, bytes([number]) * 50000) for number in (1, 2, 3)]
        said("pin", url, points[0].id)
        said("unpin", url, points[0].id)
        said("policy", url, "--keep-last", "1")
        code, output, problem = answered(capsys, "prune", url, "--force")
        assert (code, problem) == (0, "")
        with half_points.writing(vm.series):
            assert removal.sweep(vm.series, 0).locked > 0
        assert answered(capsys, "verify", url)[::2] == (0, "")
        assert [point.id for point in vm.series.points()] == [points[2].id]
        assert marker.of(marker.open_store(url)).object_store.default_retention == 1


def test_a_copy_under_another_seal_is_immutable_too(place, tmp_path, monkeypatch):
    """Everything that is created is locked for as long as the policy says, and so is what a later point refers to; a
    point that is removed and copied again while its files are locked is whole, too."""
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    vm = stores.chain(tmp_path / "store", points=3, size=300 * KIB)
    said("init", place.url, "--immutable-for", "30d", "--recipient", recipient("age1"))
    words, mine = ("copy", vm.root, place.url, "--dest-identity", path("age1")), ("--identity", path("age1"))
    for point in vm.points:
        said(*words, "--point", point.id)
        found = stores.Vm(
            place.url, keys=keyring.keys_of(marker.open_store(place.url), identity_files.given([path("age1")]))
        )
        made = found.series.point_in(point.id)
        assert made.manifest.locked is None
        entries = references.holding(found.series, references.of_point(found.series, made))
        paths = [f"vm1/{entry.path}" for entry in entries] + [f"vm1/{point.id}/{layout.MANIFEST}"]
        for name in [*paths, layout.MARKER, *(n for n in place.objects() if n.startswith(layout.KEYS))]:
            lock = lock_of(place, name)
            assert lock and lock[0] == "COMPLIANCE" and lock[1] > 30 * DAY, name
    said("remove", place.url, vm.points[0].id)
    said(*words, "--point", vm.points[0].id)
    said("verify", place.url, *mine)
    for point in vm.points:
        said("restore", place.url, "--point", point.id, "-o", tmp_path / "out", "--format", "raw", "--force", *mine)
        assert (tmp_path / "out/vda.raw").read_bytes() == vm.images[point.id]["vda"]
