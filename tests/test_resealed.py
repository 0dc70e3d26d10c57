"""Points on their way into a store with another seal: the result is a store like any other."""

import contextlib
import os
import random
import shutil
from unittest import mock

import dying
import hours
import pytest
import sealed
import stores
from copies import CHANGES, of_one_disk, over, reseal, resealing, take
from sealed import KEYS, OTHER
from stores import KIB

from nbdpull.core import errors
from nbdpull.core.throttle import Throttle
from nbdpull.format import findings, layout, reader
from nbdpull.operations import compare, copy, rebuild
from nbdpull.repository import (
    half_points,
    matching,
    references,
    removal,
    repack,
    resealed_disk,
    resealed_folder,
    resealed_point,
)
from nbdpull.storage.directory import DirectoryStore


@pytest.fixture(autouse=True)
def several_chunk_files(monkeypatch):
    monkeypatch.setattr(resealed_disk, "BATCH_BYTES", 64 * KIB)


@contextlib.contextmanager
def opened(*vms):
    """Inside this block, whoever opens a store has its keys."""
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as held:
        for keys in {vm.keys for vm in vms} - {None}:
            held.enter_context(sealed.opening(patched, keys))
        yield


def made_for(vm, root, keys):
    other = over(vm, root, keys)
    other.keys = keys
    return other


def assert_restores(other, folder):
    """Require that every point restores byte for byte, and is not damaged."""
    with opened(other):
        for point in other.series.points():
            assert stores.restored(other, point, folder / "out") == other.images[point.id]
        assert not stores.verify_store(other.root).is_bad


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("made") / "store", 3, dedupe=True, **stores.SMALL)


@pytest.fixture
def vm(made, tmp_path):
    return made.copy(tmp_path / "store")


def names(other):
    return {str(path.relative_to(other.folder)) for path in stores.files(other.folder)}


def assert_nothing_else(other, ends=("\0",)):
    """Require that there is nothing but points, what they refer to, and files whose names end so."""
    points = other.series.points()
    needed = {entry.path for point in points for entry in references.of_point(other.series, point)}
    there = {name for name in names(other) if not name.endswith(ends)}
    assert there == needed | {f"{point.id}/{layout.MANIFEST}" for point in points}


def test_from_seal_to_seal_and_back(vm, tmp_path):
    """Each copy is made from the previous one; all are the same points, each with one original manifest."""
    source = vm
    for number, keys in enumerate((KEYS, OTHER, None, OTHER)):
        other = made_for(vm, tmp_path / f"other{number}", keys)
        taken = reseal(source, other)
        files = [path for path in stores.files(other.folder) if path.name != layout.MANIFEST]
        assert sum(each.files for each in taken) == len(files)
        assert sum(each.bytes for each in taken) == sum(path.stat().st_size for path in files)
        assert [point.origin for point in other.series.points()] == [point.sha256 for point in vm.points]
        assert half_points.removed(other.series) == half_points.names(other.series) == []
        assert_restores(other, tmp_path)
        assert_nothing_else(other)
        source = other
    assert matching.matched(vm.points, source.series.points()).same == vm.points


def test_nothing_of_a_guest_shows_in_what_is_sealed(tmp_path):
    vm = sealed.chain(tmp_path / "store", store_keys=None)
    other = made_for(vm, tmp_path / "other", KEYS)
    assert any(sealed.contains_secret(path.read_bytes()) for path in stores.files(vm.folder) if path.name == "nvram")
    reseal(vm, other)
    assert not any(sealed.contains_secret(path.read_bytes()) for path in stores.files(other.folder))
    again = made_for(vm, tmp_path / "again", OTHER)
    reseal(other, again)
    ours, theirs = ({frame for path in each.folder.rglob("*.zst") for frame in frames_of(each, path)}
                    for each in (other, again))  # fmt: skip
    assert ours and theirs and not ours & theirs


def frames_of(vm, path):
    """Return the bytes of each frame of a chunk file."""
    data = path.read_bytes()
    disk = path.name.partition(".")[0]
    page = reader.chunk_records(vm.store, str(path.relative_to(vm.root)), len(data), disk)
    own = page.records[page.records["kind"] == 0]
    return [data[r["position"] :][: r["stored"]] for r in own if page.names[r["chunk"]].endswith(path.name)]


