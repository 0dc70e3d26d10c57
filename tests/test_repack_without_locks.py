"""Repacks in a store without locks: the moved files are removed later, and nothing that a point shows is ever lost."""

import itertools
import random
import shutil
from unittest import mock

import command
import dying
import pytest
import stores
from copies import take
from hours import Hours, without_locks
from stores import KIB
from worn import HALF, mostly_hidden, scattered

from nbdpull.core import errors
from nbdpull.format import layout, moved
from nbdpull.repository import (
    half_points,
    incoming,
    live_frames,
    lock_free,
    lookup,
    removal,
    repack,
    sweep_mark,
    usage,
)
from nbdpull.storage.directory import DirectoryStore


@pytest.fixture(autouse=True)
def small_costs(monkeypatch):
    monkeypatch.setattr(live_frames, "FILE_COST", 300)


@pytest.fixture
def hours():
    with without_locks(DirectoryStore), Hours(DirectoryStore) as passing:
        yield passing


@pytest.fixture
def vm(tmp_path, hours):
    """Most of its data is hidden, and only the last two points remain, the others were removed long ago."""
    made = mostly_hidden(tmp_path / "store", chunk_size=40 * KIB)
    remove(made, made.points[:-2])
    hours.let_pass(27)
    return made


def remove(vm, points):
    for point in points:
        removal.remove(vm.series, point)


def prune(vm, wanted=HALF):
    swept = removal.sweep(vm.series, emptied=lambda: repack.emptied(vm.series))
    return swept, repack.repack(vm.series, wanted)


def intact(vm, *others):
    for point in [*vm.series.points(), *others]:
        for disk, content in vm.images[point.id].items():
            with lookup.RandomImage(vm.series, point, disk) as image:
                assert image.read(0, image.size) == content


def beside(vm):
    """Return the paths of files that have a table beside them."""
    tables = [path.with_name(path.name[: -len(layout.MOVED)]) for path in vm.folder.rglob(f"*{layout.MOVED}")]
    return sorted(path for path in tables if path.exists())


def strays(vm):
    kept = removal.referred(vm.series)
    names = [*half_points.removed(vm.series), *half_points.repacked(vm.series)]
    files = [f"{name}/{file}" for name in names for file in vm.store.names(f"vm1/{name}")]
    bookkeeping = (half_points.REMOVED, layout.REPACKED, sweep_mark.NAME)
    return [path for path in files if path not in kept and path.partition("/")[2] not in bookkeeping]


def chunks(vm):
    return sum(path.stat().st_size for path in vm.folder.rglob("*.zst"))


def test_moved_files_are_removed_a_day_later(vm, hours):
    swept, found = prune(vm)
    old = beside(vm)
    sizes = sum(path.stat().st_size for path in old)
    new = [path for path in vm.folder.rglob("*") if path.name.endswith(layout.MOVED)]
    new += [path for name in half_points.repacked(vm.series) for path in (vm.folder / name).glob("*.zst")]
    assert usage.of_series(vm.series).waiting == sum(path.stat().st_size for path in new), "room that is taken twice"
    assert len(old) > 1 and found == repack.Repacked(found.moved, 0, 0, waiting=sizes) and 0 < found.moved < sizes / 2
    intact(vm)
    before = chunks(vm)
    hours.let_pass(25)
    swept, again = prune(vm)
    assert beside(vm) == old and again == repack.Repacked(waiting=sizes), "it is moved once"
    hours.let_pass(2)
    swept, again = prune(vm)
    assert swept.freed >= sizes and beside(vm) == [] and again == repack.Repacked()
    assert chunks(vm) == before - sizes
    intact(vm)
    assert not strays(vm) and not stores.verify_store(vm.root).is_bad
    vm.write("vda", 0, b"x" * 9000)
    vm.pull()
    intact(vm)


