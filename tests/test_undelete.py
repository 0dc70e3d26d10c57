"""undelete and --as-of: points that somebody with the keys of a bucket deleted or overwrote, in a real SeaweedFS."""

import datetime
import random
import time

import botocore.exceptions
import pytest
import stores
from command import answered, answered_json, said
from hours import Hours
from identities import path, recipient
from key_store import forged
from worn import mostly_hidden, pruned

from nbdpull.core import errors
from nbdpull.crypto import identity_files
from nbdpull.format import layout
from nbdpull.operations import undelete
from nbdpull.repository import (
    half_points,
    immutable,
    keyring,
    live_frames,
    marker,
    references,
    removal,
    series_choice,
    sweep_mark,
)
from nbdpull.storage import s3_client, s3_past
from nbdpull.storage.s3 import S3Store

pytestmark = pytest.mark.e2e
KIB = stores.KIB


@pytest.fixture
def place(locking_store):
    return locking_store


@pytest.fixture
def hours():
    with Hours(S3Store) as passing:
        yield passing


def instant():
    """Return a time as a user writes it: the server counts whole seconds."""
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
    """Delete or overwrite everything, and try to remove the versions that are left."""
    client, names = place.client, [*place.objects()]
    for name in names:
        key = place.key(name)
        if chance.random() < 0.5:
            client.put_object(Bucket=place.bucket, Key=key, Body=b"forged")
        if chance.random() < 0.7:
            client.delete_object(Bucket=place.bucket, Key=key)
    listed = client.list_object_versions(Bucket=place.bucket, Prefix=place.key(""))["Versions"]
    for each in listed:
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
    code, output, problem = answered(capsys, "verify", place.url, "--as-of", before)
    assert (code, problem) == (0, "") and "3 points" in output
    for number, point in enumerate(ids):
        assert_restores(vm, point, place.url, tmp_path / f"as-of-{number}", "--as-of", before)

    code, output, _ = answered(capsys, "undelete", place.url, "all", "--as-of", before)
    assert code == 0 and output.count(" is back: ") >= 1 and output.count("\n") == 3
    assert answered(capsys, "verify", place.url)[::2] == (0, "")
    for number, point in enumerate(ids):
        assert_restores(vm, point, place.url, tmp_path / f"back-{number}")
    for name in place.objects():
        if any(point in name for point in ids):  # what the next pull counts on
            place.client.get_object_retention(Bucket=place.bucket, Key=place.key(name))
    code, output, _ = answered(capsys, "undelete", place.url, "all", "--as-of", before)
    assert code == 0 and output.count("is unchanged\n") == 3


def test_a_point_as_it_was_made(place, tmp_path, capsys):
    """Without --as-of: what overwrote its manifest since is no point, or a later one."""
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url)
    first, second, _ = (point.id for point in vm.points)
    instant()
    for name in place.objects():
        if second in name:
            place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=b"forged")
            place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    code, before, _ = answered_json(capsys, "undelete", place.url, second[:-1], "--domain", "vm1")
    assert code == 0 and [each["point"] for each in before["points"]] == [second] and before["points"][0]["files"] > 3
    assert_restores(vm, second, place.url, tmp_path / "out")
    code, _, problem = answered(capsys, "undelete", place.url, "20010101T000000Z-00000000")
    assert code == 10 and "has no version of a point 20010101T000000Z-00000000" in problem
    assert answered(capsys, "undelete", place.url, first[:4])[0] == 10


def test_what_remove_took_comes_back(place, tmp_path, capsys):
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url, points=2)
    first = vm.points[0].id
    instant()  # else it was never there, by a clock of seconds
    said("remove", place.url, first)
    assert f"vm1/{first}/{half_points.REMOVED}" in place.objects()
    said("undelete", place.url, first)
    assert_restores(vm, first, place.url, tmp_path / "out")
    assert f"vm1/{first}/{half_points.REMOVED}" not in place.objects()
    assert answered(capsys, "verify", place.url)[0] == 0