@pytest.mark.parametrize("keys", [KEYS, None])
def test_a_later_point_brings_only_what_is_new(tmp_path, keys):
    vm = sealed.chain(tmp_path / "store", 2, OTHER)
    other = made_for(vm, tmp_path / "other", keys)
    first = reseal(vm, other)
    vm.write("vda", 100 * KIB, random.Random(1).randbytes(3000))
    vm.pull(dedupe=True)
    with mock.patch.object(
        reader.FrameReader, "unsealed", autospec=True, side_effect=reader.FrameReader.unsealed
    ) as read:
        [taken] = reseal(vm, other)
    assert read.call_count == 1
    assert taken.bytes < 8 * KIB < first[0].bytes + 8 * KIB
    assert_nothing_else(other)
    assert_restores(other, tmp_path)


def test_frames_that_a_point_shows_in_parts_are_copied_once(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 64 * KIB)
    vm.write("vda", 0, random.Random(1).randbytes(64 * KIB))
    vm.pull()
    for at in (100, 5000, 40_000):
        vm.write("vda", at, b"x")
        vm.pull(frame_size=512)
    other = made_for(vm, tmp_path / "other", KEYS)
    [taken] = reseal(vm, other, vm.points[-1])
    assert 64 * KIB < taken.bytes < 70 * KIB
    assert_restores(other, tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_copies_and_removals(tmp_path, seed):
    """Including points whose files others need, and frames that were moved in either store."""
    rng = random.Random(seed)
    vm = stores.chain(tmp_path / "store", seed, points=5, size=300 * KIB, dedupe=True, chunk_size=100 * KIB)
    here = vm
    if seed % 2:
        here = made_for(vm, tmp_path / "here", OTHER)
        reseal(vm, here)
    other = made_for(vm, tmp_path / "other", rng.choice([KEYS, None] if seed % 2 else [KEYS, OTHER]))
    there = set()
    for _ in range(16):
        point = rng.choice(here.series.points())
        if point.id in there and rng.random() < 0.7:
            with half_points.writing(other.series):
                removal.remove(other.series, other.series.point_in(point.id))
                removal.sweep(other.series, rng.choice([0, 60]))
                repack.repack(other.series, repack.Wanted(0.95, chunk_size=100 * KIB))
            there.remove(point.id)
        elif point.id not in there:
            reseal(here, other, point)
            there.add(point.id)
        assert {each.id for each in other.series.points()} == there
        for each in other.series.points():
            assert not any(map(other.series.size_flaw, references.of_point(other.series, each)))
    assert_restores(other, tmp_path)
    removal.sweep(other.series, 0)
    kept = removal.referred(other.series)
    strange = [name for name in names(other) if name.endswith((".zst", ".index", ".directory")) and name not in kept]
    assert not strange


def test_a_point_that_was_removed_and_whose_files_were_moved(tmp_path):
    """Others need what leads to its frames, so that remains."""
    vm = of_one_disk(tmp_path / "store")
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    first, last = other.series.points()[0], other.series.points()[-1]
    with half_points.writing(other.series):
        removal.remove(other.series, first)
        removal.sweep(other.series, 0)
    named = {entry.path for entry in references.of_point(other.series, last)}
    moved = [path for path in named if path.startswith(f"{first.id}/vda.0")]
    assert stores.move(other, last, "vda", moved)
    tables = [*other.folder.rglob("*.moved")]
    assert tables
    reseal(vm, other, vm.points[0])
    assert [*other.folder.rglob("*.moved")] == tables
    assert_restores(other, tmp_path)
    sums = (other.folder / first.id / layout.SUMS).read_text()
    assert {line.split("  ")[1] for line in sums.splitlines()} == {
        path.name
        for path in (other.folder / first.id).iterdir()
        if path.name not in (layout.SUMS, layout.MANIFEST) and path.suffix != ".moved"
    }


def test_frames_that_the_source_has_moved(vm, tmp_path):
    last = vm.points[-1]
    stores.move(vm, last, "vda", [entry.path for entry in stores.chunks_of(vm, last, "vda")][:2])
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other, last)
    assert not list(other.folder.rglob("*.moved"))
    assert_restores(other, tmp_path)


