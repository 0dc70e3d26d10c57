"""Points that are removed in any order, while nothing is removed that another point needs."""

import errno
import itertools
import os
import random
import shutil
from unittest import mock

import dying
import pytest
import stores
import strange
from stores import KIB, MIB

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.pulling import held_series
from nbdpull.repository import grace, half_points, pins, removal
from nbdpull.repository.image import Image
from nbdpull.storage import beneath
from nbdpull.storage.directory import DirectoryStore

pytestmark = pytest.mark.usefixtures("no_threads")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("made") / "store", 12)


@pytest.fixture
def vm(made, tmp_path):
    """A series of three points."""
    return made.copy(tmp_path / "store")


def restores(vm, folder):
    """Require that every remaining point restores byte for byte."""
    for point in vm.series.points():
        assert stores.restored(vm, point, folder / "out") == vm.images[point.id]


def leftovers(vm):
    """Return the files of removed points that nothing refers to."""
    kept = removal.referred(vm.series)
    names = [(name, file) for name in half_points.removed(vm.series) for file in vm.store.names(f"vm1/{name}")]
    return [each for each in names if "/".join(each) not in kept and each[1] != half_points.REMOVED]


def left(vm):
    return {str(path.relative_to(vm.folder)) for path in stores.files(vm.folder)}


def gone(vm, point, grace=0.0):
    with half_points.writing(vm.series):
        removal.remove(vm.series, point)
        return removal.sweep(vm.series, grace)


