"""Points on their way into another store: never half of one that looks whole, wherever the copy ends."""

import hashlib
import random
import re
import shutil
import signal
from contextlib import suppress
from unittest import mock

import dying
import pytest
import stores
from copies import CHANGES, of_one_disk, over, take
from stores import KIB, MIB, Vm

from nbdpull.core import errors
from nbdpull.core.throttle import Throttle
from nbdpull.format import findings
from nbdpull.format.manifest import FileEntry
from nbdpull.repository import half_points, incoming, pins, proved_copy, references, removal, repack
from nbdpull.storage.directory import DirectoryStore
from nbdpull.storage.directory_file import DirectoryWriter

pytestmark = pytest.mark.usefixtures("no_threads")


def assert_restores(other, folder):
    """Require that every point restores byte for byte, and is not damaged."""
    for point in other.series.points():
        assert stores.restored(other, point, folder / "out") == other.images[point.id]
    assert not stores.verify_store(other.root, keep=False).is_bad


def leftovers(other):
    """Return the files in directories that are no points which nothing refers to."""
    kept = removal.referred(other.series)
    names = [(name, file) for name in half_points.removed(other.series) for file in other.store.names(f"vm1/{name}")]
    return [each for each in names if "/".join(each) not in kept and each[1] != half_points.REMOVED]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("made") / "store", 3, **stores.SMALL)


@pytest.fixture
def vm(made, tmp_path):
    return made.copy(tmp_path / "store")


@pytest.fixture
def other(vm, tmp_path):
    return over(vm, tmp_path / "other")


def test_what_is_copied_is_the_same_to_the_byte(vm, other, tmp_path):
    taken = take(vm, other)
    ours, theirs = ({path.relative_to(each.folder): path.read_bytes() for path in stores.files(each.folder)}
                    for each in (vm, other))  # fmt: skip
    assert ours == theirs
    manifests = [path for path in ours if path.name == "manifest.json"]
    assert sum(each.files for each in taken) == len(ours) - len(manifests)
    assert sum(each.bytes for each in taken) == sum(len(ours[path]) for path in ours if path not in manifests)
    assert_restores(other, tmp_path)


def test_one_point_brings_what_it_needs_of_others(vm, other, tmp_path):
    """Their directories look like those of removed points: they are not half points, and nothing in them is lost."""
    last = vm.points[-1]
    take(vm, other, last)
    assert [point.id for point in other.series.points()] == [last.id]
    assert half_points.removed(other.series) == [point.id for point in sorted(vm.points[:2], key=lambda each: each.id)]
    assert half_points.names(other.series) == [] and not leftovers(other)
    named = {entry.path for entry in references.of_point(vm.series, last)}
    marks = {f"{point.id}/{half_points.REMOVED}" for point in vm.points[:2]}
    there = {str(path.relative_to(other.folder)) for path in stores.files(other.folder)}
    assert there == named | marks | {f"{last.id}/manifest.json"}
    assert removal.sweep(other.series, 0).freed == 0
    assert_restores(other, tmp_path)
    assert [each.point for each in take(vm, other, *vm.points[:2])] == [point.id for point in vm.points[:2]]
    assert half_points.removed(other.series) == [] and len(other.series.points()) == 3
    assert_restores(other, tmp_path)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_any_order_of_copies_and_removals(tmp_path, seed):
    rng = random.Random(seed)
    vm = stores.chain(tmp_path / "store", seed, points=5, size=300 * KIB)
    other = over(vm, tmp_path / "other")
    there = set()
    for _ in range(16):
        point = rng.choice(vm.points)
        if point.id in there and rng.random() < 0.7:
            with half_points.writing(other.series):
                removal.remove(other.series, point)
                removal.sweep(other.series, rng.choice([0, 60]))
            there.remove(point.id)
        elif point.id not in there:
            take(vm, other, point)
            there.add(point.id)
        assert {each.id for each in other.series.points()} == there
        for each in other.series.points():
            assert not any(map(other.series.size_flaw, references.of_point(other.series, each)))
    assert_restores(other, tmp_path)
    removal.sweep(other.series, 0)
    assert not leftovers(other)


