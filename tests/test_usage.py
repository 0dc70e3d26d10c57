"""usage: its numbers against the space that is freed when a point is really removed, and against a read of every
frame."""

import random

import pytest
import stores
from command import answered as said
from command import answered_json as run
from stores import KIB, MIB, Vm, daily, damaged, directory_of, files, ids

from nbdpull.format import layout
from nbdpull.repository import half_points, live_frames, removal, repack, usage
from nbdpull.storage.directory import DirectoryStore

# -- naive models -----------------------------------------------------------------------------------------------------


def remove(series, point, grace=0.0):
    with half_points.writing(series):
        removal.remove(series, point)
        return removal.sweep(series, grace)


def stored(folder):
    """Return the size of all files of a series except manifests and the like, and findings."""
    manifests = (layout.MANIFEST, half_points.REMOVED, layout.REPACKED)
    return sum(path.stat().st_size for path in files(folder) if path.name not in manifests and path.parent != folder)


def comes_free(vm, point, waiting, folder):
    """Return how much space the removal of a point frees in a copy, without what would have been freed anyway."""
    twin = vm.copy(folder)
    before = stored(twin.folder)
    remove(twin.series, point)
    return before - stored(twin.folder) - waiting


def frames(vm):
    """Return ({path: bytes}, {path: {position: bytes}}) of the files that points name, and of what they show of
    them."""
    size, shown = {}, {}
    for point in vm.series.points():
        for entry in point.manifest.all_files():
            size[entry.path], shown[entry.path] = entry.size, {0: entry.size}
        for disk in point.disks:
            directory = directory_of(vm, point, disk)
            for entry in directory.files:
                size[entry.path] = entry.size
            for ref in directory.pages:
                shown.setdefault(directory.files[ref["file"]].path, {})[int(ref["position"])] = int(ref["stored"])
            for record in (record for window in directory.windows() for record in window.flat()):
                if record["kind"] == 0:
                    path = directory.files[record["chunk"]].path
                    shown.setdefault(path, {})[int(record["position"])] = int(record["stored"])
    return size, {path: sum(shown.get(path, {}).values()) for path in size}


def dead(vm):
    """Return {directory: bytes of its files that no point shows}, of files that were not moved."""
    (size, shown), found = frames(vm), {}
    for path in size:
        folder = path.partition("/")[0]
        found[folder] = found.get(folder, 0) + size[path] - shown[path]
    return found


def made(root, rng, points):
    """Return a Vm of random pulls, of which some were removed: a while ago, or just now."""
    vm = Vm(root)
    vm.add_disk("vda", 1 * MIB + 1234)
    vm.add_disk("vdb", 100 * KIB)
    for number in range(points):
        for disk in vm.disks:
            if number == 0 or rng.random() < 0.8:
                stores.scribble(vm, disk, rng, count=4, longest=90 * KIB)
        vm.files = {"nvram": rng.choice([b"a", b"b"]) * 3000}
        since = rng.choice(["last", "last", "last", "nothing", "nothing, alike"]) if number else "last"
        vm.pull(since, dedupe=True, chunk_size=rng.choice([32 * KIB, 256 * MIB]), batch_size=64 * KIB)
    for point in rng.sample(vm.points, rng.randrange(points - 2)):
        remove(vm.series, point, rng.choice([0.0, 10**6]))
    return vm


# -- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_naive_models(tmp_path, seed, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", 512 * KIB)
    rng = random.Random(seed)
    vm = made(tmp_path / "store", rng, 6)
    found, naive = usage.of_series(vm.series), dead(vm)
    assert [each.point.id for each in found.points] == ids(vm)
    for each in found.points:
        folder = tmp_path / each.point.id
        assert each.exclusive == comes_free(vm, each.point, found.waiting, folder), "what comes free"
        assert each.images == sum(disk.size for disk in each.point.manifest.disks)
        assert each.dead == naive.pop(each.point.id)
    assert found.dead == sum(each.dead for each in found.points) + sum(naive.values()) + found.waiting
    assert found.stored == stored(vm.folder)
    assert found.waiting == removal.would_sweep(vm.series, frozenset()).waiting


def scattered(root, rng):
    """Return a Vm with small frames, most of which newer points hide, and without its older points."""
    vm = Vm(root)
    vm.add_disk("vda", 100 * 4096)
    for _ in range(6):
        for block in rng.sample(range(100), 50):
            vm.write("vda", 4096 * block, rng.randbytes(4096))
        vm.pull(frame_size=4096, chunk_size=rng.choice([64, 512]) * KIB, batch_size=16 * KIB)
    for point in rng.sample(vm.points[:5], 4):
        remove(vm.series, point)
    return vm