def test_damage_in_the_source_is_found_and_nothing_of_the_point_stays(tmp_path):
    """Of each kind of file, except SHA256SUMS, which is for people; the manifest was checked before. (vdb is small.)"""
    plain = stores.chain(tmp_path / "plain", 3, points=1, size=300 * KIB)
    vm = made_for(plain, tmp_path / "sealed", KEYS)
    reseal(plain, vm)
    for source, keys in ((plain, KEYS), (vm, OTHER)):
        other = made_for(plain, tmp_path / f"other{keys.id[:4]}", keys)
        [point] = source.series.points()
        taking = resealing(source, other)
        for path in stores.files(source.folder / point.id):
            data = path.read_bytes()
            places = [len(data) // 3, len(data) // 2] if path.suffix == ".zst" else [0, len(data) // 2, len(data) - 1]
            for at in places if path.name not in (layout.SUMS, layout.MANIFEST, "vdb.0000.zst") else []:
                with stores.damaged(path, stores.flipped(data, at)):
                    with pytest.raises(errors.Damaged):
                        reseal(source, other, point, taking=taking)
                    assert stores.files(other.folder) == []
        assert len(reseal(source, other)) == 1


def test_killed_at_every_step_and_ended_by_the_next_copy(tmp_path):
    vm = of_one_disk(tmp_path / "store")
    last = vm.points[1]
    again = 0
    for count in range(200):
        other = made_for(vm, tmp_path / f"other{count}", KEYS)
        if not dying.killed_at(count, lambda other=other: reseal(vm, other, last), CHANGES):
            break
        begun = [file for name in half_points.names(other.series) for file in other.store.names(f"vm1/{name}")]
        assert all(file.startswith(half_points.REMOVED) for file in begun), "a pull may remove them"
        there = other.series.points()
        if not there:
            [taken] = reseal(vm, other, last)
            again += taken.bytes < 100 * KIB
        [point] = other.series.points()
        assert not any(map(other.series.file_flaw, references.of_point(other.series, point)))
        assert_nothing_else(other, (half_points.REMOVED, ".draft"))
        shutil.rmtree(other.root)
    else:
        raise AssertionError("it never ends")
    assert count > 20 and again > 5, "whole chunk files are not copied again"
    assert_restores(other, tmp_path)


def test_killed_while_it_removes_what_it_made(tmp_path, monkeypatch):
    """A prune removes the rest only while the file is there that states what the directory is."""
    vm, listdir = of_one_disk(tmp_path / "store"), os.listdir
    monkeypatch.setattr("os.listdir", lambda *args: sorted(listdir(*args)))
    for count in range(30):
        other, unlink, left = made_for(vm, tmp_path / f"other{count}", KEYS), os.unlink, [count]

        def counted(*args, unlink=unlink, left=left, **options):
            left[0] -= 1
            if left[0] < 0:
                raise dying.Killed
            return unlink(*args, **options)

        is_full = mock.patch.object(resealed_folder.Making, "publish", side_effect=errors.OutputFull("full"))
        with is_full, mock.patch("os.unlink", counted), pytest.raises((dying.Killed, errors.OutputFull)) as ended:
            reseal(vm, other, vm.points[1])
        names = {each.name for each in stores.files(other.folder)}
        assert not names or half_points.REMOVED in names
        if ended.type is errors.OutputFull:
            break
    assert count > 5 and not names


def test_what_is_damaged_in_the_destination_is_not_counted_on(vm, tmp_path):
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other, *vm.points[:2])
    [bad, *_] = stores.chunks_of(other, other.series.point_in(vm.points[1].id), "vda")
    path = other.folder / bad.path
    path.write_bytes(stores.flipped(path.read_bytes(), 200))
    with opened(other):
        assert stores.verify_store(other.root, keep=True).is_bad
    reseal(vm, other, vm.points[2])
    with opened(other):
        last = other.series.point()
        assert bad.path not in {entry.path for entry in references.of_point(other.series, last)}
        assert stores.restored(other, last, tmp_path / "out") == vm.images[last.id]
    assert findings.load(other.series)


def test_a_comparison_reports_what_a_copy_copies(vm, tmp_path):
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other, vm.points[0])
    match = matching.matched(vm.points, other.series.points())
    assert match.same == vm.points[:1] and match.newer == vm.points[1:] and match.different == []
    lacking = resealed_point.lacking(vm.series, other.series, match)(vm.points[1], ())
    assert {entry.path.partition("/")[0] for entry in lacking} == {vm.points[1].id}


