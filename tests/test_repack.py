"""Mostly dead files that are repacked: nothing that a point shows is lost, and what is dead is removed."""

import json
import random
import shutil
import subprocess
from unittest import mock

import command
import dying
import pytest
import stores
from stores import KIB, MIB
from worn import HALF, mostly_hidden, pruned, scattered

from nbdpull.core import errors
from nbdpull.core.throttle import Throttle
from nbdpull.format import layout, moved
from nbdpull.repository import (
    grace,
    half_points,
    incoming,
    live_frames,
    lookup,
    references,
    removal,
    repack,
    series,
    soundness,
)
from nbdpull.repository.repack import Repacked, Wanted
from nbdpull.restoring import origin
from nbdpull.storage.directory import DirectoryStore
from nbdpull.storage.directory_file import DirectoryWriter

pytestmark = pytest.mark.usefixtures("no_threads")


@pytest.fixture(autouse=True)
def small_costs(monkeypatch):
    """Make files of some KiB worth a repack, like those of a real pull."""
    monkeypatch.setattr(live_frames, "FILE_COST", 300)


def leftovers(vm):
    """Return the files that nothing refers to, in directories of no point."""
    kept = removal.referred(vm.series)
    names = [(name, file) for name in [*half_points.removed(vm.series), *half_points.repacked(vm.series)]
             for file in vm.store.names(f"vm1/{name}")]  # fmt: skip
    known = (half_points.REMOVED, layout.REPACKED)
    return [each for each in names if "/".join(each) not in kept and each[1] not in known]


def intact(vm):
    """Require that every point shows what it did, byte for byte."""
    for point in vm.series.points():
        for disk, content in vm.images[point.id].items():
            with lookup.RandomImage(vm.series, point, disk) as image:
                assert image.read(0, image.size) == content


def restores(vm, folder):
    """Require the same by the restore operation."""
    for point in vm.series.points():
        assert stores.restored(vm, point, folder / "out") == vm.images[point.id]


def share_alive(vm, points):
    """Return which share of the chunk files in the store is shown by some points."""
    size = sum(path.stat().st_size for path in vm.root.rglob("*.zst"))
    frames = {
        (entry.path, int(record["position"])): int(record["stored"])
        for point in points
        for disk in point.disks
        for entry in stores.chunks_of(vm, point, disk)
        for record in stores._frames(stores.directory_of(vm, point, disk), entry)
    }
    return sum(frames.values()) / size


@pytest.mark.parametrize("chunk_size", [20 * KIB, 100 * KIB, MIB])
@pytest.mark.parametrize("seed", [1, 2])
def test_visible_frames_are_moved_and_the_rest_is_removed(tmp_path, seed, chunk_size):
    vm = mostly_hidden(tmp_path / "store", seed, chunk_size=chunk_size)
    before = share_alive(vm, vm.points[-1:])
    found = pruned(vm, [point.id for point in vm.points[:-1]])
    assert found.problems == () and found.left == 0 < found.moved < found.freed
    restores(vm, tmp_path)
    assert before < 0.5 < 0.7 < share_alive(vm, vm.points[-1:])
    assert not leftovers(vm) and not stores.verify_store(vm.root).is_bad
    assert pruned(vm, []) == Repacked(), "and it is done once"
    for path in vm.root.rglob("*.zst"):
        subprocess.run(["zstd", "-tq", str(path)], check=True)
    scattered(vm, random.Random(seed), 50)
    vm.pull(frame_size=4096)
    restores(vm, tmp_path)


def proved(vm, point):
    source = origin.Origin(vm.series, point, onto=False, threads=1, check=lambda: None)
    with source.image("vda") as image:
        origin.prove(source, [image], [])