@pytest.mark.parametrize("window", [MIB, layout.WINDOW])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_points_can_be_removed_in_any_order(tmp_path, seed, window, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", window)
    rng = random.Random(seed)
    vm = stores.chain(tmp_path / "store", seed, points=7, size=2 * MIB + 1234)
    order = rng.sample(vm.points, len(vm.points))
    for number, point in enumerate(order):
        gone(vm, point)
        assert {each.id for each in vm.series.points()} == {each.id for each in order[number + 1 :]}
        assert not leftovers(vm)
        restores(vm, tmp_path)
    assert left(vm) == {f"{vm.points[-1].id}/{half_points.REMOVED}"}, "only the highest number is left without points"


def test_a_pull_continues_the_series_after_a_removal(tmp_path):
    vm = stores.chain(tmp_path / "store", 5, points=4)
    for point in vm.points[:3]:
        gone(vm, point)
    vm.write("vda", 4096, b"x" * 70000)
    vm.pull()
    restores(vm, tmp_path)
    gone(vm, vm.points[3])
    restores(vm, tmp_path)
    assert not stores.verify_store(vm.root).is_bad


def test_files_wait_for_readers(vm):
    last = vm.points[-1]
    own = sum(path.stat().st_size for path in stores.files(vm.folder / last.id)) - vm.store.size(
        f"vm1/{last.id}/manifest.json"
    )
    before = stores.files(vm.root)
    swept = gone(vm, last, grace=60)
    assert (swept.freed, swept.waiting, swept.points) == (0, own, ())
    assert len(stores.files(vm.root)) == len(before), "nothing but a name has changed"
    assert vm.series.point().id == vm.points[-2].id
    with mock.patch("time.time", return_value=10**11):
        assert removal.sweep(vm.series, 60) == removal.Swept(freed=own, points=(last.id,))
    assert vm.store.names(f"vm1/{last.id}") == [half_points.REMOVED]


def test_files_wait_for_readers_of_every_point_that_referred_to_them(vm, tmp_path):
    """A point was removed two days ago, and one that shares files with it just now: its readers need all of them."""
    first, second, last = vm.points
    hours = {first.id: 48}
    with mock.patch.object(half_points, "seconds_removed", lambda _, name: hours.get(name, 0) * 3600.0):
        gone(vm, first, grace.GRACE)
        with Image(vm.series, last, "vda") as begun:
            gone(vm, second, grace.GRACE)
            swept = gone(vm, last, grace.GRACE)
            assert stores.shown(begun)[0].tobytes() == vm.images[last.id]["vda"]
        assert swept.freed == 0 and swept.waiting > 0
        (vm.folder / last.id / half_points.REMOVED).rename(vm.folder / last.id / layout.MANIFEST)
        restores(vm, tmp_path)  # it was taken back
        removal.remove(vm.series, last)
        hours.update({second.id: 25, last.id: 25})
        assert (ended := removal.sweep(vm.series)).freed == swept.freed + swept.waiting
        assert sorted(ended.points) == sorted(point.id for point in vm.points)
    assert left(vm) == {f"{last.id}/{half_points.REMOVED}"}


def test_what_several_removed_points_refer_to_is_looked_for_once(vm):
    def looks():
        with mock.patch.object(DirectoryStore, "size", autospec=True, side_effect=DirectoryStore.size) as size:
            removal.sweep(vm.series, 10**6)
        return sorted(path for _, path in (call.args for call in size.call_args_list) if path.endswith(".zst"))

    first, *others = vm.points
    gone(vm, others[0], 10**6)
    shared = [path for path in looks() if path.startswith(f"vm1/{first.id}/")]
    gone(vm, others[1], 10**6)
    assert shared and [path for path in looks() if path.startswith(f"vm1/{first.id}/")] == shared


def test_what_was_removed_at_once_keeps_no_file(vm):
    """Its readers were not waited for."""
    gone(vm, vm.points[1])
    gone(vm, vm.points[2])
    hours = {vm.points[0].id: 48}
    with mock.patch.object(half_points, "seconds_removed", lambda _, name: hours.get(name, 0) * 3600.0):
        gone(vm, vm.points[0], grace.GRACE)
    assert left(vm) == {f"{vm.points[2].id}/{half_points.REMOVED}"}


def test_a_removal_can_be_taken_back(vm, tmp_path):
    gone(vm, vm.points[1], grace=60)
    (vm.folder / vm.points[1].id / half_points.REMOVED).rename(vm.folder / vm.points[1].id / layout.MANIFEST)
    assert vm.series.points() == vm.points
    assert removal.sweep(vm.series, 0) == removal.Swept()
    restores(vm, tmp_path)


def test_a_dry_run_predicts_what_is_freed(tmp_path):
    vm = stores.chain(tmp_path / "store", 8, points=6)
    chosen = vm.points[1:4]
    look = removal.would_sweep(vm.series, frozenset(point.id for point in chosen))
    assert vm.series.points() == vm.points
    manifests = sum(vm.store.size(f"vm1/{point.id}/manifest.json") for point in chosen)
    for point in chosen:
        removal.remove(vm.series, point)
    swept = removal.sweep(vm.series, 0)
    assert swept.freed == look.waiting - manifests and swept.shared == look.shared


@pytest.mark.parametrize("what", ["manifest.json", "vda.directory"])
def test_no_file_is_removed_if_a_point_cannot_be_read(vm, what):
    removal.remove(vm.series, vm.points[0])
    before = stores.files(vm.root)
    path = vm.folder / vm.points[2].id / what
    with stores.damaged(path, stores.flipped(path.read_bytes(), 100)), pytest.raises(errors.Damaged) as raised:
        removal.sweep(vm.series, 0)
    assert str(path) in str(raised.value)
    assert stores.files(vm.root) == before


def number_of_the_next(vm):
    with held_series.holding(vm.series) as held:
        return held.sequence


@pytest.mark.parametrize("grace", [0, 60])
def test_a_number_is_never_used_again(vm, grace):
    """Copies elsewhere may have the point that had it, and would take the new one for that one, or for an older one."""
    assert [point.manifest.sequence for point in vm.points] == [1, 2, 3]
    for point in [vm.points[1], vm.points[2], vm.points[0]]:
        gone(vm, point, grace)
        removal.sweep(vm.series, grace)
        assert number_of_the_next(vm) == 4
    new = vm.pull("nothing")
    assert new.manifest.sequence == 4
    removal.sweep(vm.series, 0)
    assert vm.store.folders("vm1") == [new.id], "what held the number before is no longer needed"
    gone(vm, new)
    assert number_of_the_next(vm) == 5


def test_the_number_of_a_point_that_cannot_be_read_is_not_used_again(tmp_path):
    """The numbers between its own and that of the newest readable point may be those of removed points."""
    vm = stores.chain(tmp_path / "store", 14, points=4, size=MIB)
    for point in vm.points[1:3]:
        gone(vm, point)
    path = vm.folder / vm.points[3].id / layout.MANIFEST
    data = path.read_bytes()
    with stores.damaged(path, stores.flipped(data, data.index(b'"domain"') + 3)):
        assert number_of_the_next(vm) > 4
    with stores.damaged(path, data[:20]):
        assert number_of_the_next(vm) > 1


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 1000], ids=["empty", "other", "text"])
def test_a_damaged_removed_manifest_is_ignored(vm, data):
    for point in vm.points[1:]:
        removal.remove(vm.series, point)
    (vm.folder / vm.points[1].id / half_points.REMOVED).write_bytes(data)
    assert number_of_the_next(vm) == 4
    removal.sweep(vm.series, 0)
    (vm.folder / vm.points[2].id / half_points.REMOVED).write_bytes(data)
    assert number_of_the_next(vm) == 2
    removal.sweep(vm.series, 0)
    assert vm.store.folders("vm1") == [vm.points[0].id]