@pytest.mark.parametrize("name", ["replace", "publish", "create", "delete"])
def test_a_full_destination_loses_nothing_that_others_need(tmp_path, name):
    """Even if it is full before anything was made, in the directory of a removed point."""
    vm = of_one_disk(tmp_path / "store")
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    with half_points.writing(other.series):
        removal.remove(other.series, other.series.points()[0])
    [point] = other.series.points()
    for count in range(20):
        if not failing(other, name, count, lambda: reseal(vm, other, vm.points[0])):
            break
        assert not any(map(other.series.size_flaw, references.of_point(other.series, point))), count
        assert half_points.removed(other.series) == [vm.points[0].id]
    assert count > 0
    assert_restores(other, tmp_path)


def failing(other, name, count, do):
    """Do it, while that call of a method of the store of `other`, counted from 0, fails; return whether it was
    reached."""
    real, left = getattr(DirectoryStore, name), [count]

    def call(self, *args, **how):
        left[0] -= self.root == other.store.root
        if left[0] == -1:
            raise errors.OutputError("no space left on device")
        return real(self, *args, **how)

    with mock.patch.object(DirectoryStore, name, call), contextlib.suppress(errors.OutputError):
        do()
    return left[0] < 0


# -- where nobody is kept out -----------------------------------------------------------------------------------------


@pytest.fixture
def without_locks():
    with hours.without_locks(DirectoryStore):
        yield


def just_before(count, do):
    """Let something happen once, before the call with that number that makes a file."""
    left = [count]

    def counted(owner, name):
        real = getattr(owner, name)

        def call(self, *args, **how):
            left[0] -= 1
            if left[0] == -1:
                do()
            return real(self, *args, **how)

        return call

    return dying.patched(counted, {DirectoryStore: ("create", "publish")})


def test_two_copies_at_once(tmp_path, without_locks):
    """Wherever the second one starts, there is one point in the end, and it is whole: no file that counts is replaced
    by that of the other copy, which has different frames."""
    vm = of_one_disk(tmp_path / "store")
    last, ends = vm.points[1], set()
    for count in range(100):
        other = made_for(vm, tmp_path / f"other{count}", KEYS)
        came = []

        def second(other=other, came=came):
            came.append(True)
            with contextlib.suppress(errors.Busy):
                reseal(vm, made_for(vm, other.root, KEYS), last)
                came.append("second")

        with just_before(count, second), contextlib.suppress(errors.Busy):
            reseal(vm, other, last)
            came.append("first")
        ends.add(tuple(came[1:]))
        assert [point.id for point in other.series.points()] == [last.id], came
        [point] = other.series.points()
        assert not any(map(other.series.file_flaw, references.of_point(other.series, point)))
        shutil.rmtree(other.root)
        if came[0] is not True:
            break
    assert ends == {("second",), ()}, "it goes on with what is there, and the first one is too late"


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_copy_that_died_is_continued(tmp_path, without_locks, is_changed):
    """Wherever it died: even if the directory of a disk existed, which cannot be made again, and the point that it was
    laid over was removed since. (In a bucket, no file exists before it is complete.)"""
    vm = of_one_disk(tmp_path / "store")
    last = vm.points[1]
    for count in range(40):
        other = made_for(vm, tmp_path / f"other{count}", KEYS)
        reseal(vm, other, vm.points[0])
        if not dying.killed_at(count, lambda other=other: reseal(vm, other, last), {DirectoryStore: WHOLE}):
            break
        if is_changed:
            removal.remove(other.series, other.series.point_in(vm.points[0].id))
        if last.id not in {point.id for point in other.series.points()}:
            reseal(vm, other, last)
        assert_restores(other, tmp_path)
        assert len(other.series.points()) == 2 - is_changed
        shutil.rmtree(other.root)
    assert count > 5


WHOLE = ("create", "publish", "replace", "remove_file")  # calls before which each file is whole


