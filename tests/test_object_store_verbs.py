"""What verbs do and print for a store in a bucket, where that differs from a directory, on the command line."""

import os
import sys

import pytest
import stores
from command import answered, answered_json, said
from hours import Hours
from identities import path, recipient
from sealed import SECRET, contains_secret
from worn import mostly_hidden

from nbdpull.core import errors
from nbdpull.crypto import identity_files
from nbdpull.repository import half_points, keyring, live_frames, lookup, marker, policies, removal
from nbdpull.repository.retention import Policy
from nbdpull.storage import s3_client
from nbdpull.storage.s3 import S3Store

KIB = stores.KIB
BY_AGE1, BY_AGE2, BY_SSH = (("--identity", path(name)) for name in ("age1", "age2", "ed25519"))


def test_removed_files_wait_and_nothing_shortens_the_wait(object_store, tmp_path, capsys):
    vm = stores.chain(tmp_path / "store", points=3, size=800 * KIB)
    said("copy", vm.root, object_store.url)
    code, output, _ = answered(capsys, "prune", object_store.url, "--keep-last", "1", "--force")
    assert code == 0 and "more are freed by the next remove or prune after 26 hours\n" in output
    code, _, problem = answered(capsys, "prune", object_store.url, "--keep-last", "1", "--now")
    assert code == 2 and problem.startswith(f"nbdpull: --now: {object_store.url} has no locks")
    code, output, _ = answered(capsys, "prune", vm.root, "--keep-last", "1", "--force")
    assert "after a day (--now: at once)\n" in output


def test_repacked_files_are_removed_a_day_later(object_store, tmp_path, capsys, monkeypatch):
    """Meanwhile, the files are listed, and can be read."""
    monkeypatch.setattr(live_frames, "FILE_COST", 300)
    made = mostly_hidden(tmp_path / "store", rounds=3)
    said("copy", made.root, object_store.url)
    words, tables = ("prune", object_store.url, "--keep-last", "1", "--force"), ".zst.moved"
    with Hours(S3Store) as hours:
        answered(capsys, *words)
        hours.let_pass(27)
        _, result, warnings = answered_json(capsys, *words)
        [found] = result["domains"]
        moved = [name[: -len(".moved")] for name in object_store.objects() if name.endswith(tables)]
        assert moved and {*moved} <= {*object_store.objects()} and result["warnings"] == []
        assert 0 < found["repack_moved_bytes"] < found["repack_waiting_bytes"] and found["repack_freed_bytes"] == 0
        hours.let_pass(27)
        _, result, _ = answered_json(capsys, *words)
    assert result["domains"][0]["freed_bytes"] >= found["repack_waiting_bytes"]
    assert not {*moved} & {*object_store.objects()}
    vm = stores.Vm(object_store.url)
    [last] = vm.series.points()
    for disk, content in made.images[last.id].items():
        with lookup.RandomImage(vm.series, last, disk) as image:
            assert image.read(0, image.size) == content


