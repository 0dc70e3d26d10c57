"""A series: what counts as a point, their order, and that a point proves itself and needs no other."""

import errno
import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest
from stores import Vm, chain, damaged, flipped, resealed

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.repository import half_points, new_point, series, series_choice
from nbdpull.repository.image import Image
from nbdpull.repository.marker import open_or_create
from nbdpull.storage import beneath
from nbdpull.storage.directory import DirectoryStore


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("pulled") / "store", points=3, size=300_000)


@pytest.fixture
def vm(original, tmp_path):
    return original.copy(tmp_path / "store")


def ids(points):
    return [point.id for point in points]


def manifest_of(vm, point):
    return vm.folder / point.id / "manifest.json"


def test_points_in_the_order_of_their_commits(vm):
    assert ids(vm.series.points()) == ids(vm.points)
    assert vm.series.point().id == vm.points[-1].id
    assert vm.series.point(vm.points[0].id) == vm.points[0]


def test_names_and_times_of_files_do_not_define_the_order(tmp_path):
    """Clocks may go backwards, and a copied store has new times."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", 1000)
    years = list(range(2020, 2032))
    random.Random(1).shuffle(years)
    for number, year in enumerate(years):
        point = vm.pull(point_id=f"{year}0101T000000Z-00000{number:x}")
        os.utime(vm.folder / point.id, (1e9 - number, 1e9 - number))
        os.utime(manifest_of(vm, point), (1e9 - number, 1e9 - number))
    assert [point.id[:4] for point in vm.series.points()] == [str(year) for year in years]
    assert vm.series.point().id == vm.points[-1].id


def test_folders_that_are_not_points(vm):
    (vm.folder / "20300101T000000Z-aaaaaa").mkdir()
    (vm.folder / "20300101T000000Z-aaaaaa" / "vda.index").write_bytes(b"x")
    (vm.folder / "20300101T000000Z-bbbbbb").mkdir()
    (vm.folder / "20300101T000000Z-bbbbbb" / "manifest.json.0a1b2c3d.draft").write_bytes(b"{")
    (vm.folder / "notes").mkdir()
    (vm.folder / "notes.txt").write_text("mine")
    assert ids(vm.series.points()) == ids(vm.points)
    assert half_points.names(vm.series) == [f"20300101T000000Z-{c * 6}" for c in "ab"]
    assert vm.series.point().id == vm.points[-1].id
    with pytest.raises(errors.NoSuchPoint, match="is no point: it was removed, or never completed"):
        vm.series.point("20300101T000000Z-aaaaaa")


def test_no_such_point(vm):
    with pytest.raises(errors.NoSuchPoint) as caught:
        vm.series.point("20300101T000000Z-aaaaaa")
    assert all(point.id in str(caught.value) for point in vm.points)
    assert caught.value.exit_code == 10
    with pytest.raises(errors.NoSuchPoint):
        vm.series.point("..")
    with pytest.raises(errors.NoSuchPoint, match="no completed point of vm2"):
        series.Series(vm.store, "vm2").point()


def test_the_newest_is_never_guessed(vm):
    """If a manifest cannot be read, it may be that of the newest point: "latest" must not be an older one."""
    for victim in vm.points:
        with damaged(manifest_of(vm, victim), b"{}"):
            with pytest.raises(errors.Damaged, match=f"{victim.id}.*may be the point that you ask for: name"):
                vm.series.point()
            with pytest.raises(errors.Damaged):
                vm.series.points()
            good, refused = vm.series.load()
            assert ids(good) == [point.id for point in vm.points if point is not victim]
            assert list(refused) == [victim.id] and victim.id in str(refused[victim.id])


@pytest.mark.parametrize("seed", range(4))
def test_the_latest_is_the_one_that_decoding_all_gives(tmp_path, seed):
    """Whatever was damaged, renamed, lost, or sealed in another way: the quick search never returns another one.
    (Except if somebody has sealed what no writer makes, which claims to be older.)"""
    rng, vm = random.Random(seed), Vm(tmp_path / "store")
    vm.add_disk("vda", 4096)
    for _ in range(5):
        vm.pull(rng.choice(["last", "nothing", "elsewhere"]))
    points = [*vm.points]
    for number in range(60):
        victim = rng.choice(points)
        path = manifest_of(vm, victim)
        data = path.read_bytes()
        other = layout.unseal(data, "")
        other["sequence"] = rng.choice([0, 3, 99, other["sequence"]])
        others = [flipped(data, rng.randrange(len(data)), rng.randrange(8)), None,
                  layout.seal(other), layout.seal({**other, "requires": ["x"]}), layout.seal({**other, "domain": "b"}),
                  layout.seal({"format": "nbdpull/3", "requires": []}), b"", manifest_of(vm, points[0]).read_bytes(),
                  layout.seal({name: other[name] for name in reversed(other) if name != "digest"})]  # fmt: skip
        with damaged(path, others[number % len(others)]):
            assert answer(vm.series.point) == answer(vm.series._last)
            good = vm.series.load()[0]
            assert vm.series.newest() == (good[-1] if good else None)


def answer(function):
    try:
        return function()
    except (errors.Damaged, errors.StoreError) as error:
        return type(error), str(error)


def test_partial_points_are_never_the_latest(tmp_path):
    """Whole images can be made of all disks of the latest, if there is such a point. In the others, each disk that is
    not whole is named."""
    vm = Vm(tmp_path / "store")
    for disk in ("vda", "vdb"):
        vm.add_disk(disk, 4096)
    changes = vm.pull("elsewhere")
    assert vm.series.point() == changes
    on_it = vm.pull()
    assert vm.series.point() == on_it
    mixed = vm.pull("elsewhere", disks=["vda"])
    whole = vm.pull("nothing")
    one_disk = vm.pull(disks=["vda"])
    again = vm.pull("elsewhere", disks=["vdb"])
    vm.add_disk("vdc", 4096)
    last = vm.pull()  # on a point that has vdb alone, and that not whole: vda and vdc are in full
    both = frozenset({"vda", "vdb"})
    expected = [both, both, frozenset({"vda"}), frozenset(), frozenset(), frozenset({"vdb"}), frozenset({"vdb"})]
    made = [changes, on_it, mixed, whole, one_disk, again, last]
    assert [point.manifest.partial for point in made] == expected
    assert vm.series.point() == one_disk
    os.remove(manifest_of(vm, changes))
    assert vm.series.points()[0].manifest.partial == both


def test_a_point_of_a_later_format_is_refused_alone(vm):
    data = layout.seal({"format": "nbdpull/3", "requires": []})
    with damaged(manifest_of(vm, vm.points[1]), data):
        good, refused = vm.series.load()
        assert ids(good) == [vm.points[0].id, vm.points[2].id]
        assert {point: type(error) for point, error in refused.items()} == {vm.points[1].id: errors.FormatTooNew}


def test_a_renamed_folder(vm):
    other = "20300101T000000Z-aaaaaa"
    os.rename(vm.folder / vm.points[0].id, vm.folder / other)
    with pytest.raises(errors.Damaged, match=f"renamed; its point is {vm.points[0].id}"):
        vm.series.point(other)
    assert vm.series.parent(vm.points[1]) is None


# -- parents and directories ------------------------------------------------------------------------------------------


def test_parents(vm):
    assert vm.series.parent(vm.points[0]) is None
    assert vm.series.parent(vm.points[1]) == vm.points[0]
    assert vm.series.parent(vm.points[2]) == vm.points[1]
    assert vm.points[1].manifest.parent.sha256 == hashlib.sha256(manifest_of(vm, vm.points[0]).read_bytes()).hexdigest()


@pytest.mark.parametrize("how", ["removed", "another", "damaged", "of a later format"])
def test_no_point_needs_its_parent(vm, how):
    """A note is not followed if what it names does not exist, or is another one; this has no other effect."""
    path = manifest_of(vm, vm.points[0])
    if how == "another":  # sound in itself; only the digest in the child shows it
        resealed(vm, vm.points[0], created="2030-01-01T00:00:00+00:00")
    elif how == "removed":
        path.unlink()
    else:
        later = layout.seal({"format": "nbdpull/3", "requires": []})
        path.write_bytes(flipped(path.read_bytes(), 200) if how == "damaged" else later)
    assert vm.series.parent(vm.points[1]) is None
    assert vm.series.parent(vm.points[2]) == vm.points[1]
    for point in vm.points[1:]:
        for disk in vm.disks:
            with Image(vm.series, point, disk) as image:
                assert image.head(image.size) == vm.images[point.id][disk]


def test_the_directory_of_a_disk(vm):
    for point in vm.points:
        found = vm.series.directory(point, "vda")
        assert (found.disk, found.size, found.whole) == ("vda", len(vm.images[point.id]["vda"]), True)
        assert {entry.path.split("/")[0] for entry in found.files} <= {*ids(vm.points)}
    with pytest.raises(errors.NoSuchDisk, match="has no disk vdz; it has: vda, vdb"):
        vm.series.directory(vm.points[0], "vdz")


def test_a_disk_that_is_not_whole(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 10_000)
    vm.write("vda", 5, b"abc")
    first = vm.pull(since="elsewhere")
    vm.write("vda", 7, b"def")
    second = vm.pull()
    assert vm.series.parent(first) is None and vm.series.parent(second) == first
    for point in (first, second):
        with pytest.raises(errors.PartialPoint, match="chk-of-the-parent.*not a whole image") as caught:
            vm.series.directory(point, "vda")
        assert caught.value.exit_code == errors.PartialPoint.exit_code
        assert not vm.series.directory(point, "vda", partial=True).whole


# -- files ------------------------------------------------------------------------------------------------------------


def test_file_flaws(vm):
    entry = vm.points[0].manifest.disk("vda").directory
    path = vm.folder / entry.path
    assert vm.series.file_flaw(entry) is None
    for data, message in [
        (None, "is missing"),
        (path.read_bytes()[:-1], f"has {entry.size - 1} bytes, {entry.size} were stored"),
        (flipped(path.read_bytes(), 10), "is damaged"),
    ]:
        with damaged(path, data):
            assert str(path) in vm.series.file_flaw(entry) and message in vm.series.file_flaw(entry)


# -- making a point ---------------------------------------------------------------------------------------------------


def test_a_point_that_is_not_committed_leaves_nothing(vm):
    with (
        pytest.raises(KeyError),
        half_points.writing(vm.series),
        new_point.begun(vm.series, "20300101T000000Z-aaaaaa") as new,
    ):
        new.add_file("domain.xml", b"<domain/>")
        raise KeyError
    assert sorted(os.listdir(vm.folder)) == sorted(ids(vm.points))


def test_a_file_is_referred_to_where_the_parent_has_it_sound(vm):
    """Otherwise a point would be damaged from its first day on."""
    parent = vm.points[-1]
    path = vm.folder / parent.id / "domain.xml"
    xml = vm.series.read_file(parent, "domain.xml")
    for data, owner in ((xml, parent.id), (b"damaged", "20300101T000000Z-aaaaaa")):
        with damaged(path, data), new_point.begun(vm.series, "20300101T000000Z-aaaaaa") as new:
            new.add_file("domain.xml", xml, parent)
            assert new._files[0].path == f"{owner}/domain.xml"


def test_a_failed_commit_leaves_nothing(vm, monkeypatch):
    def publish(path, data, protection=None):
        raise errors.OutputFull("cannot create")

    monkeypatch.setattr(vm.store, "publish", publish)
    with pytest.raises(errors.OutputFull):
        vm.pull()
    assert sorted(os.listdir(vm.folder)) == sorted(ids(vm.points))


@pytest.mark.parametrize("removable", [True, False])
def test_a_commit_that_fails_behind_its_manifest(vm, monkeypatch, removable):
    """The manifest has its name, and the last fsync fails: the removal must never be seen half done."""
    remove, unlink, seen = beneath.remove, os.unlink, []

    def failing(path, data, protection=None):
        type(vm.store).publish(vm.store, path, data)
        raise errors.OutputError("Input/output error")

    def removing(root, path):
        seen.append((Path(root) / path / "manifest.json").exists())
        remove(root, path)

    def unlinking(path, **how):
        if not removable and str(path).endswith("manifest.json"):
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, **how)

    monkeypatch.setattr(vm.store, "publish", failing)
    monkeypatch.setattr(beneath, "remove", removing)
    monkeypatch.setattr(os, "unlink", unlinking)
    vm.write("vda", 0, b"x")
    with pytest.raises(errors.OutputError):
        vm.pull()
    monkeypatch.undo()
    points = vm.series.points()
    assert len(points) == 3 + (not removable) and seen == [False] * removable
    assert all(vm.series.file_flaw(entry) is None for entry in points[-1].manifest.all_files())


def test_what_a_reader_would_refuse_is_not_published(vm):
    vm.name = "x" * 5000  # the domain that the manifest names
    with pytest.raises(errors.Damaged, match="domain is 'xxx"):
        vm.pull()
    assert sorted(os.listdir(vm.folder)) == sorted(ids(vm.points))


def test_no_point_takes_anothers_folder(vm):
    with pytest.raises(errors.OutputExists), new_point.begun(vm.series, vm.points[0].id):
        pass
    assert vm.series.point(vm.points[0].id) == vm.points[0]


def test_the_manifest_comes_last(vm, monkeypatch):
    """Nothing counts before it exists, so everything else has to exist, and be durable, before."""
    before, synced = [], []
    publish, sync_folder = vm.store.publish, vm.store.sync_folder
    monkeypatch.setattr(vm.store, "sync_folder", lambda path: (synced.append(path), sync_folder(path)))

    def watched(path, data, protection=None):
        before.extend(sorted(os.listdir(os.path.dirname(vm.store.path(path)))))
        assert synced[-1] == os.path.dirname(path)
        publish(path, data)

    monkeypatch.setattr(vm.store, "publish", watched)
    vm.write("vda", 0, b"x")
    point = vm.pull()
    assert sorted(os.listdir(vm.folder / point.id)) == sorted([*before, "manifest.json"])
    assert {"SHA256SUMS", "domain.xml", "vda.0000.zst", "vda.index", "vda.directory"} <= set(before)


def test_one_writer_at_a_time(vm):
    with half_points.writing(vm.series):
        with (
            pytest.raises(errors.Busy, match="pull vm1 when it has ended"),
            half_points.writing(series.Series(vm.store, "vm1")),
        ):
            raise AssertionError("two of them")
        with half_points.writing(series.Series(vm.store, "vm2")):
            pass
        assert ids(vm.series.points()) == ids(vm.points), "reading goes on"


# -- which series -----------------------------------------------------------------------------------------------------


def test_all_series(tmp_path):
    names = ["vm1", "vm 2/ü", "..", "%41"]
    for name in names:
        vm = Vm(tmp_path / "store", name)
        vm.add_disk("vda", 1000)
        vm.pull()
    (tmp_path / "store" / "lost+found").mkdir()
    assert sorted(each.domain for each in series_choice.all_series(vm.store)) == sorted(names)
    for name in names:
        assert series_choice.only_series(vm.store, name).point().manifest.domain == name


def test_the_only_series(tmp_path):
    store = open_or_create(str(tmp_path))
    with pytest.raises(errors.StoreError, match="no domain at all"):
        series_choice.only_series(store)
    Vm(tmp_path, "vm1").store.make_folder("vm1")
    assert series_choice.only_series(store).domain == "vm1"
    store.make_folder("vm2")
    with pytest.raises(errors.StoreError, match="more than one domain.*vm1, vm2.*--domain"):
        series_choice.only_series(store)
    assert series_choice.only_series(store, "vm2").domain == "vm2"
    with pytest.raises(errors.StoreError, match="no domain vm3 .*it has: vm1, vm2"):
        series_choice.only_series(store, "vm3")


def renamed_series(root):
    """Return a Vm with three points, the last of them of a domain with another name."""
    vm = Vm(root, "vm1")
    vm.add_disk("vda", 1000)
    for name in ("vm1", "vm1", "new"):
        vm.name = name
        vm.pull()
    return vm


def test_a_series_has_the_name_of_its_newest_point(tmp_path):
    vm = renamed_series(tmp_path)
    assert [(each.domain, each.folder) for each in series_choice.all_series(vm.store)] == [("new", "vm1")]
    for domain in ("new", "vm1", vm.uuid, vm.uuid.upper(), None):
        found = series_choice.only_series(vm.store, domain)
        assert (found.domain, found.folder, found.point().id) == ("new", "vm1", vm.points[-1].id), domain
    with pytest.raises(errors.StoreError, match="no domain vm2 .*it has: new$"):
        series_choice.only_series(vm.store, "vm2")


def test_a_pull_finds_the_series_by_the_uuid(tmp_path):
    vm = renamed_series(tmp_path)
    other = Vm(vm.root, "vm2", uuid="d2a2b4b3-3b1c-4b5e-8f0e-3b0f0a3b6d11")
    other.add_disk("vda", 1000)
    other.pull()
    vm.store.make_folder("lost+found")
    vm.store.make_folder("empty")
    for name, uuid, folder in [
        ("vm1", vm.uuid, "vm1"), ("new", vm.uuid, "vm1"), ("empty", vm.uuid, "vm1"), ("vm2", vm.uuid, "vm1"),
        ("vm2", other.uuid, "vm2"), ("vm1", other.uuid, "vm2"), ("vm3", "another", "vm3"), ("vm1", "another", "vm1"),
    ]:  # fmt: skip
        found = series_choice.of_domain(vm.store, name, uuid)
        assert (found.domain, found.folder) == (name, folder), (name, uuid)
    with pytest.raises(errors.OtherDomain, match=f"another domain, vm1 .uuid {vm.uuid}, this one is another"):
        found = series_choice.of_domain(vm.store, "vm1", "another")
        found.require_of(found.points(), "another")


def test_a_pull_prefers_the_original_to_a_copy(tmp_path):
    vm = renamed_series(tmp_path)
    shutil.copytree(vm.folder, vm.root / "a copy")
    shutil.copytree(vm.folder, vm.root / "vm1-copy")
    assert series_choice.of_domain(vm.store, "newest", vm.uuid).folder == "vm1"


def test_one_damaged_manifest_hides_no_series_from_a_pull(tmp_path):
    vm = renamed_series(tmp_path)
    for name in sorted(point.id for point in vm.points)[:2]:
        (vm.folder / name / "manifest.json").write_bytes(b"")
    assert series_choice.of_domain(vm.store, "new", vm.uuid).folder == "vm1"


def test_a_pull_leaves_no_series_that_cannot_be_read_for_a_copy(tmp_path):
    """The pull reports the damage there, and nothing else would."""
    vm = renamed_series(tmp_path)
    shutil.copytree(vm.folder, vm.root / "vm1-copy")
    for point in vm.points:
        (vm.folder / point.id / "manifest.json").write_bytes(b"")
    assert series_choice.of_domain(vm.store, "vm1", vm.uuid).folder == "vm1"
    shutil.rmtree(vm.folder)
    vm.folder.symlink_to(tmp_path / "vm1-copy")
    assert series_choice.of_domain(vm.store, "vm1", vm.uuid).folder == "vm1"


def test_a_folder_that_may_not_be_read_hides_no_other(tmp_path, monkeypatch):
    vm = renamed_series(tmp_path)
    vm.store.make_folder("others")
    opened = beneath.opened_folder

    def refused(root, path=""):
        if path == "others":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(root, path)

    monkeypatch.setattr(beneath, "opened_folder", refused)
    with pytest.raises(errors.StoreError, match="others: Permission denied"):
        series.Series(vm.store, "others").load()
    assert series_choice.only_series(vm.store, "new").folder == "vm1"
    assert series_choice.of_domain(vm.store, "new", vm.uuid).folder == "vm1"
    with pytest.raises(errors.StoreError, match="others: Permission denied"):
        series_choice.of_domain(vm.store, "others", vm.uuid)


def test_two_domains_of_one_name(tmp_path):
    """One was renamed to the former name of the other."""
    vm = renamed_series(tmp_path)
    other = Vm(vm.root, "new", uuid="d2a2b4b3-3b1c-4b5e-8f0e-3b0f0a3b6d11")
    other.add_disk("vda", 1000)
    other.pull()
    message = f"it has: new .uuid {other.uuid}., new .uuid {vm.uuid}.; choose with --domain"
    for domain in (None, "new"):
        with pytest.raises(errors.StoreError, match=f"more than one domain.*{message}"):
            series_choice.only_series(vm.store, domain)
    for each in (vm, other):
        assert series_choice.only_series(vm.store, each.uuid).point().manifest.uuid == each.uuid
    assert series_choice.only_series(vm.store, "vm1").folder == "vm1"


def of_several_days(root, name, *days, uuid="3e3fce45-4f53-4fa7-bb32-11f34168b82b"):
    """A Vm with a point for each day of a month, in that order."""
    vm = Vm(root, name, uuid)
    vm.add_disk("vda", 1000)
    for number, day in enumerate(days):
        vm.pull(point_id=f"202611{day:02}T194500Z-0000000{number}")
    return vm


def test_naming_a_domain_reads_one_point_of_every_other(tmp_path, monkeypatch):
    """There may be a hundred others with a thousand points each."""
    for number in range(4):
        vm = of_several_days(tmp_path, f"vm{number}", *range(1, 9), uuid=f"{number}e3fce45-4f53-4fa7-bb32-11f34168b82b")
    read, asked = DirectoryStore.read, []

    def noted(store, path, *limit):
        asked.append(path)
        return read(store, path, *limit)

    monkeypatch.setattr(DirectoryStore, "read", noted)
    for domain in ("vm1", "1e3fce45-4f53-4fa7-bb32-11f34168b82b"):
        asked.clear()
        found, point = series_choice.only_point(vm.store, domain)
        assert (found.domain, point.id) == ("vm1", "20261108T194500Z-00000007")
        assert {path.partition("/")[2] for path in asked if not path.startswith("vm1/")} == {
            f"{point.id}/manifest.json"
        }


def test_a_domain_is_found_though_a_clock_went_back_as_it_was_renamed(tmp_path):
    vm = of_several_days(tmp_path, "vm1", 8)
    vm.name = "new"
    newest = vm.pull(point_id="20261101T194500Z-00000001")
    of_several_days(tmp_path, "vm2", 1, 2, uuid="d2a2b4b3-3b1c-4b5e-8f0e-3b0f0a3b6d11")
    for domain in ("new", "vm1"):
        found, point = series_choice.only_point(vm.store, domain)
        assert (found.domain, found.folder, point.id) == ("new", "vm1", newest.id)


def test_reading_changes_nothing(vm):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in [vm.root, *vm.root.rglob("*")]}

    before = state()
    vm.series.points()
    vm.series.directory(vm.points[-1], "vda").window(0)
    series_choice.only_series(vm.store)
    assert state() == before


def test_a_folder_without_a_point_is_no_domain_to_choose_from(tmp_path):
    """A first pull that fails leaves one; nothing else in the store could be restored without --domain."""
    vm = chain(tmp_path / "store")
    (tmp_path / "store" / "vm2").mkdir()
    assert series_choice.only_series(vm.store).domain == vm.name
    with pytest.raises(errors.StoreError, match="no domain vm3"):
        series_choice.only_series(vm.store, "vm3")


def test_a_point_that_is_removed_as_the_others_are_read(vm, monkeypatch):
    """It is no damage; even if sizes come from a listing that still has it, as in a bucket."""
    gone, read, size = f"vm1/{vm.points[1].id}/manifest.json", DirectoryStore.read, DirectoryStore.size

    def removed(self, path, *limit):
        if path == gone and os.path.exists(self.path(path)):
            os.remove(self.path(path))
        return read(self, path, *limit)

    monkeypatch.setattr(DirectoryStore, "read", removed)
    monkeypatch.setattr(DirectoryStore, "size", lambda self, path: 1 if path == gone else size(self, path))
    assert ids(vm.series.points()) == [vm.points[0].id, vm.points[2].id]
