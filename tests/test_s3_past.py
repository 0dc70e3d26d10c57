"""A place in a bucket as of an earlier time, and what can be brought back: with SeaweedFS, by its own clock."""

import datetime
import hashlib
import random
import time

import object_store as object_stores
import pytest

from nbdpull.core import errors
from nbdpull.storage import place, s3_past
from nbdpull.storage.s3 import S3Store
from nbdpull.storage.s3_client import Version
from nbdpull.storage.s3_past import PastBucket

UTC = datetime.timezone.utc


@pytest.fixture(scope="module")
def keeping(seaweedfs):
    """The name of a bucket that keeps old versions."""
    with object_stores.new_bucket(seaweedfs) as name:
        client = object_stores.client(seaweedfs.endpoint)
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        yield name


@pytest.fixture
def store(object_store, keeping):
    return S3Store(f"s3://{keeping}/{object_store.prefix}")


def instant():
    """Return an instant in whole seconds, as the server counts, with a second before it and after it."""
    time.sleep(1.1)
    found = datetime.datetime.now(UTC)
    time.sleep(1.1)
    return found


def test_which_versions_count_as_a_naive_model_says():
    """Times may be equal: what is listed first is newer."""
    chance, epoch = random.Random(5), datetime.datetime(2026, 11, 27, tzinfo=UTC)
    for _ in range(200):
        versions = [
            Version(key, str(number), 1, epoch + datetime.timedelta(seconds=second), 0.0, chance.random() < 0.4)
            for key in ("a", "b", "c")
            for number, second in enumerate(sorted(chance.choices(range(5), k=chance.randrange(4)), reverse=True))
        ]
        when = epoch + datetime.timedelta(seconds=chance.randrange(-1, 6))
        found = PastBucket("bucket", when)._picked(versions)
        for key in ("a", "b", "c"):
            before = [each for each in versions if each.key == key and each.written <= when]
            assert found.get(key) == (before[0] if before and not before[0].is_marker else None)


@pytest.mark.e2e
def test_what_was_deleted_and_overwritten_since(store, monkeypatch):
    for path in ("top", "vm/deep/file", "vm/gone", "vm/small"):
        store.publish(path, path.encode())
    store.delete("vm/gone")
    when = instant()
    past = S3Store(place.as_of(store.root, when))
    before = shown(past)
    for path in ("top", "vm/deep/file"):
        store.delete(path)
    store.replace("vm/small", b"forged")
    store.publish("vm/gone", b"again")
    store.publish("later/file", b"")
    for again in (past, S3Store(past.root)):
        assert shown(again) == before
        with again.looking(""):
            assert shown(again) == before
    assert before["find"] == [b"top", b"vm/deep/file", None, b"vm/small", None]
    assert (before["folders"], before["names"]) == (["vm"], ["deep", "small"])
    assert past.path("vm") == f"{store.root}/vm" and past.root != store.root
    with pytest.raises(errors.OutputError, match="read as of an earlier time, and nothing is written there"):
        past.publish("new", b"")
    with pytest.raises(errors.OutputError):
        past.delete("top")

    then = store.as_it_was(past, ["top", "vm/small", "vm/deep/file"])
    assert [each.bring_back(then) for each in (store, store, S3Store(store.root))] == [3, 0, 0]
    assert [store.find(path) for path in ("top", "vm/small")] == [b"top", b"vm/small"]
    with pytest.raises(errors.Damaged, match="some files of that time are missing"):
        store.as_it_was(past, ["vm/gone"])


@pytest.mark.e2e
def test_the_version_with_the_wanted_content(store, monkeypatch):
    def holding(data):
        return S3Store(store.root).holding({"file": (len(data), hashlib.sha256(data).hexdigest())}, lambda: None)

    read = []
    real = S3Store(store.root).bucket.get
    monkeypatch.setattr(type(store.bucket), "get", lambda bucket, *args: read.append(args) or real(*args))
    store.replace("file", b"good")
    first = holding(b"good")
    store.replace("file", b"longer")
    store.delete("file")
    assert holding(b"good") == first and not read, "the only one of its size"
    store.replace("file", b"evil")
    assert holding(b"good") == first and len(read) == 2
    store.replace("file", b"good")
    assert holding(b"good")["file"] != first["file"], "what is there stays"
    with pytest.raises(errors.Damaged, match="file: no version of the file has the right SHA-256"):
        holding(b"none")
    assert store.bring_back(first) == 0 and store.bring_back(holding(b"evil")) == 1 and store.find("file") == b"evil"


