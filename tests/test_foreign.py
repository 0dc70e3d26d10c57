"""Stores in which somebody put what does not belong there, with every digest right: no verb accepts it."""

import json
import shutil
from pathlib import Path

import pytest
import sealed
import stores
from command import answered
from identities import path, recipient
from sealed import KEYS, sealed_store
from stores import KIB, Vm

from nbdpull.core import errors
from nbdpull.crypto import identity_files, keys
from nbdpull.format import layout
from nbdpull.operations import compare, copy, listing, prune, restore, show, status, unlocking
from nbdpull.pulling import held_series
from nbdpull.repository import key_changes, keyring, marker, series_choice

MINE = ("--identity", path("age1"))
UUID = "3e3fce45-4f53-4fa7-bb32-11f34168b82b"
OTHER = "d2a2b4b3-3b1c-4b5e-8f0e-3b0f0a3b6d11"


@pytest.fixture(autouse=True)
def no_identity_given(monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def domain(root, name="vm1", uuid=UUID, points=2, **about):
    vm = Vm(root, name, uuid, **about)
    vm.add_disk("vda", 64 * KIB)
    for number in range(points):
        vm.write("vda", number * KIB, f"of {name} {number}".encode())
        vm.pull()
    return vm


# -- a pull into a store whose key was replaced -----------------------------------------------------------------------


def stolen(root):
    """Replace a store's master key by another one, wrapped for the same identity: a public key suffices for that."""
    shutil.rmtree(root / "@keys")
    (root / "nbdpull.json").unlink()
    for name in ("elsewhere/nbdpull.json", "elsewhere/@keys"):
        if name.endswith("json"):
            marker.create(str(root.parent / "elsewhere"), seal=key_changes.new([recipient("age1")], None))
        shutil.move(root.parent / name, root / name.partition("/")[2])


def begun(root, name="vm1", uuid=UUID):
    """Do what a pull does before it makes a point."""
    store = unlocking.for_pull(str(root), None, [path("age1")], pytest.fail)
    with held_series.for_new_point(series_choice.of_domain(store, name, uuid)) as held:
        return held


def test_no_pull_is_sealed_with_another_key_than_the_points_are(tmp_path, monkeypatch):
    root = tmp_path / "store"
    vm = domain(root, keys=sealed_store(root))
    assert len(begun(root).points) == 2 and len(begun(root, "vm2", OTHER).points) == 0
    stolen(root)
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))  # a host that does not know the store's key
    for about in ((vm.name, vm.uuid), ("vm2", OTHER)):  # a new domain, too
        with pytest.raises(errors.Foreign, match="not made with the key of this store") as caught:
            begun(root, *about)
        assert (caught.value.exit_code, caught.value.code) == (11, "foreign")


def test_no_pull_is_sealed_with_a_key_that_no_point_confirms(tmp_path):
    """An attacker who replaces the key damages the manifests, too, so that nobody sees that they have another mac."""
    root = tmp_path / "store"
    vm = domain(root, keys=sealed_store(root))
    other = domain(root, "vm2", OTHER, keys=vm_keys(root))
    for point in vm.points:
        manifest = vm.folder / point.id / "manifest.json"
        manifest.write_bytes(stores.flipped(manifest.read_bytes(), 200))
    assert len(begun(root).warnings) == 2  # the other domain proves the key
    for point in other.points:
        (other.folder / point.id / "manifest.json").write_bytes(b"")
    for about in ((vm.name, vm.uuid), ("vm3", "another")):
        with pytest.raises(
            errors.Damaged, match="has no readable point that was made with it: its marker and keys may"
        ):
            begun(root, *about)


def vm_keys(root):
    return keyring.keys_of(marker.open_store(str(root)), identity_files.given([path("age1")]))


def test_one_damaged_manifest_ends_no_pull(tmp_path):
    root = tmp_path / "store"
    vm = domain(root, keys=sealed_store(root))
    (vm.folder / vm.points[-1].id / "manifest.json").write_bytes(b"{}")
    [warning] = begun(root).warnings
    assert warning.startswith("a point of the series is ignored: ") and vm.points[-1].id in warning


def test_no_pull_is_written_in_clear_beside_what_is_sealed(tmp_path):
    """Even without an identity, as in a job that was written for another store."""
    root = tmp_path / "store"
    domain(root, keys=sealed_store(root))
    domain(tmp_path / "plain")
    shutil.copy(tmp_path / "plain/nbdpull.json", root / "nbdpull.json")
    store = unlocking.for_pull(str(root), None, [], pytest.fail)
    target = series_choice.of_domain(store, "vm1", UUID)
    with (
        pytest.raises(errors.Foreign, match="made in a sealed store, but nbdpull.json says that this one is not"),
        held_series.for_new_point(target),
    ):
        pass


# -- points of another domain -----------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "sealed"])
def mixed(request, tmp_path, monkeypatch):
    """(one domain, another one whose later points somebody copied to those of the first) in a store."""
    its_keys = KEYS if request.param == "sealed" else None
    vm, other = domain(tmp_path / "store", keys=its_keys), domain(tmp_path / "store", "vm2", OTHER, 3, keys=its_keys)
    shutil.copytree(other.folder, vm.folder, dirs_exist_ok=True)
    with sealed.opening(monkeypatch):
        yield vm, other


def restored(vm, domain_, point, out):
    return restore.restore(restore.Options(str(vm.root), str(out), domain_, point, ["vda"], "raw"))


def assert_restored(vm, wanted, point, out):
    [made] = restored(vm, vm.name, wanted, out).files.values()
    assert Path(made).read_bytes() == vm.images[point.id]["vda"]