def test_a_removed_recipient_stays_removed(place, capsys, monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(s3_past, "_AT_ONCE", datetime.timedelta(seconds=1))  # which two deletions may seem to be apart
    said("init", place.url, "--recipient", recipient("age1"))
    vm = filled(place.url, 2, keyring.keys_of(marker.open_store(place.url), identity_files.given([path("age1")])))
    before = instant()
    first = "--identity", path("age1")
    said("key", "rotate", place.url, *first, "--recipient", recipient("ed25519"), "--force")
    said("remove", place.url, vm.points[0].id)
    said("undelete", place.url, vm.points[0].id)
    assert answered(capsys, "key", "test", place.url, *first)[0] == 16, "older than the change"
    instant()
    for name in place.objects():
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    said("undelete", place.url, "all", "--as-of", before)
    assert answered(capsys, "key", "test", place.url, *first)[0] == 16, "the other one was there last"
    assert answered(capsys, "key", "test", place.url, "--identity", path("ed25519"))[0] == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_a_key_file_that_a_thief_put_in_place_of_all_others(place, capsys, monkeypatch, is_there):
    """Without an identity it cannot be told from one that the owner made since. It may be gone again, and last."""
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(s3_past, "_AT_ONCE", datetime.timedelta(seconds=1))
    said("init", place.url, "--recipient", recipient("age1"), "--recipient", recipient("ed25519"))
    filled(place.url, 1, keyring.keys_of(marker.open_store(place.url), identity_files.given([path("age1")])))
    before, thief = instant(), {"Bucket": place.bucket, "Key": place.key(f"{layout.KEYS}/deadbeef.age")}
    for name in place.objects():
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    place.client.put_object(**thief, Body=forged([recipient("age1")]))
    instant()
    if not is_there:
        place.client.delete_object(**thief)
    asked = "undelete", place.url, "all", "--as-of", before
    code, _, warning = answered(capsys, *asked)
    assert code == 0 and "none of the key files of that time is left" in warning and "--identity FILE" in warning
    assert answered(capsys, "key", "test", place.url, "--identity", path("age1"))[0] == 11
    assert answered(capsys, *asked, "--identity", path("age2"))[0] == 16
    assert answered(capsys, *asked, "--identity", path("age1"))[::2] == (0, "")
    for name in ("age1", "ed25519"):
        assert answered(capsys, "key", "test", place.url, "--identity", path(name))[0] == 0
    assert answered(capsys, *asked)[::2] == (0, "")


def test_a_pull_builds_at_once_on_a_point_whose_files_a_prune_had_removed(place, hours):
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url, 1)
    first = vm.points[0].id
    instant()
    said("remove", place.url, first)
    hours.let_pass(27)
    with half_points.writing(vm.series):
        removal.sweep(vm.series)
    assert f"vm1/{first}/{sweep_mark.NAME}" in place.objects() and f"vm1/{first}/vda.0000.zst" not in place.objects()
    said("undelete", place.url, first)
    assert f"vm1/{first}/{sweep_mark.NAME}" not in place.objects()
    vm.write("vda", 200 * KIB, b"more")
    assert vm.pull().manifest.parent.point == first


def test_files_healed_since_then_are_kept(place, tmp_path, capsys):
    """The time decides which files a point has, not what is in them."""
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url, 1)
    said("copy", place.url, tmp_path / "copy")
    name = f"vm1/{vm.points[0].id}/vda.0000.zst"
    good = place.read(name)
    place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=random.Random(1).randbytes(len(good)))
    time.sleep(1.1)
    vm.write("vda", 200 * KIB, b"more")
    second = vm.pull().id
    before = instant()
    assert answered(capsys, "verify", place.url)[0] == 11
    code, output, _ = answered(capsys, "verify", place.url, "--heal-from", tmp_path / "copy")
    assert (code, place.read(name)) == (0, good) and "HEALED" in output, "not judged by what is in memory of before"
    said("remove", place.url, second)
    for words in ([second], ["all", "--as-of", before]):
        said("undelete", place.url, *words)
        assert place.read(name) == good and answered(capsys, "verify", place.url)[0] == 0
    place.client.put_object(Bucket=place.bucket, Key=place.key(name), Body=bytes(len(good)))
    said("undelete", place.url, second)
    assert place.read(name) == good


class Killed(BaseException):
    pass


CHANGING = {"delete_object", "copy_object", "put_object", "put_object_retention"}


def test_killed_before_a_request_that_changes_something(place, monkeypatch):
    """The point is not listed before it is whole, and the next run completes it. For a point that was removed, one
    whose files were deleted or overwritten, and the marker."""
    said("init", place.url, "--immutable-for", "30d")
    point = filled(place.url, points=1).points[0].id
    asked, real, made, left = undelete.Options(place.url, [point]), s3_client.Bucket._once, [], []

    def once(bucket, call, what):
        if left and call in CHANGING:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            made.append(call)
        return real(bucket, call, what)

    monkeypatch.setattr(s3_client.Bucket, "_once", once)
    instant()
    for count in range(1, 60, 4):  # several are under way at once
        deleted(place, point)
        left[:], died = [count], False
        try:
            undelete.undelete(asked)
        except Killed:
            died = True
        left.clear()
        if f"vm1/{point}/{layout.MANIFEST}" in place.objects():
            assert_whole(place, point)
        if not died:
            break
        undelete.undelete(asked)
        assert_whole(place, point)
        assert f"vm1/{point}/{half_points.REMOVED}" not in place.objects()
    assert not died and count > 6 and {*made} == {"copy_object", "delete_object"}