def test_leftovers_of_a_copy_count_only_for_the_same_point(tmp_path, without_locks):
    """Its name does not prove it: somebody may have put it there."""
    vm = of_one_disk(tmp_path / "store")
    last = vm.points[1]
    first = made_for(vm, tmp_path / "first", KEYS)
    assert dying.killed_at(1, lambda: reseal(vm, first, last), {DirectoryStore: ("publish",)})
    [folder] = first.folder.iterdir()
    before = {path: path.read_bytes() for path in stores.files(folder)}

    def refused(path, data):
        with stores.damaged(path, data), pytest.raises(errors.Busy, match="left what cannot be used"):
            reseal(vm, first, last)
        assert not first.series.points() and len([*first.folder.iterdir()]) == 1

    chunk, directory = folder / "vda.0000.zst", folder / "vda.directory"
    refused(chunk, stores.flipped(before[chunk], 200))
    other = made_for(vm, tmp_path / "other", OTHER)
    reseal(vm, other, last)
    refused(directory, (other.folder / last.id / "vda.directory").read_bytes())
    strange = stores.Vm(tmp_path / "strange")
    strange.add_disk("vda", 200 * KIB)
    strange.write("vda", 0, random.Random(9).randbytes(150 * KIB))
    strange.pull()
    forged = made_for(strange, tmp_path / "forged", KEYS)
    reseal(strange, forged)
    for path in (forged.folder / strange.points[0].id).glob("vda.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    refused(chunk, (folder / "vda.0000.zst").read_bytes())
    for path, data in before.items():
        path.write_bytes(data)
    [taken] = reseal(vm, first, last)
    assert taken.bytes < 4 * KIB
    assert_restores(first, tmp_path)


def test_leftovers_do_not_block_a_nightly_copy(tmp_path):
    """It was taken for removed anew by each copy that failed because of it, so it never went; and no copy that failed
    removed anything."""
    vm = of_one_disk(tmp_path / "store")
    ids = [point.id for point in vm.points]
    dest = made_for(vm, tmp_path / "dest", KEYS)
    with hours.without_locks(DirectoryStore), hours.Hours(DirectoryStore) as passing, opened(dest):
        assert dying.killed_at(1, lambda: reseal(vm, dest, vm.points[0]), {DirectoryStore: ("publish",)})
        path = dest.folder / ids[0] / "vda.0000.zst"
        path.write_bytes(stores.flipped(path.read_bytes(), 200))
        ends = []
        for _ in range(5):
            passing.let_pass(12)
            [found] = copy.copy(copy.Options(str(vm.root), str(dest.root))).domains
            ends.append((str(found.problem)[:11], len(found.copied)))
    assert ends == [("another run", 0), *[("what is lef", 0)] * 2, ("a prune may", 0), ("None", 2)]
    assert_restores(dest, tmp_path)


def test_a_point_that_was_removed_is_copied_again(tmp_path, without_locks):
    """All of its files still exist, and nothing can be made in their place."""
    vm = of_one_disk(tmp_path / "store")
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    for number in (0, 1):
        removal.remove(other.series, other.series.point_in(vm.points[number].id))
        [taken] = reseal(vm, other, vm.points[number])
        assert taken.files == 0
        assert_restores(other, tmp_path)


# -- what else works on such a store ----------------------------------------------------------------------------------


def test_a_point_that_was_made_in_a_copy_of_a_copy(vm, tmp_path):
    """Neither of the two stores is sealed, and still their files differ: what is new is written as between two
    seals."""
    there = over(vm, tmp_path / "there")
    take(vm, there)
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    back = made_for(vm, tmp_path / "back", None)
    reseal(other, back)
    back.disks, back.points = vm.disks, back.series.points()
    back.write("vda", 5000, b"new" * 1000)
    new = back.pull(dedupe=True)
    [found] = copy.copy(copy.Options(str(back.root), str(there.root))).domains
    assert (found.problem, found.refused, found.same) == (None, [], [point.id for point in vm.points])
    assert [each.point for each in found.copied] == [new.id]
    assert stores.restored(there, new, tmp_path / "out") == back.images[new.id]
    assert not compare.compare(compare.Options(str(back.root), str(there.root))).differs
    assert not compare.compare(compare.Options(str(vm.root), str(there.root))).differs


def test_a_lost_index_is_rebuilt(vm, tmp_path):
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    for point in vm.points:
        for path in (other.folder / point.id).glob("vda.index"):
            before = path.read_bytes()
            path.unlink()
            with opened(other):
                rebuild.rebuild(rebuild.Options(str(other.root), point.id, "vda"))
            assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "count", "over_first"), [("create", 2, False), ("publish", 1, False), ("publish", 1, True)]
)
def test_a_lost_index_of_a_copy_that_was_killed_is_rebuilt(tmp_path, name, count, over_first):
    """What the first run left and what the second one made describe the same ranges, which may be laid over a point
    that is not the parent, or over none."""
    vm = of_one_disk(tmp_path / "store")
    vm.write("vda", 32 * KIB, random.Random(5).randbytes(120 * KIB))
    vm.pull()
    other = made_for(vm, tmp_path / "other", KEYS)
    if over_first:
        reseal(vm, other, vm.points[0])
    last = vm.points[2]
    assert dying.killed_at(count, lambda: reseal(vm, other, last), {DirectoryStore: (name,)})
    assert [*(other.folder / last.id).glob("*.zst")]
    reseal(vm, other, last)
    index = other.folder / last.id / "vda.index"
    for path in (index, index.with_suffix(".directory")):
        data = path.read_bytes()
        path.unlink()
        with opened(other):
            rebuild.rebuild(rebuild.Options(str(other.root), last.id, "vda"))
        assert path.read_bytes() == data