def test_the_latest_is_never_that_of_another_domain(mixed, tmp_path):
    vm, other = mixed
    for wanted in ("latest", "2099-01-01"):
        with pytest.raises(errors.Foreign, match=f"a point of domain vm2 .uuid {OTHER}. among those of another one"):
            restored(vm, "vm1", wanted, tmp_path / "out")
    for wanted, point in (("latest", other.points[-1]), (other.points[0].id, other.points[0])):
        assert_restored(other, wanted, point, tmp_path / wanted)


def test_a_point_of_another_domain_is_not_restored_by_its_id(mixed, tmp_path):
    """By their ids, points of the domain itself can be restored."""
    vm, other = mixed
    with pytest.raises(errors.Foreign, match="a point of domain vm2"):
        restored(vm, "vm1", other.points[0].id, tmp_path / "out")
    for point in vm.points:
        assert_restored(vm, point.id, point, tmp_path / point.id)
    shown = show.show(show.Options(str(vm.root), other.points[0].id))  # it is in its own series, too
    assert shown.domain == "vm2"


def test_every_verb_reports_points_of_another_domain(mixed, tmp_path):
    vm, other = mixed
    root, ids = str(vm.root), {point.id for point in other.points}
    found = stores.verify_store(root)
    assert {damage.point for damage in found.damages} == ids and found.is_bad
    assert {each.point for each in found.verdicts if each.is_bad} == ids
    listed = listing.listing(listing.Options(root))
    assert len(listed.refused) == 3 and len(listed.points) == 5
    assert {each["domain"]: each["problems"] for each in status.status(status.Options(root)).domains} == {
        "vm1": ["unreadable"],
        "vm2": [],
    }
    pruned = prune.prune(prune.Options(root, keep_last=1, force=True))
    assert [bool(each.problem) for each in pruned.domains] == [True, False]
    assert {point.id for point in vm.points} < {*(each.name for each in vm.folder.iterdir())}
    copied = copy.copy(copy.Options(root, str(tmp_path / "copy")))
    assert all(isinstance(error, errors.Damaged) for error in copied.errors) and len(copied.errors) == 3
    assert len([*(tmp_path / "copy/vm1").glob("*/manifest.json")]) == 2
    assert len(compare.compare(compare.Options(root, str(tmp_path / "copy"))).errors) == 1
    with pytest.raises(errors.Foreign, match="nothing is written beside it"), held_series.for_new_point(vm.series):
        pass


def test_two_domains_of_one_name_leave_the_owner_of_the_series_unknown(tmp_path):
    vm = domain(tmp_path / "store")
    other = domain(tmp_path / "other", uuid=OTHER)
    shutil.copytree(other.folder, vm.folder, dirs_exist_ok=True)
    points, refused = vm.series.load()
    assert points == [] and {*refused} == {point.id for point in [*vm.points, *other.points]}
    heads, refused = vm.series.heads()
    assert heads == [] and {*refused} == {point.id for point in [*vm.points, *other.points]}
    with pytest.raises(errors.Foreign):
        vm.series.point()
    for point in [*vm.points, *other.points]:
        assert vm.series.point(point.id) == point


def test_a_domain_that_was_renamed_stays_one(tmp_path):
    vm = domain(tmp_path / "store")
    vm.name = "new"
    vm.write("vda", 0, b"renamed")
    vm.pull()
    other = domain(tmp_path / "store", "vm2", OTHER, 3)
    shutil.copytree(other.folder, vm.folder, dirs_exist_ok=True)
    assert [point.id for point in vm.series.load()[0]] == [point.id for point in vm.points]
    assert vm.series.point(vm.points[-1].id) == vm.points[-1]


def test_a_series_in_the_folder_of_another_domain_is_not_that_domain(tmp_path):
    """All of its points were replaced: no UUID shows that, but none of them has the name."""
    vm, other = domain(tmp_path / "store"), domain(tmp_path / "store", "vm2", OTHER)
    shutil.rmtree(vm.folder)
    shutil.copytree(other.folder, vm.folder)
    with pytest.raises(errors.StoreError, match="no domain vm1 in .*; it has: vm2"):
        restored(vm, "vm1", "latest", tmp_path / "out")
    assert restored(vm, "vm2", "latest", tmp_path / "out").domain == "vm2"


# -- the order of points ----------------------------------------------------------------------------------------------


@pytest.fixture
def demoted(tmp_path):
    """A sealed store whose newest manifest claims to be the oldest."""
    root = tmp_path / "store"
    vm = domain(root, points=3, keys=sealed_store(root))
    manifest = vm.folder / vm.points[-1].id / "manifest.json"
    document = {**json.loads(manifest.read_bytes()), "sequence": 0}
    del document["digest"]
    manifest.write_bytes(layout.seal(document))
    return vm


def test_what_orders_the_points_is_proved_before_it_is_used(demoted, tmp_path, capsys):
    with pytest.raises(
        errors.Foreign, match=f"{demoted.points[-1].id}/manifest.json: not made with the key.*it may be"
    ):
        demoted.series.point()
    assert demoted.series.newest() == demoted.points[1]
    exit_code, _, complaints = answered(capsys, "restore", demoted.root, "-o", tmp_path / "out", *MINE)
    assert exit_code == 11 and "it may be the point that you ask for" in complaints
    for words in (["verify", demoted.root], ["verify", demoted.root, "--quick"]):
        exit_code, output, _ = answered(capsys, *words, *MINE)
        assert exit_code == 11 and "not made with the key of this store" in output


def test_a_store_without_points_proves_no_key(tmp_path):
    """So its first pull continues: only the identity can say which key it is for."""
    root = tmp_path / "store"
    sealed_store(root)
    stolen(root)
    assert len(begun(root).points) == 0
    assert keys.of_master(bytes(32)).id != marker.master_of(marker.open_store(str(root)))