@pytest.mark.parametrize("how", ["prove", "size_flaw", "file_flaw"])
def test_files_moved_while_they_are_verified_are_no_damage(tmp_path, how):
    """They were looked for where they had been: a restore beside a prune reported a missing file."""
    vm = mostly_hidden(tmp_path / "store", rounds=3)
    point, real = vm.points[-1], vm.series._own_size_flaw
    chunks = stores.directory_of(vm, point, "vda").chunks
    pruned(vm, [point.id for point in vm.points[:-1]], Wanted(0.0001))
    found = []

    def meanwhile(entry):
        if not found:
            found.append(repack.repack(vm.series, HALF))
        return real(entry)

    with mock.patch.object(vm.series, "_own_size_flaw", meanwhile):
        if how == "prove":
            proved(vm, point)
        else:
            assert [getattr(vm.series, how)(entry) for entry in chunks] == [None] * len(chunks)
    assert found[0].freed and any(not (vm.folder / entry.path).exists() for entry in chunks)
    [new, *_] = [file for entry in chunks for file in vm.series.holding(entry) if file != entry]
    with stores.damaged(vm.folder / new.path, b""), pytest.raises(errors.Damaged, match=f"{new.path}: .*has 0 bytes"):
        proved(vm, point)


def test_the_record_of_a_moved_frame_names_the_file_that_its_table_stands_for(tmp_path, capsys):
    """The manual says so of the output of index."""
    vm = mostly_hidden(tmp_path / "store", rounds=3)
    pruned(vm, [point.id for point in vm.points[:-1]])
    code, out, _ = command.answered(capsys, "index", vm.root, "latest", "vda")
    records = [record for record in map(json.loads, out.splitlines()) if record["kind"] == "data"]
    gone = [record for record in records if not (vm.folder / record["path"]).exists()]
    entries = {entry.path: entry for entry in stores.chunks_of(vm, vm.points[-1], "vda")}
    assert code == 0 and gone
    for record in gone:
        assert (vm.folder / f"{record['path']}.moved").exists()
        place = moved.read(vm.store, vm.series.folder, entries[record["path"]]).place(
            record["position"], record["stored"]
        )
        assert (vm.folder / place.path).exists()


def test_files_that_frames_were_moved_to_are_repacked_again(tmp_path):
    """There is at most one step: the tables lead to the newest file."""
    vm = mostly_hidden(tmp_path / "store", rounds=3)
    rng = random.Random(8)
    for _ in range(5):
        pruned(vm, [point.id for point in vm.points[:-1]])
        [*_, last] = vm.series.points()
        for path in vm.root.rglob("*.moved"):
            entry = next(each for each in stores.chunks_of(vm, last, path.name[:3])
                         if moved.path_of(each.path) == str(path.relative_to(vm.folder)))  # fmt: skip
            table = moved.read(vm.store, vm.series.folder, entry)
            assert table and all((vm.folder / each.path).exists() for each in table.files)
        intact(vm)
        assert not leftovers(vm) and share_alive(vm, vm.series.points()) > 0.4
        assert all(len(vm.store.names(f"vm1/{name}")) > 1 for name in half_points.repacked(vm.series))
        scattered(vm, rng, 40)
        vm.pull(frame_size=4096, chunk_size=100 * KIB)
    assert len(half_points.repacked(vm.series)) >= 1
    pruned(vm, [point.id for point in vm.points[:-1]])
    scattered(vm, rng, 100)
    vm.write("vdb", 0, bytes(5 * 4096 - 1) + b"x")
    vm.pull(frame_size=4096)
    pruned(vm, [point.id for point in vm.points[:-1]])
    intact(vm)
    assert vm.store.folders("vm1") == [vm.points[-1].id], "what nothing refers to any more has gone"


def in_two_files(root):
    """A Vm with a file whose table leads to two others, one for each of two points: a copy brought the older one."""
    rng, vm = random.Random(1), stores.Vm(root)
    vm.add_disk("vda", 40 * 4096)
    points = []
    for first, last in [(0, 40), (0, 10), (10, 28), (10, 25)]:
        vm.write("vda", first * 4096, rng.randbytes((last - first) * 4096))
        points.append(vm.pull(frame_size=4096))
        if len(points) == 2:
            other = vm.copy(root.with_name("other"))
    ids = [point.id for point in points]
    pruned(other, ids[:1], Wanted(0.9))
    pruned(vm, ids[:3], Wanted(0.9))
    vm.write("vda", 25 * 4096, rng.randbytes(4 * 4096))
    vm.pull(frame_size=4096)
    pruned(vm, ids[3:], Wanted(0))
    with half_points.writing(vm.series):
        incoming.Incoming(other.series, vm.series, vm.series.points(), Throttle()).take(points[1])
    [held] = [each for each in stores.chunks_of(vm, points[1], "vda") if each.path.startswith(ids[0])]
    return vm, held