@pytest.mark.parametrize("lost", [["index"], ["index", "directory"], ["directory"]])
def test_a_lost_index_in_the_folder_beside_is_rebuilt(tmp_path, lost):
    """A copy of a removed point makes its files there, as others need those of that name."""
    vm = of_one_disk(tmp_path / "store")
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    first = vm.points[0].id
    with half_points.writing(other.series):
        removal.remove(other.series, other.series.point_in(first))
    vm.write("vda", 0, b"more" * 9000)
    reseal(vm, other, vm.pull(), vm.points[0])
    [folder] = [path for path in other.folder.iterdir() if path.is_dir() and not other.series.has_point(path.name)]
    paths = [
        {"index": folder / "vda.index", "directory": other.folder / first / "vda.directory"}[name] for name in lost
    ]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    with opened(other):
        asked = rebuild.Options(str(other.root), first, "vda")
        assert {*rebuild.rebuild(asked).paths} == {*map(str, paths)}
        assert [path.read_bytes() for path in paths] == before
        with pytest.raises(errors.OutputExists, match="move away what is damaged"):
            rebuild.rebuild(asked)
    assert_restores(other, tmp_path)


def test_a_file_elsewhere_that_cannot_be_read_does_not_prevent_a_rebuild(tmp_path, monkeypatch):
    """Of a half point or a removed one: any folder without a point may be the one beside."""
    vm = of_one_disk(tmp_path / "store")
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    bad = other.folder / layout.new_point_id() / "vda.0000.zst"
    bad.parent.mkdir()
    bad.touch()
    real = DirectoryStore.sha256

    def unreadable(self, path, check=lambda: None):
        if self.path(path) == str(bad):
            raise errors.Damaged(f"{bad}: cannot be read: Input/output error")
        return real(self, path, check)

    monkeypatch.setattr(DirectoryStore, "sha256", unreadable)
    path = other.folder / vm.points[-1].id / "vda.directory"
    before = path.read_bytes()
    path.unlink()
    with opened(other):
        rebuild.rebuild(rebuild.Options(str(other.root), vm.points[-1].id, "vda"))
    assert path.read_bytes() == before


def test_copies_of_copies_that_have_no_point_in_common(vm, tmp_path):
    """What remains of the points that each has removed has the same names, and different bytes."""
    other, back = made_for(vm, tmp_path / "other", KEYS), made_for(vm, tmp_path / "back", None)
    reseal(vm, other)
    reseal(other, back)
    for each, gone in ((vm, vm.points[:2]), (back, vm.points[2:])):
        with half_points.writing(each.series):
            for point in gone:
                removal.remove(each.series, each.series.point_in(point.id))
            removal.sweep(each.series, 0)
    [found] = copy.copy(copy.Options(str(vm.root), str(back.root))).domains
    assert (found.problem, found.refused) == (None, []) and [each.point for each in found.copied] == [vm.points[2].id]
    assert_restores(back, tmp_path)


def test_a_removed_point_beside_one_that_cannot_be_read(tmp_path):
    """It is unknown what that one needs; files that only the point itself can refer to are made again."""
    vm = of_one_disk(tmp_path / "store")
    vm.write("vda", 0, b"third" * 1000)
    vm.pull()
    other = made_for(vm, tmp_path / "other", KEYS)
    reseal(vm, other)
    with half_points.writing(other.series):
        removal.remove(other.series, other.series.point_in(vm.points[0].id))
    path = other.folder / vm.points[1].id / layout.MANIFEST
    with stores.damaged(path, b"?"), half_points.writing(other.series):
        [last] = other.series.load()[0]
        pairs = [resealed_point.Pair(vm.points[2], last)]
        resealed_point.Resealing(vm.series, other.series, [last], pairs, Throttle()).take(vm.points[0])
    assert_restores(other, tmp_path)