def test_a_dry_run_predicts_what_is_moved(tmp_path, hours):
    vm = mostly_hidden(tmp_path / "store", chunk_size=40 * KIB)
    names = repack.would_repack(vm.series, [point.id for point in vm.points[:-2]], HALF)
    remove(vm, vm.points[:-2])
    hours.let_pass(27)
    assert prune(vm)[1] == names
    assert repack.would_repack(vm.series, [], HALF) == repack.Repacked(waiting=names.waiting)


def test_files_with_moved_frames_are_kept_until_no_table_points_to_them(vm, hours):
    """Nobody replaces a table."""
    prune(vm)
    tables = {path: path.read_bytes() for path in vm.folder.rglob(f"*{layout.MOVED}")}
    for _ in range(3):
        scattered(vm, random.Random(8), 60)
        vm.pull(frame_size=4096)
        remove(vm, vm.series.points()[:-1])
        hours.let_pass(27)
        prune(vm)
        intact(vm)
    assert all(path.read_bytes() == data for path, data in tables.items() if path.exists())
    vm.write("vda", 0, random.Random(9).randbytes(vm.disks["vda"].size))
    vm.write("vdb", 0, random.Random(9).randbytes(vm.disks["vdb"].size))
    vm.pull()
    remove(vm, vm.series.points()[:-1])
    for _ in range(3):
        hours.let_pass(27)
        prune(vm)
    intact(vm)
    assert not strays(vm) and [*vm.folder.rglob(f"*{layout.MOVED}")] == []


CHANGES = {DirectoryStore: ["delete", "remove_file", "remove_folder", "make_folder", "create", "publish", "replace"]}


def test_killed_at_every_step(tmp_path, hours):
    """The run that moves, and the later one that removes: every point is whole, and the next runs complete it."""
    vm = mostly_hidden(tmp_path / "store", rounds=3)
    remove(vm, vm.points[:-1])
    hours.let_pass(27)
    for later in (False, True):
        for steps in itertools.count():
            twin = vm.copy(tmp_path / f"{later}-{steps}")
            hours.let_pass(27)
            died = dying.killed_at(steps, lambda: prune(twin), CHANGES)  # noqa: B023
            intact(twin)
            if steps % 9 == 0:  # each of these takes a while
                for _ in range(3):
                    hours.let_pass(27)
                    assert prune(twin)[1].problems == ()
                    intact(twin)
                assert beside(twin) == [] and not strays(twin)
            shutil.rmtree(twin.root)
            if not died:
                break
        assert steps > 4
        prune(vm)


def meanwhile(call, ending, do):
    """Let something happen once, before a call of the store with such a path."""
    real, done = getattr(DirectoryStore, call), []

    def first(self, path, *args, **how):
        if not done and path.endswith(ending):
            done.append(path)
            do()
        return real(self, path, *args, **how)

    return mock.patch.object(DirectoryStore, call, first)


def test_only_one_of_two_concurrent_repacks_moves_a_file(vm, hours):
    """The new file of the other one is a stray, which is removed in its time."""
    found = []
    with meanwhile("publish", layout.MOVED, lambda: found.append(prune(vm)[1])):
        found.append(prune(vm)[1])
    first, second = found
    assert first.moved and not second.moved and second.problems == () and strays(vm)
    intact(vm)
    for _ in range(2):
        hours.let_pass(27)
        prune(vm)
        intact(vm)
    assert not strays(vm) and beside(vm) == []


def test_a_run_that_was_paused_too_long_writes_no_table(vm, hours):
    """A sweep may be about to remove its new file as a stray."""
    with meanwhile("seconds_since_change", layout.REPACKED, lambda: hours.let_pass(21)):
        _, found = prune(vm)
    assert found.moved == 0 and beside(vm) == [] and "was made too long ago" in found.problems[0]
    hours.let_pass(27)
    assert prune(vm)[1].moved
    intact(vm)


