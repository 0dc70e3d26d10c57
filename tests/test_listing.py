"""What a store holds, as plain values: the shapes that programs read from --json."""

import json

import pytest
from stores import KIB, ROLLING, Vm, chain, damaged, directory_of, flipped, index_of, page_of

from nbdpull.core import errors, extents
from nbdpull.format import layout, pages
from nbdpull.operations import index, listing, show
from nbdpull.operations.description import describe
from nbdpull.operations.store_choice import find_point
from nbdpull.storage.directory import DirectoryStore


def points_of(vm):
    found = listing.listing(listing.Options(str(vm.root)))
    return found.points, found.refused


def records(vm, disk, point="latest"):
    return list(index.index(index.Options(str(vm.root), point, disk)).records)


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("listing") / "store", size=400_000, **ROLLING)


def test_a_point(vm):
    first, second = vm.points[:2]
    described = describe(second, frozenset(), [])
    assert described == json.loads(json.dumps(described)), "it is plain"
    disks = described.pop("disks")
    assert described == {
        "id": second.id,
        "domain": "vm1",
        "uuid": vm.uuid,
        "created": "2026-11-22T19:45:00+00:00",
        "as_of": "2026-11-22T19:44:00+00:00",
        "since": "chk-of-the-parent",
        "checkpoint": f"nbdpull-{second.id}",
        "parent": first.id,
        "partial": False,
        "consistency": "crash-consistent",
        "consistency_reason": "",
        "passwords": [],
        "not_in_point": [],
        "seconds": {"copy": 0.5},
        "versions": {"nbdpull": "0.1.0"},
        "locked": None,
        "verified": None,
        "drilled": None,
        "pinned": None,
        "digests": {},
    }
    entry = second.manifest.disk("vda")
    assert disks[0] == {
        "name": "vda", "mode": "incremental", "reason": "checkpoint", "size": entry.size,
        "dirty_bytes": 0, "zero_bytes": 0, "read_bytes": 0, "stored_bytes": entry.stored_bytes,
        "deduped_bytes": 0,
    }  # fmt: skip
    assert [disk["name"] for disk in disks] == ["vda", "vdb"]


def test_members_that_a_first_point_lacks(vm):
    described = describe(vm.points[0], frozenset(), [])
    assert described["parent"] is None
    assert [disk["mode"] for disk in described["disks"]] == ["full", "full"]


def test_each_manifest_is_read_once(vm, monkeypatch):
    """And no directory: a list of a thousand points takes half a second."""
    paths, read = [], DirectoryStore.read_raw

    def noted(store, path, *limit):
        paths.append(path)
        return read(store, path, *limit)

    monkeypatch.setattr(DirectoryStore, "read_raw", noted)
    listing.listing(listing.Options(str(vm.root)))
    assert len([path for path in paths if path.endswith(layout.MANIFEST)]) == len(vm.points)
    assert not [path for path in paths if path.endswith(".directory")]


def test_points_of_every_domain(tmp_path):
    made = []
    for name in ("vm1", "vm/2"):
        vm = Vm(tmp_path / "store", name)
        vm.add_disk("vda", 1000)
        made += [(name, vm.pull().id), (name, vm.pull().id)]
    found, refused = points_of(vm)
    assert sorted((point["domain"], point["id"]) for point in found) == sorted(made)
    assert refused == []


LONG = ["\u65e5" * 85, "\u65e5" * 85 + "b", "\U0001f4be" * 85, "x" * 256, "vm~0123456789abcdef"]


def test_domains_whose_names_are_not_valid_directory_names(tmp_path):
    """The points have the name, if any of them can be read."""
    made = {}
    for name in LONG:
        vm = Vm(tmp_path / "store", name)
        vm.add_disk("vda", 1000)
        made[name] = vm.pull().id
    found, refused = points_of(vm)
    assert ({point["domain"]: point["id"] for point in found}, refused) == (made, [])
    for name, point in made.items():
        series, last = find_point(str(vm.root), "latest", name)
        assert (series.domain, last.id) == (name, point)
        assert find_point(str(vm.root), point)[0].domain == name
    with damaged(vm.folder / made[name] / "manifest.json", b""), pytest.raises(errors.Damaged):
        find_point(str(vm.root), made[name])


def test_a_folder_of_the_same_name_elsewhere_is_not_taken_for_the_domains_own(tmp_path):
    """Before names were shortened, a name that looks like a shortened one was a directory of its own."""
    vm = Vm(tmp_path / "store", LONG[-1])
    vm.add_disk("vda", 1000)
    old = vm.pull()
    vm.folder.rename(vm.root / vm.name)
    assert find_point(str(vm.root), "latest", vm.name)[1] == old
    again = Vm(vm.root, vm.name)
    again.add_disk("vda", 1000)
    new = again.pull()
    assert find_point(str(vm.root), "latest", vm.name)[1] == new
    assert len(points_of(vm)[0]) == 2