def test_a_table_that_leads_to_two_files_which_two_new_ones_empty(tmp_path):
    """The second table must start from the first one, or it leads back to a file that is gone."""
    vm, held = in_two_files(tmp_path / "store")
    before = moved.read(vm.store, vm.series.folder, held).files
    assert len(before) == 2
    intact(vm)
    found = pruned(vm, [], Wanted(0.95, chunk_size=20 * KIB))
    after = moved.read(vm.store, vm.series.folder, held).files
    assert found.problems == () and len(after) == 2 and not {*before} & {*after}
    intact(vm)
    pruned(vm, [])
    intact(vm)
    assert not leftovers(vm) and not stores.verify_store(vm.root).is_bad


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_removals_and_repacks_in_any_order(tmp_path, seed):
    """Random pulls, removals, and repacks with random thresholds."""
    rng, vm = random.Random(seed), mostly_hidden(tmp_path / "store", seed, rounds=1)
    for _ in range(8):
        scattered(vm, rng, rng.choice([1, 20, 70]))
        vm.pull(rng.choice(["last", "nothing, alike"]), frame_size=rng.choice([4096, 64 * KIB]), chunk_size=40 * KIB)
        gone = [point.id for point in vm.series.points()[:-1] if rng.random() < 0.5]
        wanted = Wanted(rng.choice([0.3, 0.5, 0.9]), rng.choice([None, 30 * KIB]), rng.choice([50 * KIB, MIB]))
        assert pruned(vm, gone, wanted).problems == ()
        assert not leftovers(vm)
        intact(vm)


def test_a_file_of_a_point_stays_as_it_is(tmp_path):
    """All files that its SHA256SUMS names exist."""
    vm = mostly_hidden(tmp_path / "store")
    pruned(vm, [vm.points[1].id, vm.points[2].id], Wanted(1.0))
    for point in vm.series.points():
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=vm.folder / point.id, check=True)


def test_what_a_removed_point_shows_lives_until_the_sweep(tmp_path):
    vm = mostly_hidden(tmp_path / "store")
    assert pruned(vm, [point.id for point in vm.points[:2]], grace=60) == Repacked()
    [first, second] = half_points.removed(vm.series)
    for name in (first, second):
        (vm.folder / name / half_points.REMOVED).rename(vm.folder / name / layout.MANIFEST)
    intact(vm)
    assert len(vm.series.points()) == len(vm.points)


def test_a_damaged_disk_of_a_removed_point_takes_nothing_from_another(tmp_path):
    """Neither the sweep nor the repack: the other disk can be read, and restored, until its time is over."""
    vm, rng = stores.Vm(tmp_path / "store"), random.Random(3)
    vm.add_disk("vda", 40 * 4096)
    vm.add_disk("vdb", 4096)
    for blocks in (40, 20, 38):
        vm.write("vda", 0, rng.randbytes(blocks * 4096))
        vm.write("vdb", 0, rng.randbytes(4096))
        vm.pull(frame_size=4096, chunk_size=20 * KIB, batch_size=16 * KIB)
    first, second, _ = vm.points
    path = vm.folder / second.id / "vdb.directory"
    path.write_bytes(stores.flipped(path.read_bytes(), 100))
    with mock.patch.object(half_points, "seconds_removed", lambda _, name: grace.GRACE * (name == first.id)):
        assert pruned(vm, [first.id, second.id], Wanted(0.9), grace.GRACE).problems == ()
    (vm.folder / second.id / half_points.REMOVED).rename(vm.folder / second.id / layout.MANIFEST)
    with lookup.RandomImage(vm.series, second, "vda") as image:
        assert image.read(0, image.size) == vm.images[second.id]["vda"]