@pytest.mark.parametrize("kind", strange.FILES)
def test_special_files_stop_no_sweep(tmp_path, kind):
    """Such as the directory that a file server makes for itself (@eaDir): it is left alone, with the directory that
    contains it."""
    vm = stores.chain(tmp_path / "store", 14, points=3, size=256 * KIB)
    last, odd = vm.pull("nothing", dedupe=False), vm.folder / vm.points[0].id / "odd"
    twin = vm.copy(tmp_path / "twin")
    strange.FILES[kind](odd)
    for point in vm.points[:3]:
        found, wanted = gone(vm, point), gone(twin, point)
        assert (found.freed, found.shared) == (wanted.freed, wanted.shared)
    restores(vm, tmp_path)
    assert set(vm.store.folders("vm1")) == {odd.parent.name, last.id} and twin.store.folders("vm1") == [last.id]
    assert sorted(os.listdir(odd.parent)) == [half_points.REMOVED, "odd"]
    assert removal.sweep(vm.series, 0) == removal.Swept()
    odd.rmdir() if kind == "folder" else odd.unlink()
    removal.sweep(vm.series, 0)
    assert vm.store.folders("vm1") == [last.id]


CALLS = {"names": (os, "scandir"), "holds": (beneath, "status"), "inode": (beneath, "status")}


def failing(folder, call, left=None, code=errno.EIO):
    """Let one system call on what is in a directory fail, as on a bad disk or an unavailable share. left: only this one
    of the calls there, counted from 0."""
    module, name = CALLS[call]
    real, number = getattr(module, name), folder.stat().st_ino
    count = itertools.count()

    def fails(descriptor, *rest):
        if os.fstat(descriptor).st_ino == number and left in (None, next(count)):
            raise OSError(code, os.strerror(code))
        return real(descriptor, *rest)

    return mock.patch.object(module, name, fails)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("call", CALLS)
def test_unreadable_folders_do_not_count_as_absent(vm, call, code):
    folder = f"vm1/{vm.points[0].id}"
    with (
        failing(vm.folder / vm.points[0].id, call, code=code),
        pytest.raises(errors.StoreError, match=os.strerror(code)),
    ):
        getattr(vm.store, call)(folder if call == "names" else f"{folder}/{half_points.REMOVED}")
    assert vm.store.names("vm1/none") == [] and not vm.store.holds("vm1/none/file")


def test_no_file_is_removed_if_a_check_failed(vm, tmp_path):
    """Whichever call it is: what cannot be listed is not empty, and what may not be a removed point is no half
    point."""
    removal.remove(vm.series, vm.points[0])
    removal.sweep(vm.series, 0)
    before, failed = stores.files(vm.root), 0
    for call, left in itertools.product(("names", "holds"), range(12)):
        with failing(vm.folder / vm.points[0].id, call, left):
            try:
                for name in half_points.names(vm.series):
                    half_points.remove(vm.series, name)
                removal.sweep(vm.series, 0)
            except errors.NbdpullError:
                failed += 1
        assert stores.files(vm.root) == before, (call, left)
    assert failed > 5
    restores(vm, tmp_path)


def test_an_unreadable_pin_counts_as_a_pin(vm):
    pins.pin(vm.series, vm.points[0], "evidence")
    with failing(vm.folder / vm.points[0].id, "holds"):
        assert "pinned.json cannot be read" in pins.of_point(vm.series, vm.points[0]).reason
        with pytest.raises(errors.StoreError):
            pins.unpin(vm.series, vm.points[0])
    assert pins.of_point(vm.series, vm.points[0]).reason == "evidence"
    assert pins.of_point(vm.series, vm.points[1]) is None


def calls_until_the_end(vm, folder):
    """Return how many calls a removal makes; each is made to fail once, and the next run completes it."""
    for count in range(100):
        twin = vm.copy(folder / f"store{count}")
        if not dying.killed_at(count, lambda twin=twin: remove_two(twin), CHANGES):
            return count
        restores(twin, folder)
        removal.sweep(twin.series, 0)
        assert not leftovers(twin)
        restores(twin, folder)
        shutil.rmtree(twin.root)
    raise AssertionError("it never ends")


CHANGES = {DirectoryStore: ("rename", "delete", "remove_file", "remove_folder", "sync_folder")}


def remove_two(vm):
    for point in vm.points[1:3]:
        removal.remove(vm.series, point)
    removal.sweep(vm.series, 0)


def test_killed_at_every_step_and_ended_by_the_next_run(tmp_path):
    vm = stores.chain(tmp_path / "store", 10, points=4, size=MIB + 1234, chunk_size=100 * KIB)
    assert calls_until_the_end(vm, tmp_path) > 10


def test_leftovers_of_a_removed_point_are_not_a_half_point(vm, tmp_path):
    gone(vm, vm.points[0])
    assert half_points.removed(vm.series) == [vm.points[0].id] and half_points.names(vm.series) == []
    (vm.folder / vm.points[0].id / half_points.REMOVED).unlink()
    assert half_points.names(vm.series) == [vm.points[0].id]
    assert removal.why_stays(vm.series, vm.points[0].id) == "points refer to its files"
    restores(vm, tmp_path)