def test_an_empty_store(tmp_path):
    vm = Vm(tmp_path)
    assert points_of(vm) == ([], [])
    vm.store.make_folder("vm1")
    assert points_of(vm) == ([], [])


def test_one_damaged_manifest_hides_no_other_point(vm):
    path = vm.folder / vm.points[1].id / "manifest.json"
    with damaged(path, flipped(path.read_bytes(), 99)):
        found, refused = points_of(vm)
    assert [point["id"] for point in found] == [vm.points[0].id, vm.points[2].id]
    assert len(refused) == 1 and str(path) in str(refused[0])


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path, monkeypatch):
    made = [Vm(tmp_path, name) for name in ("vm1", "vm2", "vm3")]
    for each in made:
        each.add_disk("vda", 1000)
        each.pull()
    folders = type(made[0].store).folders

    def fails(store, path=""):
        if path == "vm2":
            raise errors.StoreError(f"cannot read {path}: Permission denied")
        return folders(store, path)

    monkeypatch.setattr(type(made[0].store), "folders", fails)
    found, refused = points_of(made[0])
    assert [point["domain"] for point in found] == ["vm1", "vm3"]
    assert [(error.exit_code, str(error)) for error in refused] == [(10, "cannot read vm2: Permission denied")]


def test_find_point(vm):
    series, point = find_point(str(vm.root), "latest")
    assert (series.domain, point) == ("vm1", vm.points[-1])
    assert find_point(str(vm.root), vm.points[0].id)[1] == vm.points[0]
    with pytest.raises(errors.NoSuchPoint, match=vm.points[0].id):
        find_point(str(vm.root), "20300101T000000Z-aaaaaa")
    with pytest.raises(errors.StoreError):
        find_point(str(vm.root), "latest", "vm9")


def test_an_id_is_found_in_whichever_domain_has_it(tmp_path, monkeypatch):
    """No point of another domain is read."""
    one, two = Vm(tmp_path, "vm1"), Vm(tmp_path, "vm2")
    for vm in (one, two):
        vm.add_disk("vda", 1000)
        vm.pull()
    read, asked = DirectoryStore.read, set()

    def noted(store, path, *limit):
        asked.add(path.partition("/")[0])
        return read(store, path, *limit)

    monkeypatch.setattr(DirectoryStore, "read", noted)
    for vm in (one, two):
        asked.clear()
        series, point = find_point(str(tmp_path), vm.points[0].id)
        assert (series.domain, point) == (vm.name, vm.points[0]) and asked - {"nbdpull.json"} == {vm.name}
    with pytest.raises(errors.StoreError, match="vm1, vm2"):
        find_point(str(tmp_path), "latest")
    with pytest.raises(errors.NoSuchPoint):
        find_point(str(tmp_path), one.points[0].id, "vm2")


def test_a_definition_is_shown_where_another_point_cannot_be_read(vm, monkeypatch):
    def load(_):
        raise errors.StoreError("manifest.json: Input/output error")

    monkeypatch.setattr("nbdpull.repository.series.Series.load", load)
    point = vm.points[0]
    found = show.show(show.Options(str(vm.root), point.id, definition=True))
    assert (found.domain, found.point, found.definition) == (vm.name, None, vm.series.definition(point))


def test_records(vm):
    point = vm.points[-1]
    listed = records(vm, "vda")
    directory = directory_of(vm, point, "vda")
    [window] = directory.windows()
    stored = window.flat()
    assert [(r["offset"], r["length"]) for r in listed] == stored[["offset", "length"]].tolist()
    for one, record in zip(listed, stored):
        if record["kind"] == extents.ZERO:
            assert set(one) == {"offset", "length", "kind"} and one["kind"] == "zero"
        else:
            assert one["kind"] == "data"
            assert one["path"] == directory.files[record["chunk"]].path
            assert one["digest"] == record["digest"].tobytes().hex()
            assert [one[name] for name in ("position", "stored", "raw", "skip")] == [
                record[name] for name in ("position", "stored", "raw", "skip")
            ]
    json.dumps(listed)


def test_a_range_that_reads_as_zero_again(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 512 * KIB)
    vm.write("vda", 0, b"x" * 512 * KIB)
    vm.pull()
    vm.zero("vda", 0, 4096)
    vm.pull()
    zero, *data = records(vm, "vda")
    assert zero == {"offset": 0, "length": 4096, "kind": "zero"} and {one["kind"] for one in data} == {"data"}


def test_records_of_no_disk(vm):
    with pytest.raises(errors.NoSuchDisk, match="has no disk vdz; it has: vda, vdb"):
        records(vm, "vdz")


def test_records_of_a_damaged_index(vm):
    point = vm.points[-1]
    path, page = index_of(vm, point, "vda"), page_of(vm, point, "vda")
    fewer = pages.compressed(pages.encode_page(page._replace(records=page.records[:-1])))  # sound, not the one stored
    for data in (flipped(path.read_bytes(), 30), fewer):
        with damaged(path, data), pytest.raises(errors.Damaged, match="vda.index"):
            records(vm, "vda")