@pytest.mark.e2e
def test_the_files_that_were_there_last(store, monkeypatch):
    for path in ("keys/old", "keys/forged", "keys/new", "keys/bad"):
        store.publish(path, path.encode())
    store.replace("keys/bad", b"!")
    store.delete("keys/old")
    time.sleep(2.1)
    store.replace("keys/forged", b"!")
    store.delete("keys/new")
    monkeypatch.setattr(s3_past, "_AT_ONCE", datetime.timedelta(seconds=1))  # two deletions may seem that far apart

    def last():
        return sorted(store.last("keys", lambda path, data: data == path.encode(), 99))

    assert last() == ["keys/forged", "keys/new"]
    store.publish("keys/old", b"keys/old")
    assert last() == ["keys/old"]


def shown(store):
    """Return all that a store shows of these."""
    paths = ("top", "vm/deep/file", "vm/gone", "vm/small", "later/file")
    return {
        **{call: [getattr(store, call)(path) for path in paths] for call in ("find", "size", "holds")},
        "folders": [name for name in store.folders() if store.holds(name)],
        "names": [name for name in store.names("vm") if store.holds(f"vm/{name}")],
        "files": store.files("vm/deep"),
        "nowhere": store.holds("none"),
    }


@pytest.mark.e2e
def test_many_versions_come_in_pages(store, monkeypatch):
    for number in range(4):
        store.replace("vm/file", b"%d" % number)
        store.publish(f"vm/{number}", b"")
    store.delete("vm/file")
    for number in range(3):  # a page may end with a folder
        store.publish(f"more{number}/file", b"")
    real = store.bucket._once
    monkeypatch.setattr(store.bucket, "_once", lambda call, what: real(call, {**what, "MaxKeys": 2}))
    assert store.bucket.versions_level(store._key(""))[0] == ["more0", "more1", "more2", "vm"]
    found = list(store.bucket.versions(store._key("vm/")))
    assert [each.is_marker for each in found if each.key.endswith("file")] == [True, *[False] * 4]
    assert len(found) == 9 and len({(each.key, each.id) for each in found}) == 9


@pytest.mark.e2e
def test_what_was_there_and_was_deleted(store, object_store):
    assert not store.had("file")
    store.publish("file", b"")
    assert not store.had("file"), "another run may have made it just now"
    store.delete("file")
    assert store.had("file")
    store.publish("file", b"again")
    assert not store.had("file")
    unversioned = S3Store(object_store.url)
    unversioned.publish("file", b"")
    assert not unversioned.had("file")
    unversioned.delete("file")
    assert not unversioned.had("file")


def test_only_a_bucket_has_a_past(tmp_path):
    with pytest.raises(errors.UsageError, match="is a directory, and only a bucket that keeps old versions has a past"):
        place.as_of(str(tmp_path), datetime.datetime.now(UTC))
    with pytest.raises(errors.UsageError, match="not a time"):
        S3Store("s3://bucket?as-of=then")


@pytest.mark.e2e
def test_rights_of_versions_are_named(store, monkeypatch):
    store.publish("file", b"")
    past = place.as_of(store.root, datetime.datetime.now(UTC))
    key, secret = object_stores.NOBODY
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    nobody = S3Store(past, 1.0)
    with pytest.raises(errors.AccessDenied, match="allow s3:ListBucketVersions on it"):
        nobody.find("file")
    with pytest.raises(errors.AccessDenied, match="allow s3:GetObjectVersion on it"):
        nobody.bucket.get(store._key("file"), version="1")
    with pytest.raises(errors.AccessDenied, match="allow s3:DeleteObjectVersion on it"):
        nobody.bucket.remove_version(store._key("file"), "1")