def test_a_dry_run_predicts_what_is_moved(tmp_path):
    vm = mostly_hidden(tmp_path / "store")
    ids = [point.id for point in vm.points[:-1]]
    before = stores.files(vm.root)
    look = repack.would_repack(vm.series, ids, HALF)
    assert stores.files(vm.root) == before and look.moved
    assert pruned(vm, ids) == look


def test_a_limit(tmp_path):
    """Only that much is written, starting with the files of which the least is alive, and the rest is reported."""
    vm = mostly_hidden(tmp_path / "store", chunk_size=20 * KIB)
    ids = [point.id for point in vm.points[:-1]]
    everything = repack.would_repack(vm.series, ids, HALF)
    limit = everything.moved // 2
    found = pruned(vm, ids, Wanted(0.5, limit))
    assert 0 < found.moved <= limit and 0 < found.left < everything.freed
    intact(vm)
    assert pruned(vm, []).moved == everything.moved - found.moved
    intact(vm)


def test_a_damaged_frame_keeps_its_file(tmp_path):
    """The damage is not hidden: the others are repacked, and it is found as before."""
    vm = mostly_hidden(tmp_path / "store", chunk_size=40 * KIB)
    ids, last = [point.id for point in vm.points[:-1]], vm.points[-1]
    for point in vm.points[:-1]:
        removal.remove(vm.series, point)
    removal.sweep(vm.series, 0)
    bad = next(entry for entry in stores.chunks_of(vm, last, "vda") if entry.path.partition("/")[0] in ids)
    [*_, frame] = stores._frames(stores.directory_of(vm, last, "vda"), bad)
    path = vm.folder / bad.path
    path.write_bytes(stores.flipped(path.read_bytes(), int(frame["position"]) + 20))
    found = pruned(vm, [])
    assert [str(path) in problem for problem in found.problems] == [True]
    assert path.exists() and found.moved and found.left
    assert {damage.path for damage in stores.verify_store(vm.root).damages} == {bad.path}


CHANGES = {
    DirectoryStore: [
        "rename",
        "delete",
        "remove_file",
        "remove_folder",
        "sync_folder",
        "make_folder",
        "create",
        "_put",
    ],
    DirectoryWriter: ["write", "seal"],
}


def killed_at(count, do):
    return dying.killed_at(count, do, CHANGES)


def worn_twice(root):
    """A Vm with a file that frames were moved to, of which few are alive if only its last point is kept; and with
    another such file of a removed point."""
    vm, rng = stores.Vm(root), random.Random(5)
    vm.add_disk("vda", 30 * 4096)
    for number in range(3):
        scattered(vm, rng, [30, 15, 20][number])
        vm.pull(frame_size=4096)
        pruned(vm, [point.id for point in vm.points[:-1]] if number == 1 else [], Wanted(0.9))
    scattered(vm, rng, 10)
    vm.pull(frame_size=4096)
    return vm


def test_killed_at_every_step_and_ended_by_the_next_run(tmp_path):
    """A repack of files, and one of files that were moved before."""
    vm = worn_twice(tmp_path / "store")
    pruned(vm, [point.id for point in vm.points[:-1]], Wanted(0))
    wanted, steps = Wanted(0.9, chunk_size=30 * KIB), 0
    while True:
        twin = vm.copy(tmp_path / f"store{steps}")
        died = killed_at(steps, lambda: repack.repack(twin.series, wanted))  # noqa: B023
        intact(twin)
        assert pruned(twin, [], wanted).problems == ()
        intact(twin)
        assert not leftovers(twin)
        for name in half_points.names(twin.series):
            assert not [each for each in twin.store.names(f"vm1/{name}") if not each.endswith(".draft")]
        shutil.rmtree(twin.root)
        if not died:
            break
        steps += 1
    assert steps > 15