# -- its end at any step ----------------------------------------------------------------------------------------------


def killed_at(count, work):
    return dying.killed_at(count, work, CHANGES)


def test_killed_at_every_step_and_ended_by_the_next_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(proved_copy, "BLOCK", 100 * KIB)  # so that there are half files
    vm = of_one_disk(tmp_path / "store")
    last = vm.points[1]
    halves = 0
    for count in range(200):
        other = over(vm, tmp_path / f"other{count}")
        if not killed_at(count, lambda other=other: take(vm, other, last)):
            break
        there = other.series.points()
        for point in there:
            assert not any(map(other.series.file_flaw, references.of_point(other.series, point)))
        begun = [file for name in half_points.names(other.series) for file in other.store.names(f"vm1/{name}")]
        assert [file for file in begun if not file.startswith(half_points.REMOVED)] == [], "a pull may remove them"
        halves += bool(leftovers(other))
        assert there or take(vm, other, last)
        assert other.series.points() == [last] and not leftovers(other)
        assert_same_files(vm, other)
        shutil.rmtree(other.root)
    else:
        raise AssertionError("it never ends")
    assert count > 40 and halves > 20
    assert_restores(other, tmp_path)


def assert_same_files(vm, other):
    for path in stores.files(other.folder):
        if path.name != half_points.REMOVED and path.suffix != ".draft":
            assert path.read_bytes() == (vm.folder / path.relative_to(other.folder)).read_bytes()


def test_a_removal_removes_leftovers_of_a_killed_copy(vm, other):
    """When nobody copies the point any more."""
    before = killed_at(25, lambda: take(vm, other, vm.points[2]))
    assert before and leftovers(other)
    with mock.patch("time.time", return_value=10**11):
        removal.sweep(other.series)
    assert half_points.removed(other.series) == [] == other.series.points()


def test_a_copy_that_is_continued_is_not_taken_for_an_old_removal(vm, other):
    """A part is copied each night, with a daily prune in between: the time of the mark is that of the last night."""
    mark = other.folder / vm.points[0].id / half_points.REMOVED
    assert killed_at(15, lambda: take(vm, other, vm.points[0]))
    first, said = mark.stat().st_ino, mark.read_bytes()
    assert killed_at(15, lambda: take(vm, other, vm.points[0]))
    assert mark.stat().st_ino != first and mark.read_bytes() == said


def test_frames_that_are_moved_again_and_again_while_they_are_copied(vm, other, tmp_path):
    """What was copied before counts, and the copy continues as long as the source changes."""
    last = vm.points[-1]
    chunks = [entry.path for entry in stores.chunks_of(vm, last, "vda")]
    real, done, new = incoming.Incoming._copy, [], []

    def copy(self, entry, *others):
        if entry.path in chunks and len(new) < 3:  # it is moved in the moment in which it is to be read
            new.append(f"2027010{len(new)}T000000Z-000000aa")
            stores.move(vm, last, "vda", [entry.path], new[-1])
        real(self, entry, *others)
        done.append(entry.path)

    with mock.patch.object(incoming.Incoming, "_copy", copy):
        [taken] = take(vm, other, last)
    assert len(new) == 3 and all((other.folder / name).exists() for name in new)
    assert len(done) == len({*done}) == taken.files, "no file twice"
    assert_restores(other, tmp_path)