def assert_whole(place, point):
    [series] = series_choice.folders(marker.open_store(place.url))
    assert not any(map(series.file_flaw, references.of_point(series, series.point_in(point))))


def deleted(place, point):
    """Delete a point as a removal does, and as a thief does: some of its files are overwritten first, or instead."""
    key, client = f"vm1/{point}", place.client
    client.put_object(Bucket=place.bucket, Key=place.key(f"{key}/{half_points.REMOVED}"),
                      Body=place.read(f"{key}/{layout.MANIFEST}"))  # fmt: skip
    for name in place.objects():
        if name.endswith((".zst", layout.MARKER)):
            client.put_object(Bucket=place.bucket, Key=place.key(name), Body=b"forged")
        if name.startswith(key) and not name.endswith((".zst", half_points.REMOVED)):
            client.delete_object(Bucket=place.bucket, Key=place.key(name))


def test_locked_delete_markers(place, tmp_path):
    """A thief can lock them: what they hide is brought back as a copy."""
    said("init", place.url, "--immutable-for", "30d")
    vm = filled(place.url, 1)
    instant()
    forever = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=36000)
    for name in place.objects():
        key = {"Bucket": place.bucket, "Key": place.key(name)}
        place.client.delete_object(**key)
        if name.endswith((".zst", layout.MANIFEST)):
            place.client.put_object_retention(**key, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": forever})
    said("undelete", place.url, vm.points[0].id)
    assert_restores(vm, vm.points[0].id, place.url, tmp_path / "out")


def test_frames_that_were_moved(place, tmp_path, monkeypatch, capsys):
    """The point was repacked before it was copied: the files that it names do not exist."""
    monkeypatch.setattr(live_frames, "FILE_COST", 300)
    vm = mostly_hidden(tmp_path / "store")
    pruned(vm, [point.id for point in vm.points[:-1]])
    assert list(vm.root.rglob(f"*{layout.MOVED}"))
    said("init", place.url, "--immutable-for", "30d")
    said("copy", vm.root, place.url)
    instant()
    for name in place.objects():
        place.client.delete_object(Bucket=place.bucket, Key=place.key(name))
    said("undelete", place.url, vm.points[-1].id)
    assert answered(capsys, "verify", place.url)[0] == 0


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


def test_a_store_without_a_past(tmp_path, object_store, capsys):
    vm = stores.chain(tmp_path / "store", points=1, size=300 * KIB)
    for words in (["undelete", vm.root, "all"], ["list", vm.root, "--as-of", "yesterday"]):
        code, _, problem = answered(capsys, *words)
        assert code == 2 and "is a directory, and only a bucket that keeps old versions" in problem
    for words, message in {
        ("undelete", object_store.url, "all"): "all: give a time with --as-of",
        ("list", object_store.url, "--as-of", "then"): "--as-of then: not a time; write 2026-11-22",
        ("list", object_store.url, "--as-of", "2026-02-30"): "is not a time that exists",
        ("verify", object_store.url, "--as-of", "today", "--heal-from", vm.root): "--as-of only reads",
    }.items():
        code, _, problem = answered(capsys, *words)
        assert code == 2 and message in problem
    said("copy", vm.root, object_store.url)
    code, _, problem = answered(capsys, "list", object_store.url, "--as-of", "yesterday")
    assert code == 10 and "the bucket keeps no old versions, so it has no past" in problem, "less would seem to be all"


def test_a_time_at_which_there_was_nothing(place, capsys):
    said("init", place.url)
    for verb in (["list", place.url], ["undelete", place.url, "all"]):
        code, _, problem = answered(capsys, *verb, "--as-of", "2020-01-01")
        assert code == 10 and f"{place.url} was not an nbdpull store at 2020-01-01 " in problem
        code, _, problem = answered(capsys, *verb, "--as-of", "2999-01-01")
        assert code == 2 and "--as-of 2999-01-01: nothing is known of a time in the future" in problem
    assert answered(capsys, "list", place.url, "--as-of", "today")[0] == 0