@pytest.mark.parametrize("seed", range(2))
def test_moved_frames(tmp_path, seed, monkeypatch):
    """They count where they are now, for all points that refer to where they were."""
    monkeypatch.setattr(live_frames, "FILE_COST", 300)
    vm = scattered(tmp_path / "store", random.Random(seed))
    before = sum(dead(vm).values())
    with half_points.writing(vm.series):
        assert repack.repack(vm.series, repack.Wanted(0.5)).moved > 0
    found = usage.of_series(vm.series)
    for each in found.points:
        assert each.exclusive == comes_free(vm, each.point, found.waiting, tmp_path / each.point.id)
    assert found.stored == stored(vm.folder)
    tables = sum(path.stat().st_size for path in files(vm.folder) if path.name.endswith(layout.MOVED))
    assert found.dead == found.stored - tables - sum(frames(vm)[1].values()) < before


def test_the_dead_bytes_of_two_branches_are_a_lower_bound(tmp_path):
    """Each shows what the other hides, and the point that both were read against is gone: the number is a bound
    then."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 4 * 64 * KIB)
    noise = random.Random(1).randbytes(4 * 64 * KIB)
    vm.write("vda", 0, noise)
    base = vm.pull()
    for half in (0, 2):
        vm.points = [base]
        vm.write("vda", half * 64 * KIB, b"x" * 2 * 64 * KIB)
        vm.pull()
        vm.write("vda", 0, noise)
        vm.disks["vda"].dirty[:] = False
    assert usage.of_series(vm.series).dead == sum(dead(vm).values()), "the base shows all"
    remove(vm.series, base)
    before, known = usage.of_series(vm.series).dead, sum(dead(vm).values())
    assert known + 2 * 64 * KIB <= before <= known + 2 * 64 * KIB + 1000


def test_each_directory_is_read_once_and_no_page(tmp_path, monkeypatch):
    vm = stores.chain(tmp_path / "store", points=4)
    read, opened, real = [], [], DirectoryStore.read
    monkeypatch.setattr(DirectoryStore, "read", lambda self, path, *a: read.append(path) or real(self, path, *a))
    monkeypatch.setattr(DirectoryStore, "read_range", lambda self, path, *a: opened.append(path))
    usage.of_series(vm.series)
    names = [path.partition("/")[2] for path in read]
    assert sorted(names) == sorted(f"{point.id}/{name}" for point in vm.points
                                   for name in ("manifest.json", "vda.directory", "vdb.directory"))  # fmt: skip
    assert opened == []


# -- as it is called --------------------------------------------------------------------------------------------------


def test_a_table_of_each_domain_and_a_total(tmp_path, capsys):
    vm = daily(tmp_path / "store", 3)
    daily(tmp_path / "store", 2, "db1", "0d5e4ab1-22a1-4b4f-9d0c-0f6f1f2a7c11")
    remove(vm.series, vm.points[1], 10**6)
    code, found, _ = run(capsys, "usage", vm.root)
    assert code == 0 and [each["domain"] for each in found["domains"]] == ["db1", "vm1"]
    for name in ("stored", "exclusive", "shared", "dead", "waiting"):
        assert found[f"{name}_bytes"] == sum(each[f"{name}_bytes"] for each in found["domains"])
    one = found["domains"][1]
    assert [each["id"] for each in one["points"]] == ids(vm) and one["waiting_bytes"] > 0
    assert one["stored_bytes"] == one["exclusive_bytes"] + one["shared_bytes"] + one["waiting_bytes"]
    code, out, _ = said(capsys, "usage", vm.root, "--domain", "vm*")
    lines = out.splitlines()
    assert code == 0 and lines[0] == "vm1:" and lines[1].split() == ["POINT", "IMAGES", "EXCLUSIVE", "SHARED", "DEAD"]
    assert lines[4].startswith("(removed)") and lines[5].startswith("total") and "db1" not in out
    assert " stored, " in lines[-1]
    assert said(capsys, "usage", vm.root, "--domain", "web*")[0] == 10


def test_every_line_has_at_most_80_characters(tmp_path, capsys, monkeypatch):
    """With the largest numbers, and ids that have their first 20 characters in common."""
    vm = daily(tmp_path / "store", 2)
    huge = usage.OfPoint(vm.points[0], *[1023 << 40] * 4)
    other = huge._replace(point=vm.points[1])
    monkeypatch.setattr(
        usage, "of_series", lambda *_: usage.Usage([huge, other], 1023 << 50, 1023 << 50, 1023 << 50, 1023 << 50)
    )
    out = said(capsys, "usage", vm.root)[1]
    assert out.count("TiB") + out.count("PiB") > 10 and max(map(len, out.splitlines())) <= 80


def test_a_domain_that_cannot_be_read_hides_no_other(tmp_path, capsys):
    vm = daily(tmp_path / "store", 2)
    daily(tmp_path / "store", 2, "vm2", "0d5e4ab1-22a1-4b4f-9d0c-0f6f1f2a7c11")
    with damaged(vm.folder / vm.points[1].id / "vda.directory", b""):
        code, found, err = run(capsys, "usage", vm.root)
    assert code == 11 and err.startswith("nbdpull: vm1: ") and "vda.directory" in err and err.count("\n") == 1
    broken, sound = found["domains"]
    assert "vda.directory" in broken["problem"] and broken["stored_bytes"] is None and broken["points"] == []
    assert sound["problem"] is None and found["stored_bytes"] == sound["stored_bytes"] > 0