def test_whole_files_are_kept_for_the_next_time(vm, other, tmp_path):
    """What a killed copy left is verified before it counts, because it may not be durable."""
    first = vm.points[0]
    written = []
    real = DirectoryWriter.write

    def write(self, data):
        written.append(self.path)
        if len({path for path in written if ".zst." in path}) == 3:
            real(self, data[: len(data) // 2])
            raise dying.Killed
        real(self, data)

    with suppress(dying.Killed), mock.patch.object(DirectoryWriter, "write", write):
        take(vm, other, first)
    whole = [path for path in stores.files(other.folder) if path.suffix == ".zst"]
    assert len(whole) == 2
    whole[1].write_bytes(stores.flipped(whole[1].read_bytes(), 50))
    entries = {entry.path: entry for entry in references.of_point(vm.series, first)}
    kept = [path for path in stores.files(other.folder) if str(path.relative_to(other.folder)) in entries]
    with mock.patch.object(DirectoryWriter, "sync", autospec=True, side_effect=DirectoryWriter.sync) as synced:
        [taken] = take(vm, other, first)
    assert taken.files == len(entries) - len(kept) + 1
    durable = {re.sub(r"\.\w+\.draft$", "", call.args[0].path) for call in synced.call_args_list}
    assert durable >= {f"vm1/{path}" for path in entries}, "also of files that were there"
    assert_restores(other, tmp_path)


def test_the_manifest_comes_last(vm, other):
    done = []

    def noted(of, name):
        real = getattr(of, name)

        def call(self, path, *args):
            done.append((name, path))
            return real(self, path, *args)

        return call

    with dying.patched(noted, {DirectoryStore: ("replacing", "publish", "make_folder")}):
        take(vm, other, vm.points[2])
    own = f"vm1/{vm.points[2].id}"
    at = done.index(("publish", f"{own}/manifest.json"))
    named = {path for name, path in done[:at] if name == "replacing"}
    assert named == {f"vm1/{each.path}" for each in references.of_point(vm.series, vm.points[2])}
    assert {name for name, _ in done[at:]} == {"publish"}


@pytest.mark.parametrize("removable", [True, False])
def test_a_commit_that_fails_behind_its_manifest(vm, other, removable, tmp_path):
    """It is unknown whether its name is durable: it is removed first, or everything stays."""
    real = DirectoryStore.sync_folder
    broken = []

    def sync_folder(self, path):
        if (other.folder / vm.points[0].id / "manifest.json").exists() and (not broken or not removable):
            broken.append(path)
            raise errors.OutputError(f"cannot write to {path}: Input/output error")
        real(self, path)

    with mock.patch.object(DirectoryStore, "sync_folder", sync_folder), pytest.raises(errors.OutputError):
        take(vm, other, vm.points[0])
    assert broken
    assert not removable or [path for path in stores.files(other.folder)] == []
    assert_restores(other, tmp_path)
    if other.series.points() == []:
        take(vm, other, vm.points[0])
    assert_restores(other, tmp_path)


def test_a_store_that_is_full(vm, tmp_path):
    """What was copied for the point is removed, so that the store can be read, and something be removed."""
    with stores.small_disk(tmp_path / "disk", "300k") as disk:
        other = over(vm, disk / "other")
        with pytest.raises(errors.OutputFull, match="No space left on device"):
            take(vm, other)
        assert len(other.series.points()) < 3 and not leftovers(other)
        assert half_points.names(other.series) == [] == half_points.removed(other.series)
        assert_restores(other, tmp_path)


# -- what is there already --------------------------------------------------------------------------------------------


def test_damage_that_is_on_record_in_the_destination_is_mended(vm, other, tmp_path):
    """No point refers to a file that is known to be damaged: such a file is copied again."""
    take(vm, other, *vm.points[:2])
    shared = next(e for e in references.of_point(vm.series, vm.points[2]) if e.path.startswith(vm.points[0].id))
    path = other.folder / shared.path
    path.write_bytes(stores.flipped(path.read_bytes(), 40))
    assert stores.verify_store(other.root, keep=True).is_bad
    [taken] = take(vm, other, vm.points[2])
    assert path.read_bytes() == (vm.folder / shared.path).read_bytes()
    assert not stores.verify_store(other.root, keep=True).is_bad
    assert_restores(other, tmp_path)


def test_files_that_are_cut_short_or_lost_are_made_anew(vm, other, tmp_path):
    take(vm, other, *vm.points[:2])
    shared = [e for e in references.of_point(vm.series, vm.points[2]) if not e.path.startswith(vm.points[2].id)]
    for number, entry in enumerate(shared):
        path = other.folder / entry.path
        path.write_bytes(path.read_bytes()[:-1]) if number % 2 else path.unlink()
    take(vm, other, vm.points[2])
    assert_same_files(vm, other)
    assert_restores(other, tmp_path)


def test_what_was_mended_stays_where_the_point_is_refused(vm, other, tmp_path):
    take(vm, other, vm.points[0])
    named = [entry.path for entry in references.of_point(vm.series, vm.points[1])]
    lost = other.folder / next(path for path in named if path.startswith(vm.points[0].id))
    lost.unlink()
    own = vm.folder / next(path for path in reversed(named) if path.startswith(vm.points[1].id))
    with stores.damaged(own, stores.flipped(own.read_bytes(), 30)), pytest.raises(errors.Damaged, match=own.name):
        take(vm, other, vm.points[1])
    assert lost.exists() and not (other.folder / vm.points[1].id).exists()
    assert_restores(other, tmp_path)


def forged(vm, path, data, *others):
    """Make a new point of a source that somebody else writes to, which refers to other bytes of a file of an older
    one."""
    (vm.folder / path).write_bytes(data)
    vm.pull()
    entries = [FileEntry(path, len(data), hashlib.sha256(data).hexdigest()), *others]
    return stores.resealed(vm, vm.points[-1], files=[*entries, *vm.points[-1].manifest.files])


@pytest.mark.parametrize("keeps_size", [True, False])
@pytest.mark.parametrize("is_removed", [True, False])
@pytest.mark.parametrize("is_refused_anyway", [True, False])
def test_no_source_has_a_sound_file_replaced(vm, other, tmp_path, keeps_size, is_removed, is_refused_anyway):
    """Anyone who can write to the source must not be able to destroy earlier copies."""
    take(vm, other)
    path = f"{vm.points[0].id}/vda.0000.zst"
    before = (other.folder / path).read_bytes()
    if is_removed:  # which can be taken back
        for point in vm.points:
            removal.remove(other.series, point)
    lost = FileEntry(f"{vm.points[0].id}/nowhere", 3, "0" * 64)
    evil = forged(vm, path, bytes(len(before)) if keeps_size else b"encrypted", *[lost] * is_refused_anyway)
    with pytest.raises(errors.StoreError, match="vda.0000.zst differs from the one of that name"):
        take(vm, other, evil)
    assert (other.folder / path).read_bytes() == before
    assert not (other.folder / evil.id).exists()
    assert_restores(other, tmp_path)


def test_no_file_of_a_point_that_cannot_be_read_is_replaced(vm, other):
    """It may need the file."""
    take(vm, other)
    path = f"{vm.points[0].id}/vda.0000.zst"
    before = (other.folder / path).read_bytes()
    for point in vm.points:
        (other.folder / point.id / "manifest.json").write_bytes(b"?")
    evil = forged(vm, path, b"encrypted")
    with half_points.writing(other.series), pytest.raises(errors.StoreError, match="or may be"):
        incoming.Incoming(vm.series, other.series, [], Throttle()).take(evil)
    assert (other.folder / path).read_bytes() == before


def test_a_dry_run_ends_while_it_reads_a_file_of_the_destination(vm, other):
    """A point there that cannot be read may need the file, so it matters whether it is the same one."""
    take(vm, other)
    for point in vm.points:
        (other.folder / point.id / "manifest.json").write_bytes(b"?")

    def check():
        raise errors.Interrupted(signal.SIGINT)

    with pytest.raises(errors.Interrupted):
        incoming.Incoming(vm.series, other.series, [], Throttle()).foresee(vm.points[0], [], check)


def test_no_file_appears_where_a_table_stands_for_another(vm, other):
    """Points are read through the table only as long as the file does not exist."""
    take(vm, other)
    path = f"{vm.points[0].id}/vda.0000.zst"
    (other.folder / path).rename(other.folder / f"{path}.moved")
    with pytest.raises(errors.StoreError, match="differs from the one of that name"):
        take(vm, other, forged(vm, path, b"encrypted"))
    assert not (other.folder / path).exists()


def test_files_of_an_interrupted_cp(vm, other, tmp_path):
    """They have the right size, but other bytes: no file in a directory without a manifest is trusted."""
    first = vm.points[0].id
    shutil.copytree(vm.folder / first, other.folder / first, ignore=shutil.ignore_patterns("manifest.json"))
    path = other.folder / first / "vda.0000.zst"
    path.write_bytes(bytes(path.stat().st_size))
    (other.folder / first / "vda.0001.zst").unlink()
    [taken] = take(vm, other, vm.points[0])
    assert taken.files == 2
    assert_restores(other, tmp_path)


def test_special_files_are_not_written_to(vm, other, tmp_path):
    folder = other.folder / vm.points[0].id
    folder.mkdir(parents=True)
    (folder / "vda.0000.zst").symlink_to(tmp_path / "elsewhere")
    take(vm, other, vm.points[0])
    assert not (tmp_path / "elsewhere").exists() and not (folder / "vda.0000.zst").is_symlink()
    assert_restores(other, tmp_path)


def test_findings_and_pins_stay_where_they_are(vm, other):
    """The copy is on another medium; and its removals are decided there."""
    stores.verify_store(vm.root, keep=True)
    pins.pin(vm.series, vm.points[0], "before the upgrade")
    take(vm, other)
    assert findings.load(vm.series) and findings.load(other.series) == []
    assert pins.of_point(other.series, vm.points[0]) is None


def test_the_reported_bytes_are_those_written(vm, other):
    throttle = mock.Mock(Throttle)
    with half_points.writing(other.series):
        taken = incoming.Incoming(vm.series, other.series, [], throttle).take(vm.points[0])
    assert sum(call.args[0] for call in throttle.take.call_args_list) == taken.bytes > MIB // 10


# -- files that were moved --------------------------------------------------------------------------------------------


def moved_chunks(vm, point, disk, new_id="20270101T000000Z-000000aa"):
    """Move all frames that a point shows of a disk and others stored; return the paths of their files."""
    paths = [entry.path for entry in stores.chunks_of(vm, point, disk) if not entry.path.startswith(point.id)]
    stores.move(vm, point, disk, paths, new_id)
    return paths


def test_a_point_whose_files_were_moved(vm, other, tmp_path):
    last = vm.points[2]
    paths = moved_chunks(vm, last, "vda")
    take(vm, other, last)
    assert [path for path in paths if (other.folder / path).exists()] == []
    assert_restores(other, tmp_path)
    assert half_points.names(other.series) == []


def test_files_that_are_moved_meanwhile(vm, other, tmp_path):
    last, reported = vm.points[2], []

    def tell(count):
        reported.append(count)
        if len(reported) == 1:
            moved_chunks(vm, last, "vda")

    with half_points.writing(other.series):
        incoming.Incoming(vm.series, other.series, [], Throttle()).take(last, tell)
    assert (other.folder / "20270101T000000Z-000000aa").exists()
    assert_restores(other, tmp_path)


def test_existing_files_are_not_moved(vm, other, tmp_path):
    """The other store moves what it wants."""
    take(vm, other, vm.points[1])
    paths = moved_chunks(vm, vm.points[2], "vda")
    [taken] = take(vm, other, vm.points[2])
    had = [path for path in paths if (other.folder / path).exists()]
    assert had and not any((other.folder / f"{path}.moved").exists() for path in had)
    assert taken.files < len(references.of_point(vm.series, vm.points[2]))
    assert_restores(other, tmp_path)


@pytest.fixture
def moved_twice(tmp_path):
    """(a Vm of which all but the third point was removed, with the frames moved that it shows of the first one's file;
    the same with the second point; a file that both were moved out of)"""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 200 * KIB)
    for number, length in enumerate((200, 64, 64)):
        vm.write("vda", 64 * KIB * number * (length < 100), random.Random(number).randbytes(length * KIB))
        vm.pull()
    first, second, third = vm.points
    vm.store.rename(f"vm1/{first.id}/manifest.json", f"vm1/{first.id}/{half_points.REMOVED}")
    twin = vm.copy(tmp_path / "twin")
    [path] = moved_chunks(vm, third, "vda")[:1]
    assert path in moved_chunks(twin, second, "vda", "20270101T000000Z-000000bb")
    return vm, twin, path


def test_frames_that_were_moved_in_two_ways(moved_twice, tmp_path):
    """Each store moved what its points show: the table leads to all of it, and to the same after another copy."""
    vm, twin, path = moved_twice
    other = over(vm, tmp_path / "other")
    table = other.folder / f"{path}.moved"
    take(vm, other, vm.points[2])
    before = table.read_bytes()
    take(twin, other, vm.points[1])
    after = table.read_bytes()
    assert len(after) > len(before)
    assert_restores(other, tmp_path)
    removal.remove(other.series, vm.points[2])
    take(vm, other, vm.points[2])
    assert table.read_bytes() == after
    assert_restores(other, tmp_path)


def test_killed_at_every_step_where_a_table_is_replaced(moved_twice, tmp_path):
    """Before and after that, the existing points are read through it."""
    vm, twin, path = moved_twice
    before = over(vm, tmp_path / "before")
    take(vm, before, vm.points[2])
    tables = set()
    for count in range(200):
        shutil.copytree(before.root, tmp_path / "other")
        other = over(vm, tmp_path / "other")
        was_killed = killed_at(count, lambda other=other: take(twin, other, vm.points[1]))
        there, table = other.series.points(), (other.folder / f"{path}.moved").read_bytes()
        for point in there:
            assert not any(map(other.series.file_flaw, references.of_point(other.series, point)))
            if table not in tables:
                assert stores.restored(other, point, tmp_path / "out") == vm.images[point.id]
        tables.add(table)
        if vm.points[1] not in there:
            take(twin, other, vm.points[1])
        assert not any(map(other.series.file_flaw, references.of_point(other.series, vm.points[1])))
        shutil.rmtree(other.root)
        if not was_killed:
            break
    assert count > 20 and len(tables) == 2


@pytest.mark.parametrize("seed", range(2))
def test_both_stores_remove_and_repack(tmp_path, seed):
    """And each is copied to the other, in any order: every existing point restores."""
    rng = random.Random(seed)
    vm = stores.chain(tmp_path / "store", seed, points=5, size=300 * KIB, frame_size=64 * KIB)
    sides = [vm, over(vm, tmp_path / "other")]
    there = [{point.id for point in vm.points}, set()]
    tables = 0
    for _ in range(30):
        number = rng.randrange(2)
        here, known, elsewhere = sides[number], there[number], there[1 - number]
        point = rng.choice(vm.points)
        if point.id in known and (elsewhere - known or len(known) > 1):
            removal.remove(here.series, point)
            known.remove(point.id)
        elif point.id in elsewhere - known:
            take(sides[1 - number], here, point)
            known.add(point.id)
        removal.sweep(here.series, rng.choice([0, 60]))
        repack.repack(here.series, repack.Wanted(below=0.95))
        tables += sum(path.suffix == ".moved" for path in stores.files(here.folder))
        for each in here.series.points():
            assert not any(map(here.series.file_flaw, references.of_point(here.series, each)))
    assert tables, "something was moved"
    for here, known in zip(sides, there):
        assert {each.id for each in here.series.points()} == known
        assert_restores(here, tmp_path)
        removal.sweep(here.series, 0)
        assert not leftovers(here)
        assert_restores(here, tmp_path)
