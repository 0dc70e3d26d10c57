"""How many requests a verb makes to an object store: each costs time and money, whatever it returns."""

import contextlib
import random
import threading
import zlib
from functools import partial

import pytest
import stores
from sealed import KEYS, MASTER, SECRET, contains_secret

from nbdpull.core import errors
from nbdpull.operations import copy, init, listing, prune, restore, show, status, usage, verify
from nbdpull.repository import keyring, lock_free, lookup, marker, series_choice
from nbdpull.serving import nbd_server
from nbdpull.storage import place, s3_client

POINTS = 10
READ_BY_PROBE, PUT_BY_PROBE = 3, 7
KIB = stores.KIB


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("requests") / "store", points=POINTS, size=800 * KIB)


@pytest.fixture
def asked(requests_made):
    """Factory: do something, and return {call: how many requests of it were made}."""

    def count(do, *args):
        requests_made.clear()
        do(*args)
        return dict(requests_made)

    return count


def test_the_creator_of_a_store_reads_the_marker_once(object_store, asked):
    made = asked(init.init, init.Options(store=object_store.url))
    assert made["get_object"] - READ_BY_PROBE == 2  # before, and for the report
    other = f"{object_store.url}-pulled"
    assert asked(marker.open_or_create, other)["get_object"] - READ_BY_PROBE == 1
    assert asked(marker.open_or_create, other) == {"get_object": 1}


def test_requests_of_the_verbs(vm, object_store, asked, tmp_path):
    """One manifest each, and one definition for all; files are listed, not requested one by one."""
    url, files = object_store.url, len(stores.files(vm.folder))
    copied = asked(copy.copy, copy.Options(str(vm.root), url))
    made = files + 1 + POINTS  # the marker, and of each point for a time that it is set apart
    assert copied["put_object"] - PUT_BY_PROBE == made
    assert copied["list_objects_v2"] <= 4 * POINTS + 12 and copied["head_object"] <= POINTS + 1
    again = asked(copy.copy, copy.Options(str(vm.root), url))
    assert again.keys() == {"get_object", "list_objects_v2"} and again["get_object"] <= POINTS + 4
    assert asked(listing.listing, listing.Options(url)) == {"get_object": POINTS + 2, "list_objects_v2": 2}
    assert asked(status.status, status.Options(url)) == {"get_object": POINTS + 3, "list_objects_v2": 2}
    assert asked(usage.usage, usage.Options(url)).keys() == {"get_object", "list_objects_v2"}
    with contextlib.ExitStack() as looking:
        chosen = partial(series_choice.only_point, marker.open_store(url), looking=looking)
        assert asked(chosen) == {"get_object": POINTS, "list_objects_v2": 2}
    restored = asked(restore.restore, restore.Options(url, output=str(tmp_path / "out")))
    assert restored.keys() == {"get_object", "list_objects_v2"} and restored["list_objects_v2"] <= 3
    pruned = asked(prune.prune, prune.Options(url, keep_last=6))
    assert "head_object" not in pruned and pruned["put_object"] == POINTS - 6
    assert pruned["list_objects_v2"] == 5 and pruned["get_object"] <= 6 * POINTS + 4
    checked = asked(verify.verify, verify.Options(url))
    assert checked["list_objects_v2"] == 6 + 3, "one for each point"


def test_a_pull_looks_at_its_base_with_few_requests(vm, object_store, asked):
    """Of the two that prove that the base stays, none lists anything."""
    copy.copy(copy.Options(str(vm.root), object_store.url))
    [target] = series_choice.folders(marker.open_store(object_store.url))
    assert asked(lock_free.require_base, target, vm.points[-1].id) == {"head_object": 2}