def test_what_was_moved_to_is_damaged(vm, hours):
    """Then the old file stays: it is the only copy."""
    prune(vm)
    old = beside(vm)
    for path in [path for name in half_points.repacked(vm.series) for path in (vm.folder / name).glob("*.zst")]:
        path.write_bytes(stores.flipped(path.read_bytes(), path.stat().st_size // 2))
    hours.let_pass(27)
    prune(vm)
    assert beside(vm) == old
    intact(vm)


# -- copies -----------------------------------------------------------------------------------------------------------


class Two:
    """A store in which files were moved, and another one of the same domain, whose points can be copied into it."""

    def __init__(self, folder, hours):
        self.here, self.hours = mostly_hidden(folder / "store", rounds=2, chunk_size=40 * KIB), hours
        self.old = self.here.copy(folder / "old")
        for seed in range(2):
            scattered(self.here, random.Random(seed), 80)
            self.here.pull(frame_size=4096, chunk_size=40 * KIB, batch_size=16 * KIB)
        self.new = self.here.copy(folder / "new")
        remove(self.here, self.here.points[:-2])
        hours.let_pass(27)
        prune(self.here)
        self.files = beside(self.here)
        hours.let_pass(27)

    def branch(self):
        """Return a point that shows all of a file that the older store shows; those here show less of it."""
        shown = stores.directory_of(self.old, self.old.points[-1], "vda")
        known = {path.relative_to(self.here.folder).as_posix() for path in self.files}
        entry = next(each for each in shown.files if each.path in known)
        records = stores._frames(shown, entry).copy()
        records["chunk"] = 0
        point = self.old.pull("nothing", disks=["vda"], sequence=50, handmade={"vda": lambda _: (records, [entry])})
        with lookup.RandomImage(self.old.series, point, "vda") as image:
            self.old.images[point.id] = {"vda": image.read(0, image.size)}
        return point, self.here.folder / entry.path

    def take(self, vm, point):
        take(vm, self.here, point)
        self.here.images[point.id] = vm.images[point.id]


@pytest.fixture
def two(tmp_path, hours):
    return Two(tmp_path, hours)


def test_a_point_that_shows_more_than_was_moved_keeps_the_old_file(two):
    (point, old), vm = two.branch(), two.here
    two.take(two.old, point)
    assert old in two.files == beside(vm)
    prune(vm)
    assert beside(vm) == [old]
    intact(vm)
    bookkeeping = (layout.MANIFEST, layout.REPACKED, half_points.REMOVED, sweep_mark.NAME)
    sizes = [path.stat().st_size for path in vm.folder.rglob("*") if path.is_file() and path.name not in bookkeeping]
    assert usage.of_series(vm.series).stored == sum(sizes), "what two files were moved to counts once"
    with mock.patch.object(type(vm.series), "own_flaw", side_effect=AssertionError("read for a file that stays")):
        prune(vm)


def test_a_point_committed_just_before_a_sweep(two):
    """The sweep has decided what to remove, and lists again."""
    (point, old), vm = two.branch(), two.here
    with meanwhile("replace", f"{old.parent.name}/{sweep_mark.NAME}", lambda: two.take(two.old, point)):
        prune(vm)
    assert point.id in stores.ids(vm) and old in beside(vm)
    intact(vm)


def test_a_file_that_a_point_relies_on_is_removed_just_before_its_manifest(two):
    (point, old), vm = two.branch(), two.here
    gone = meanwhile("publish", layout.MANIFEST, lambda: prune(vm))
    with gone, pytest.raises(errors.Busy, match=f"{old.name} of vm1 was repacked meanwhile: copy again"):
        two.take(two.old, point)
    assert not old.exists() and point.id not in stores.ids(vm)
    intact(vm)


def test_a_point_committed_after_a_sweep_has_started(two, monkeypatch):
    """And has not seen it, wherever the sweep is by now."""
    (point, old), vm = two.branch(), two.here
    real = lock_free.has_more

    def begun(series, known):
        if sweep_mark.is_young(series, old.parent.name):
            with pytest.raises(errors.Busy, match=f"may be removing .*/{old.name} of vm1, which was repacked"):
                two.take(two.old, point)
            raise dying.Killed
        return real(series, known)

    with monkeypatch.context() as patch, pytest.raises(dying.Killed):
        patch.setattr(lock_free, "has_more", begun)
        prune(vm)
    assert point.id not in stores.ids(vm) and old.exists()
    two.hours.let_pass(23)
    half_points.renew(vm.series, point.id)  # its own directory, of what was given up
    two.take(two.old, point)
    prune(vm)
    assert old.exists()
    intact(vm)


@pytest.mark.parametrize("has_base", [True, False])
def test_moved_frames_are_not_copied_again(two, has_base):
    """The table leads to everything that a newer point shows: its base says so, or its pages if that is not here."""
    vm, source = two.here, two.new
    prune(vm)
    gone = [path for path in source.folder.rglob("*.zst") if not (vm.folder / path.relative_to(source.folder)).exists()]
    for _ in range(1 if has_base else 2):
        scattered(source, random.Random(3), 5)
        point = source.pull(frame_size=4096)
    with mock.patch.object(live_frames, "led", None if has_base else live_frames.led):
        two.take(source, point)
    assert gone and not any((vm.folder / path.relative_to(source.folder)).exists() for path in gone)
    intact(vm)


def test_what_was_not_moved_is_not_counted_on(two):
    (point, old), vm = two.branch(), two.here
    prune(vm)
    two.hours.let_pass(27)
    with pytest.raises(errors.StoreError, match="points there still need some of its files"):  # no time helps
        two.take(two.old, point)
    assert not old.exists()
    intact(vm)


def test_what_only_removed_points_were_moved_to_is_not_counted_on(two):
    """Two copies at once would not find it otherwise."""
    vm, point = two.here, two.new.points[-1]
    prune(vm)
    remove(vm, vm.series.points())
    for _ in range(2):
        with pytest.raises(
            errors.Busy, match="was moved to may .* copy again a day after nbdpull prune has removed it"
        ):
            two.take(two.new, point)
        prune(vm)
    for _ in range(3):
        two.hours.let_pass(27)
        prune(vm)
    two.take(two.new, point)
    intact(vm)


def test_no_copy_loses_what_another_run_has_moved(two, monkeypatch):
    """It is unknown where a table leads that was read before another run has extended it."""
    vm, source = two.here, two.new
    known = [entry for entry in stores.chunks_of(vm, vm.points[-1], "vda") if (vm.folder / entry.path) in beside(vm)]
    table = moved.read(vm.store, vm.series.folder, known[0])
    making = incoming._Making(vm.series, source.points[-1].id)
    with pytest.raises(errors.Busy, match="another run brought"):
        making.lead([table])
    assert (vm.folder / known[0].path).exists()


# -- by prune ---------------------------------------------------------------------------------------------------------


def test_prune_reports_what_it_frees_and_when(tmp_path, hours, capsys):
    vm = mostly_hidden(tmp_path / "store", chunk_size=40 * KIB)
    words = ("prune", vm.root, "--keep-last", "1", "--force")
    command.answered(capsys, *words)
    hours.let_pass(27)
    code, result, _ = command.answered_json(capsys, *words)
    [found] = result["domains"]
    names = [found[f"repack_{name}_bytes"] for name in ("moved", "freed", "waiting", "left")]
    waiting = sum(path.stat().st_size for path in beside(vm))
    assert (code, result["warnings"], names) == (0, [], [names[0], 0, waiting, 0]) and 0 < names[0] < waiting
    code, text, _ = command.answered(capsys, *words)
    assert "of repacked files are freed by a prune 26 hours after their repack" in text
    hours.let_pass(27)
    code, result, _ = command.answered_json(capsys, *words)
    assert code == 0 and result["domains"][0]["freed_bytes"] >= waiting
    assert result["domains"][0]["repack_waiting_bytes"] == 0
    intact(vm)