def test_a_sealed_store_and_its_keys(object_store, tmp_path, capsys, monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    url, copied = object_store.url, f"{object_store.url}-copied"
    code, result, _ = answered_json(capsys, "init", url, "--recipient", recipient("age1"))
    assert code == 0 and result["master"] == marker.master_of(marker.open_store(url))
    fill(url)
    assert not any(contains_secret(object_store.read(name)) for name in object_store.objects())
    said("key", "add", url, *BY_AGE1, "--recipient", recipient("age2"), "--label", "second")
    said("key", "test", url, *BY_AGE2)
    assert recipient("age2") in said("key", "list", url, "--json")
    said("key", "remove", url, "second", *BY_AGE1)
    assert answered(capsys, "key", "test", url, *BY_AGE2)[0] == 16
    said("key", "rotate", url, *BY_AGE1, *BY_SSH, "--recipient", recipient("ed25519"))
    assert answered(capsys, "key", "test", url, *BY_AGE1)[0] == 16
    said("copy", url, copied)
    said("restore", copied, "-o", tmp_path, "--format", "raw", *BY_SSH)
    assert SECRET in (tmp_path / "vda.raw").read_bytes()


def test_a_copy_under_another_seal(object_store, tmp_path, monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    vm = stores.chain(tmp_path / "store", points=2, size=300 * KIB)
    said("init", object_store.url, "--recipient", recipient("age1"))
    words = ("copy", vm.root, object_store.url, "--dest-identity", path("age1"))
    said(*words, "--point", vm.points[0].id)
    first = {*object_store.objects()}
    log = tmp_path / "log"
    monkeypatch.setattr(sys, "addaudithook", lambda hook: None)
    said(*words, "-vv", "--log-file", log)
    assert f"s3: put_object {object_store.key('vm1')}/" in log.read_text()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in log.read_text()
    new = {*object_store.objects()} - first
    assert new and all(vm.points[1].id in name for name in new)
    said("verify", object_store.url, *BY_AGE1)
    said("copy", object_store.url, tmp_path / "plain", "--unseal", *BY_AGE1)
    for store, who in ((object_store.url, BY_AGE1), (tmp_path / "plain", ())):
        for point in vm.points:
            said("restore", store, "--point", point.id, "-o", tmp_path / "out", "--format", "raw", "--force", *who)
            assert (tmp_path / "out/vda.raw").read_bytes() == vm.images[point.id]["vda"]


def fill(url):
    vm = stores.Vm(url, keys=keyring.keys_of(marker.open_store(url), identity_files.given([path("age1")])))
    vm.add_disk("vda", 100 * KIB)
    vm.write("vda", 1000, SECRET * 50)
    vm.pull()


def test_an_emptied_store_is_empty(object_store):
    """A SeaweedFS still lists the directory for a while."""
    store = S3Store(object_store.url)
    store.publish("vm/file", b"")
    assert not marker.is_new(object_store.url)
    store.remove_folder("vm")
    assert marker.is_new(object_store.url)
    said("init", object_store.url)


def test_folders_that_a_file_manager_made(object_store, tmp_path, capsys, monkeypatch):
    """They are objects whose keys end in "/": they are no files, and hide nothing."""
    vm = stores.chain(tmp_path / "store", points=2, size=300 * KIB)
    first, second = (f"vm1/{point.id}/" for point in vm.points)
    objects, key = s3_client.Bucket.objects, object_store.key  # SeaweedFS does not list such objects

    def with_folders(bucket, prefix, at_most=None):
        found = {each.key: each for each in objects(bucket, prefix)}
        made = ["", "vm1/", first, second] if found else [""]
        found.update({each: s3_client.Found(each, 0, 1e6) for each in map(key, made) if each.startswith(prefix)})
        yield from [found[key] for key in sorted(found)][:at_most]

    monkeypatch.setattr(s3_client.Bucket, "objects", with_folders)
    assert marker.is_new(object_store.url)
    assert answered(capsys, "copy", vm.root, object_store.url, "--dry-run")[0] == 0
    said("copy", vm.root, object_store.url)
    store = marker.open_store(object_store.url)
    with store.looking("vm1"):
        assert "" not in store.files(first[:-1])
        assert store.folders("vm1") == sorted(point.id for point in vm.points)
    assert answered(capsys, "verify", object_store.url)[::2] == (0, "")
    with Hours(S3Store) as hours:
        said("remove", object_store.url, vm.points[0].id)
        hours.let_pass(27)
        with half_points.writing(stores.series.Series(store, "vm1")):
            removal.sweep(stores.series.Series(store, "vm1"))
            hours.let_pass(27)
            removal.sweep(stores.series.Series(store, "vm1"))
    assert answered(capsys, "verify", object_store.url)[::2] == (0, "")


def test_a_prefix_with_any_characters(object_store, tmp_path, capsys):
    """And another one of which it is the beginning."""
    vm = stores.chain(tmp_path / "store", points=1, size=300 * KIB)
    urls = [f"{object_store.url}/two words/Grüße 😀/100%/%2F/a+b/a=b&c;d/'\"<>/..a/~", f"{object_store.url}/two"]
    for url in urls:
        said("copy", vm.root, url)
    assert answered(capsys, "verify", urls[0])[::2] == (0, "")
    said("pin", urls[0], "latest")
    said("unpin", urls[0], "latest")
    said("remove", urls[0], vm.points[0].id)
    assert [len(answered_json(capsys, "list", url)[1]) for url in urls] == [0, 1]


def test_concurrent_policies_are_not_lost(object_store, monkeypatch):
    """Each run reads before the other one has written."""
    said("init", object_store.url)
    real = policies._content
    for number in (2, 3):  # where there is no policy yet, and where there is one
        store = S3Store(object_store.url)

        def changed_meanwhile(of, store=store, number=number):
            found = real(of)
            if of is store:
                policies.put(S3Store(object_store.url), "other", Policy(keep_last=number))
            return found

        with monkeypatch.context() as patch, pytest.raises(errors.Busy, match="policy.json.*try again"):
            patch.setattr(policies, "_content", changed_meanwhile)
            policies.put(store, "mine", Policy(keep_last=1))
        assert [(each.pattern, each.policy.keep_last) for each in policies.load(store)] == [("other", number)]


def test_the_last_policy_goes_only_if_it_is_the_last(object_store, monkeypatch):
    said("init", object_store.url)
    store, real = S3Store(object_store.url), policies._content
    policies.put(store, "mine", Policy(keep_last=1))

    def changed_meanwhile(of):
        found = real(of)
        if of is store:
            policies.put(S3Store(object_store.url), "other", Policy(keep_last=2))
        return found

    with monkeypatch.context() as patch, pytest.raises(errors.Busy, match="policy.json.*try again"):
        patch.setattr(policies, "_content", changed_meanwhile)
        policies.drop(store, "mine")
    assert {each.pattern for each in policies.load(store)} == {"mine", "other"}
    assert policies.drop(store, "mine") and policies.drop(store, "other") and not policies.drop(store, "other")
    assert policies.load(store) == []
    policies.put(store, "mine", Policy(keep_last=1))
    assert [each.pattern for each in policies.load(store)] == ["mine"]


def test_the_server_is_an_option_of_every_verb(object_store, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    here = ("--s3-endpoint", object_store.server.endpoint)
    said("init", object_store.url, *here)
    assert said("list", object_store.url, "--json", *here) == "[]\n"
    assert "NBDPULL_S3_ENDPOINT" not in os.environ
    code, _, problem = answered(capsys, "list", object_store.url, "--s3-endpoint", "nonsense")
    assert (code, problem) == (2, "nbdpull: --s3-endpoint, NBDPULL_S3_ENDPOINT: Invalid endpoint: nonsense\n")