def test_manifests_are_read_concurrently_and_reported_in_order(vm, object_store, monkeypatch):
    """Each waits until three are requested. Errors are reported in the same order as for a directory."""
    copy.copy(copy.Options(str(vm.root), object_store.url))
    half, gone = vm.points[3].id, vm.points[6].id
    client, bucket = object_store.client, object_store.bucket
    client.put_object(Bucket=bucket, Key=object_store.key(f"vm1/{half}/manifest.json"), Body=b"{")
    client.delete_object(Bucket=bucket, Key=object_store.key(f"vm1/{gone}/manifest.json"))
    together, real = threading.Barrier(3), s3_client.Bucket._once

    def once(bucket, call, what):
        if what.get("Key", "").endswith("manifest.json"):
            together.wait(20)
        return real(bucket, call, what)

    monkeypatch.setattr(s3_client.Bucket, "_once", once)
    [target] = series_choice.folders(marker.open_store(object_store.url))
    points, refused = target.load()
    assert [point.id for point in points] == [point.id for point in vm.points if point.id not in (half, gone)]
    assert refused.keys() == {half} and f"{object_store.url}/vm1/{half}/manifest.json" in str(refused[half])


def test_a_file_is_read_in_large_steps_and_once(object_store, asked, tmp_path):
    """In a restore, its frames prove it."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 20 * stores.MIB)
    vm.write("vda", 0, random.Random(6).randbytes(20 * stores.MIB))
    vm.pull(chunk_size=64 * stores.MIB)
    copy.copy(copy.Options(str(vm.root), object_store.url))
    made = asked(restore.restore, restore.Options(object_store.url, output=str(tmp_path / "out"), kind="raw"))
    steps, others = 3, 9  # marker, manifest, directory, index, and what is beside the disks
    assert made["get_object"] <= steps + others
    assert (tmp_path / "out" / "vda.raw").read_bytes() == vm.images[vm.points[0].id]["vda"]


def test_cached_data_is_not_requested_again(vm, object_store, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("NBDPULL_CACHE_DIR", str(tmp_path / "cache"))
    url, options = object_store.url, listing.Options(object_store.url)
    copy.copy(copy.Options(str(vm.root), url))
    first = listing.listing(options)
    assert asked(listing.listing, options) == {"get_object": 1, "list_objects_v2": 2}, "the marker is not listed"
    assert listing.listing(options) == first
    shown = asked(show.show, show.Options(url, "latest"))
    assert shown == {"get_object": 2, "list_objects_v2": 2}, "the marker, and this point's own definition"
    for known in (False, True):
        with contextlib.ExitStack() as looking:
            target, point = series_choice.only_point(marker.open_store(url, pytest.fail), looking=looking)
            image = looking.enter_context(lookup.RandomImage(target, point, "vda"))
            made = asked(image.read, 0, image.size)
            assert image.read(0, image.size) == vm.images[point.id]["vda"]
            assert ("get_object" in made) != known


def kept(tmp_path):
    return list((tmp_path / "cache").glob("??/*"))


def test_changed_objects_are_requested_again(vm, object_store, tmp_path, monkeypatch):
    """Even if the size is the same again. Nothing is cached that is not verified."""
    monkeypatch.setenv("NBDPULL_CACHE_DIR", str(tmp_path / "cache"))
    store = marker.create(object_store.url)
    store.publish("vm1/file", b"first")
    for now in (b"first", b"other", b"first"):
        store.replace("vm1/file", now)
        for _ in range(2):
            again = place.opened(object_store.url, cache=pytest.fail)
            with again.looking("vm1"):
                assert again.proved(partial(again.read, "vm1/file")) == now
                assert again.proved(partial(again.read_range, "vm1/file", 1, 3)) == now[1:4]
                assert again.read_range("vm1/file", 0, 4) == now[:4]
            with again.open_reader("vm1/file", again=True) as file:
                assert again.proved(partial(file.read, 2, 2)) == now[2:4]
                assert file.read(1, 2) == now[1:3]
    assert len(kept(tmp_path)) == 3 * 2


def test_what_is_cached_of_a_sealed_store_is_sealed(object_store, tmp_path, monkeypatch):
    monkeypatch.setenv("NBDPULL_CACHE_DIR", str(tmp_path / "cache"))
    vm = stores.Vm(object_store.url, keys=KEYS)
    vm.add_disk("vda", 200 * KIB)
    vm.write("vda", 1000, SECRET * 50)
    point = vm.pull()
    for _ in range(2):
        with contextlib.ExitStack() as looking:
            store = keyring.unlocked(object_store.url, MASTER, pytest.fail)
            target, found = series_choice.only_point(store, looking=looking)
            assert SECRET in looking.enter_context(lookup.RandomImage(target, found, "vda")).read(0, 200 * KIB)
    pieces = [path.read_bytes() for path in kept(tmp_path)]
    assert len(pieces) > 2 and not any(map(contains_secret, pieces)) and point.id == found.id


@pytest.fixture
def rotten(monkeypatch):
    """Answer requests for files with such names with one bit flipped, and the same tag: like a bad disk, or one of
    several copies of a server."""
    ends, once = set(), s3_client.Bucket._once

    def answered(bucket, call, what):
        answer = once(bucket, call, what)
        if call == "get_object" and what["Key"].endswith(tuple(ends)):
            data = bytearray(answer["Body"])
            data[len(data) // 2] ^= 1
            answer = {**answer, "Body": bytes(data)}
        return answer

    monkeypatch.setattr(s3_client.Bucket, "_once", answered)
    return ends


@pytest.fixture
def copied(vm, object_store, tmp_path, monkeypatch):
    """URL of a copy of `vm`, with a cache."""
    monkeypatch.setenv("NBDPULL_CACHE_DIR", str(tmp_path / "cache"))
    copy.copy(copy.Options(str(vm.root), object_store.url))
    return object_store.url


def served(url):
    """Return (id of the newest point, content of its disk), as `serve` reads it."""
    with contextlib.ExitStack() as looking:
        target, point = series_choice.only_point(keyring.unlocked(url, None, pytest.fail), looking=looking)
        image = looking.enter_context(lookup.RandomImage(target, point, "vda"))
        return point.id, image.read(0, image.size)


@pytest.mark.parametrize("name", ["manifest.json", "vda.directory"])
def test_runs_that_verify_or_copy_do_not_read_the_cache(copied, rotten, tmp_path, name):
    served(copied)
    listing.listing(listing.Options(copied))
    rotten.add(name)
    assert len(verify.verify(verify.Options(store=copied)).damages) >= POINTS
    assert copy.copy(copy.Options(copied, str(tmp_path / "second"))).errors
    with pytest.raises(errors.Damaged):
        restore.restore(restore.Options(store=copied, output=str(tmp_path / "out")))


@pytest.mark.parametrize("name", ["manifest.json", "vda.directory", "vda.index", "vda.0000.zst"])
def test_wrong_answers_are_not_cached(copied, rotten, vm, name):
    """As from one bad copy of several, or until the file is healed, which gives it the same tag again."""
    rotten.add(name)
    for _ in range(2):
        with pytest.raises(errors.NbdpullError):
            served(copied)
    listing.listing(listing.Options(copied))
    rotten.clear()
    assert served(copied) == (vm.points[-1].id, vm.images[vm.points[-1].id]["vda"])
    assert not listing.listing(listing.Options(copied)).refused


def test_damaged_cache_entries_are_requested_again(copied, vm, asked, tmp_path):
    """Even if its CRC is right. Then the answer is right."""
    right, listed = served(copied), listing.listing(listing.Options(copied))
    for path in kept(tmp_path):
        data = bytearray(path.read_bytes()[4:])
        data[len(data) // 2] ^= 1
        path.write_bytes(zlib.crc32(data).to_bytes(4, "little") + data)
    assert listing.listing(listing.Options(copied)) == listed
    assert served(copied) == right == (vm.points[-1].id, vm.images[vm.points[-1].id]["vda"])
    assert asked(served, copied)["get_object"] == 1, "the marker, which is not listed"


def test_a_verb_works_without_the_cache(copied, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o755)
    found = listing.listing(listing.Options(copied))
    [warning] = found.warnings
    assert len(found.points) == POINTS and "access to it (chmod 700)" in warning and "it is not used" in warning


def test_serve_reports_why_there_is_no_cache(copied, tmp_path):
    """Although it is nbdkit that opens the store."""
    (tmp_path / "cache").mkdir(mode=0o755)
    with nbd_server.Server(nbd_server.Request(copied, socket=str(tmp_path / "nbd"), cached=True)) as server:
        [trouble] = server.troubles()
    assert "access to it (chmod 700)" in trouble


def test_a_drill_serves_from_the_bucket_itself(copied, tmp_path):
    """If it were read from this host, its boot would prove nothing about the bucket."""
    with nbd_server.Server(nbd_server.Request(copied, socket=str(tmp_path / "nbd"))):
        assert not kept(tmp_path)