def test_dead_files_are_removed_without_a_write(tmp_path):
    """A file beside its table, as left by a run that is killed between the two; and the disk is full."""
    vm = mostly_hidden(tmp_path / "store")
    before = {path: path.read_bytes() for path in vm.folder.rglob("*.zst")}
    pruned(vm, [point.id for point in vm.points[:-1]])
    back = [path for path in before if path.with_name(path.name + layout.MOVED).exists()]
    for path in back:
        path.write_bytes(before[path])
    with mock.patch.object(DirectoryWriter, "write", side_effect=errors.OutputFull("no space left")):
        found = pruned(vm, [])
    assert found == Repacked(0, sum(len(before[path]) for path in back)) and len(back) > 2
    assert not any(path.exists() for path in back)
    intact(vm)


def test_a_file_brought_back_is_kept(tmp_path):
    """What it was moved to is damaged, so it is the only copy."""
    vm = mostly_hidden(tmp_path / "store")
    before = {path: path.read_bytes() for path in vm.folder.rglob("*.zst")}
    pruned(vm, [point.id for point in vm.points[:-1]])
    back = [path for path in before if path.with_name(path.name + layout.MOVED).exists()]
    for path in [path for name in half_points.repacked(vm.series) for path in (vm.folder / name).glob("*.zst")]:
        path.write_bytes(stores.flipped(path.read_bytes(), path.stat().st_size // 2))
    for path in back:
        path.write_bytes(before[path])
    assert pruned(vm, []).problems == ()
    intact(vm)
    pruned(vm, [])
    assert not stores.verify_store(vm.root).is_bad and not leftovers(vm)


@pytest.mark.parametrize("count", [1, None])
def test_files_of_a_lost_table_are_kept(tmp_path, count):
    """One table or all are lost: each may be brought back from a copy. Neither the sweep nor a repack removes the
    frames."""
    vm = mostly_hidden(tmp_path / "store", chunk_size=20 * KIB)
    pruned(vm, [point.id for point in vm.points[:-1]], Wanted(0.9))
    before = {path: path.read_bytes() for path in sorted(vm.folder.rglob("vda*.moved"))}
    lost = [*before][:count]
    assert len(before) > 2 and not leftovers(vm)
    for path in lost:
        path.unlink()
    for _ in range(2):
        assert pruned(vm, [], Wanted(0.99)) == Repacked()
    for path in lost:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(before[path])
    intact(vm)


def test_no_room(tmp_path):
    """It stops with a problem, and leaves nothing half done, at whichever write it is."""
    vm = mostly_hidden(tmp_path / "store", rounds=3, chunk_size=60 * KIB)
    ids = [point.id for point in vm.points[:-1]]
    for count in range(0, 40, 5):
        twin, left = vm.copy(tmp_path / "twin"), [count]
        real = DirectoryWriter.write

        def write(self, data):
            left[0] -= 1  # noqa: B023
            if left[0] < 0:  # noqa: B023
                raise errors.OutputFull("no space left")
            real(self, data)  # noqa: B023

        with mock.patch.object(DirectoryWriter, "write", write):
            found = pruned(twin, ids, Wanted(0.9, chunk_size=30 * KIB))
        intact(twin)
        assert not leftovers(twin) and (not found.problems or found.left)
        assert all(twin.store.names(f"vm1/{name}") for name in twin.store.folders("vm1"))
        assert {*references_of(twin)} >= {path for path in twin.folder.rglob("2*/*.zst")}
        shutil.rmtree(twin.root)


def references_of(vm):
    entries = [entry for point in vm.series.points() for entry in references.of_point(vm.series, point)]
    return [vm.folder / path for path in references.paths(vm.series, entries)]


# -- by prune ---------------------------------------------------------------------------------------------------------


def prune(capsys, vm, *words):
    """Return (exit code, what it reports of its only domain, its warnings)."""
    code, result, _ = command.answered_json(capsys, "prune", vm.root, "--keep-last", "1", "--force", *words)
    return code, result["domains"][0], result["warnings"]


def test_prune_repacks(tmp_path, capsys):
    vm = mostly_hidden(tmp_path / "store")
    _, would, _ = prune(capsys, vm, "--dry-run")
    before = {path: path.stat().st_size for path in stores.files(vm.root)}
    _, none, _ = prune(capsys, vm.copy(tmp_path / "twin"), "--now", "--repack-below", "0")
    code, found, warnings = prune(capsys, vm, "--now")
    assert (code, warnings) == (0, [])
    names = ("repack_moved_bytes", "repack_freed_bytes", "repack_left_bytes")
    assert [found[name] for name in names] == [would[name] for name in names]
    assert [none[name] for name in names] == [0, 0, 0] and found["repack_left_bytes"] == 0
    assert 0 < found["repack_moved_bytes"] < found["repack_freed_bytes"] / 2
    gone = sum(size for path, size in before.items() if not path.exists())
    manifests = sum(size for path, size in before.items() if path.name == "manifest.json" and not path.exists())
    assert gone - manifests == found["freed_bytes"] + found["repack_freed_bytes"]
    intact(vm)
    code, text, _ = command.answered(capsys, "prune", vm.root, "--keep-last", "1")
    assert code == 0 and "mostly dead" not in text


def test_prune_has_a_limit_and_reports_what_is_left(tmp_path, capsys):
    vm = mostly_hidden(tmp_path / "store", chunk_size=20 * KIB)
    code, found, warnings = prune(capsys, vm, "--now", "--repack-limit", "30K")
    assert code == 0 and 0 < found["repack_moved_bytes"] <= 30 * KIB and found["repack_left_bytes"] > 0
    code, text, _ = command.answered(capsys, "prune", vm.root, "--keep-last", "1", "--repack-below", "99%", "--dry-run")
    assert code == 0 and "would move" in text


def test_prune_warns_of_what_it_cannot_repack(tmp_path, capsys):
    """The points are removed nevertheless, and the exit code is 0."""
    vm = mostly_hidden(tmp_path / "store")
    with mock.patch.object(repack._Run, "_new_folder", side_effect=errors.OutputFull("there is no space")):
        code, found, warnings = prune(capsys, vm, "--now")
    assert code == 0 and found["removed"] and found["repack_left_bytes"] > 0
    assert warnings == ["vm1: not repacked: there is no space; the rest is not repacked"]
    intact(vm)


def test_a_damaged_index_is_a_warning_and_hides_no_other_disk(tmp_path, capsys):
    """Also with --dry-run. The exit code is 0, because everything else is done."""
    vm, rng, said = stores.Vm(tmp_path / "store"), random.Random(4), "vm1: not repacked: disk vdb: "
    for disk in ("vda", "vdb"):
        vm.add_disk(disk, 40 * 4096)
    for blocks in (40, 35):
        for disk in vm.disks:
            vm.write(disk, 0, rng.randbytes(blocks * 4096))
        vm.pull(frame_size=4096)
    path = stores.index_of(vm, vm.points[-1], "vdb")
    path.write_bytes(stores.flipped(path.read_bytes(), path.stat().st_size // 2))
    _, would, before = prune(capsys, vm, "--dry-run")
    code, found, warnings = prune(capsys, vm, "--now")
    assert code == 0 and found["removed"] and found["repack_moved_bytes"] == would["repack_moved_bytes"] > 0
    assert warnings == before and [each.partition(str(path))[0] for each in warnings] == [said]
    with lookup.RandomImage(vm.series, vm.points[-1], "vda") as image:
        assert image.read(0, image.size) == vm.images[vm.points[-1].id]["vda"]


# -- verification -----------------------------------------------------------------------------------------------------


def repacked(root):
    """A Vm with two points, and several files of removed ones that were moved to one file; the path of that."""
    vm = mostly_hidden(root, chunk_size=20 * KIB)
    found = pruned(vm, [point.id for point in vm.points[:-2]], Wanted(0.9))
    [new] = [path for name in half_points.repacked(vm.series) for path in (vm.folder / name).glob("vda*.zst")]
    assert found.problems == () and len([*vm.folder.rglob("vda*.moved")]) > 2
    return vm, new


@pytest.mark.parametrize("how", [{}, {"oldest": True, "keep": True}])
def test_a_file_that_several_were_moved_to_is_read_once(tmp_path, how):
    vm, new = repacked(tmp_path / "store")
    with mock.patch.object(DirectoryStore, "sha256", autospec=True, side_effect=DirectoryStore.sha256) as sha256:
        assert not stores.verify_store(vm.root, **how).is_bad
    read = [call.args[1] for call in sha256.call_args_list]
    assert read.count(str(new.relative_to(vm.root))) == 1
    files = {f"vm1/{path}" for point in vm.series.points() for path in references_of_point(vm, point)}
    assert {path for path in files if path.endswith(".zst")} <= {*read}


def references_of_point(vm, point):
    return [each.path for each in references.holding(vm.series, references.of_point(vm.series, point))]


def test_a_damage_of_a_file_is_one_of_all_that_were_moved_to_it(tmp_path):
    """And so of every point that refers to one of those, even if only one point is checked."""
    vm, new = repacked(tmp_path / "store")
    with stores.damaged(new, stores.flipped(new.read_bytes(), 20)):
        found = stores.verify_store(vm.root, keep=True, point=vm.points[-1].id)
        assert found.is_bad
        [document] = [layout.unseal(path.read_bytes(), "") for path in vm.folder.glob("*.verify.json")]
        reported = {each["point"]: {place["path"] for place in each["places"]} for each in document["points"]}
        moved_files = {
            point.id: {entry.path for entry in stores.chunks_of(vm, point, "vda")
                       if (vm.folder / moved.path_of(entry.path)).exists()}
            for point in vm.points[-2:]
        }  # fmt: skip
        assert reported == moved_files and len({*map(frozenset, reported.values())}) == 2
    assert not stores.verify_store(vm.root, keep=True).is_bad
    assert not soundness.of_series(vm.series).damaged


@pytest.mark.parametrize("how", [{}, {"oldest": True}])
def test_files_that_are_moved_again_while_they_are_verified_are_no_damage(tmp_path, how):
    """After their table was read, a file that nothing needed any more was reported, and a sound point was damaged."""
    vm = mostly_hidden(tmp_path / "store", rounds=3)
    pruned(vm, [point.id for point in vm.points[:-1]])
    scattered(vm, random.Random(8), 80)
    last = vm.pull(frame_size=4096, chunk_size=100 * KIB)
    pruned(vm, [point.id for point in vm.points[:-1]], Wanted(0.0001))
    old = {file for entry in stores.chunks_of(vm, last, "vda") for file in vm.series.holding(entry) if file != entry}
    done, real = [], series.Series.own_flaw

    def meanwhile(target, entry, *check):
        if entry in old and not done:
            done.append(repack.repack(vm.series, HALF))
        return real(target, entry, *check)

    with mock.patch.object(series.Series, "own_flaw", meanwhile):
        found = stores.verify_store(vm.root, keep=True, threads=1, **how)
    assert done[0].freed and any(not (vm.folder / entry.path).exists() for entry in old)
    assert (found.damages, [each.verdict for each in found.verdicts]) == ([], ["ok"])
    intact(vm)


@pytest.mark.parametrize("how", [{}, {"oldest": True, "keep": True}])
def test_a_damaged_table_is_a_damage_of_its_file(tmp_path, how):
    vm, new = repacked(tmp_path / "store")
    table = next(vm.folder.rglob("vda*.moved"))
    with stores.damaged(table, stores.flipped(table.read_bytes(), 30)):
        found = stores.verify_store(vm.root, **how)
    assert {damage.path for damage in found.damages if damage.offset is None} == {
        str(table.relative_to(vm.folder))[: -len(layout.MOVED)]
    }


def test_an_index_is_not_rebuilt_of_a_file_that_was_moved(tmp_path, capsys):
    """nbdpull never moves one of a point that has not been removed; other programs may."""
    vm = mostly_hidden(tmp_path / "store", rounds=1)
    [point] = vm.points
    [chunk, *_] = stores.chunks_of(vm, point, "vda")
    stores.move(vm, point, "vda", [chunk.path])
    stores.index_of(vm, point, "vda").unlink()
    code, _, said = command.answered(capsys, "index", vm.root, point.id, "vda", "--rebuild")
    assert code == 11 and said.startswith(f"nbdpull: {vm.folder / chunk.path} was repacked: its records")
