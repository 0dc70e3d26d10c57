"""Commits in a store without locks: what is checked before and after them, so that no point that counts lacks a file,
and no number is used twice."""

import contextlib
from unittest import mock

import pytest
import stores
from copies import over, take
from stores import Vm

from nbdpull.core import errors
from nbdpull.core.throttle import Throttle
from nbdpull.format import layout
from nbdpull.operations import prune, remove
from nbdpull.repository import (
    grace,
    half_points,
    incoming,
    lock_free,
    new_point,
    references,
    removal,
    sweep_mark,
)
from nbdpull.storage.directory import DirectoryStore

HOUR = 3600.0


@pytest.fixture(autouse=True)
def _without_locks(monkeypatch):
    monkeypatch.setattr(DirectoryStore, "has_locks", False)
    monkeypatch.setattr(DirectoryStore, "locked", lambda *_: contextlib.nullcontext())


@pytest.fixture
def vm(tmp_path):
    return stores.chain(tmp_path / "store", 3, **stores.SMALL)


def aged(hours, ending=""):
    """Make all files, or those whose names end so, seem that old."""
    real = DirectoryStore.seconds_since_change

    def seconds(self, path, anew=False):
        return real(self, path) + (hours * HOUR if path.endswith(ending) else 0)

    return mock.patch.object(DirectoryStore, "seconds_since_change", seconds)


def just_before(call, do):
    """Let something happen once, before a call of the store."""
    real, done = getattr(DirectoryStore, call), []

    def first(self, path, *args, **how):
        if not done and path.endswith(layout.MANIFEST):
            done.append(path)
            do()
        return real(self, path, *args, **how)

    return mock.patch.object(DirectoryStore, call, first)


def test_a_commit_without_concurrent_runs(vm):
    before = len(vm.points)
    vm.pull()
    assert len(vm.series.points()) == before + 1


def test_a_number_that_another_run_took(vm):
    """It does not matter which of the two sees the other: whoever does withdraws."""
    known = [point.id for point in vm.series.points()]
    with pytest.raises(errors.Busy, match=f"another run made point {known[1]} of vm1 meanwhile: this one is given up"):
        vm.pull(sequence=2)
    assert [point.id for point in vm.series.points()] == known and half_points.names(vm.series) == []
    [given_up] = half_points.removed(vm.series)
    assert layout.directory_name("vda") in vm.store.names(f"vm1/{given_up}"), "somebody may build on it by now"
    with aged(27):
        removal.sweep(vm.series)
        removal.sweep(vm.series)  # of the mark that the first one left
    assert half_points.removed(vm.series) == []


def test_points_that_were_known_are_not_read_again(vm, monkeypatch):
    """They have other numbers; with a thousand of them it would take a thousand requests."""
    known, read, real = [point.id for point in vm.points], [], DirectoryStore.find
    commit = new_point.NewPoint.commit
    monkeypatch.setattr(new_point.NewPoint, "commit", lambda self, *args: commit(self, *args, known))
    monkeypatch.setattr(DirectoryStore, "find", lambda self, path, *a: read.append(path) or real(self, path, *a))
    vm.pull()
    assert read and not [path for path in read for name in known if name in path]


def gone(vm, point):
    (vm.folder / point.id / layout.MANIFEST).rename(vm.folder / point.id / half_points.REMOVED)


def test_a_base_that_was_removed_meanwhile(vm):
    """Its files stay for a day and more after that."""
    with just_before("publish", lambda: gone(vm, vm.points[-1])):
        made = vm.pull()
    assert vm.series.points()[-1] == made
    assert not any(map(vm.series.size_flaw, references.of_point(vm.series, made)))


@pytest.mark.parametrize("call", ["find", "publish"])
def test_a_base_that_was_removed_so_long_ago(vm, call, monkeypatch):
    """A pull that took too long, or whose machine was suspended before its manifest, may refer to what is being
    swept."""
    base, real = vm.points[-1], new_point.lock_free.require_base
    if call == "find":
        monkeypatch.setattr(new_point.lock_free, "require_base", _after(lambda: gone(vm, base), real))
    removed = just_before("publish", lambda: gone(vm, base)) if call == "publish" else contextlib.nullcontext()
    refused = pytest.raises(errors.Busy, match=f"point {base.id} of vm1, .* was removed meanwhile")
    with removed, aged(21, f"{base.id}/{half_points.REMOVED}"), refused:
        vm.pull()
    assert len(vm.series.points()) == len(vm.points) - 1


def test_a_base_that_is_swept_and_brought_back(vm):
    """A copy whose manifest exists may be about to withdraw it, and the sweep continues."""
    sweep_mark.put(vm.series, vm.points[-1].id)
    with pytest.raises(errors.Busy, match=f"point {vm.points[-1].id} of vm1, .* was removed"):
        vm.pull()
    with aged(23, sweep_mark.NAME):
        vm.pull()


def test_a_pull_that_paused_before_its_manifest(vm, monkeypatch):
    with contextlib.ExitStack() as late:
        prove = _after(lambda: late.enter_context(aged(21)), lock_free.prove)
        monkeypatch.setattr(new_point.lock_free, "prove", prove)
        with pytest.raises(errors.Busy, match="nothing was written of point .* for so long"):
            vm.pull()
    assert len(vm.series.points()) == len(vm.points) and half_points.removed(vm.series)


def _after(do, real):
    def call(*args):
        do()
        return real(*args)

    return call


def test_a_file_that_went_meanwhile(vm):
    """Whatever removed it: the point does not count."""
    chunk = stores.directory_of(vm, vm.points[-1], "vda").chunks[0]

    def lost():
        (vm.folder / chunk.path).unlink()

    with just_before("publish", lost), pytest.raises(errors.Damaged, match="somebody removed it while point"):
        vm.pull()
    assert len(vm.series.points()) == len(vm.points) and half_points.names(vm.series) == []


def test_a_manifest_that_cannot_be_taken_back(vm, monkeypatch):
    monkeypatch.setattr(half_points, "give_up", _raising)
    with pytest.raises(errors.Busy, match="and its manifest could not be taken back: remove point"):
        vm.pull(sequence=2)


def test_a_manifest_that_cannot_be_taken_back_after_a_signal(vm, monkeypatch):
    """The server is away, and the user presses Ctrl-C: it is still an interruption, and the point is named."""

    def interrupted(*about):
        raise errors.Interrupted(2)

    monkeypatch.setattr(half_points, "give_up", _raising)
    monkeypatch.setattr(lock_free, "_require_files", interrupted)
    with pytest.raises(errors.Interrupted, match="interrupted; and its manifest could not be taken back") as caught:
        vm.pull()
    assert caught.value.exit_code == 130


def test_a_point_that_nothing_was_written_of_for_a_day(vm):
    with aged(21), pytest.raises(errors.Busy, match="nothing was written of point .* for so long"):
        vm.pull()
    assert len(vm.series.points()) == len(vm.points)


# -- a sweep ----------------------------------------------------------------------------------------------------------


def test_the_time_of_a_removal_that_was_taken_back_does_not_count(vm, monkeypatch):
    """If the record of the removal cannot be removed, nothing is: it would look like our own of long ago."""
    point, real = vm.points[0], DirectoryStore.delete
    (vm.folder / point.id / half_points.REMOVED).write_bytes((vm.folder / point.id / layout.MANIFEST).read_bytes())
    monkeypatch.setattr(DirectoryStore, "delete", _raising)
    with pytest.raises(errors.OutputError):
        removal.remove(vm.series, point)
    assert vm.series.has_point(point.id)
    monkeypatch.setattr(DirectoryStore, "delete", real)
    removal.remove(vm.series, point)
    assert not vm.series.has_point(point.id)


def test_a_point_that_two_remove_at_once(vm):
    """The second one comes just after the first one; or, if it looked before, in the middle of it."""
    point, real = vm.points[-1], DirectoryStore.replace
    removal.remove(vm.series, point)
    removal.remove(vm.series, point)
    assert half_points.removed_point(vm.series, point.id) == point

    def replace(self, path, data, was=None):
        patched.stop()
        removal.remove(vm.series, vm.points[0])
        real(self, path, data, was)

    patched = mock.patch.object(DirectoryStore, "replace", replace)
    patched.start()
    removal.remove(vm.series, vm.points[0])
    assert half_points.removed(vm.series) == sorted([vm.points[0].id, point.id])
    assert [each.id for each in vm.series.points()] == [vm.points[1].id]


@pytest.mark.parametrize("hours, goes", [(25, False), (27, True)])
def test_files_are_removed_two_hours_later_than_with_locks(vm, hours, goes):
    removal.remove(vm.series, vm.points[0])
    with aged(hours):
        assert bool(removal.sweep(vm.series).freed) is goes


def test_moved_frames_stay_for_as_long(tmp_path):
    vm = stores.chain(tmp_path / "store", 3, **stores.SMALL)
    name = layout.new_point_id()
    vm.store.make_folder(f"vm1/{name}")
    vm.store.publish(f"vm1/{name}/{layout.REPACKED}", b"{}")
    vm.store.publish(f"vm1/{name}/{layout.chunk_name('vda', 0)}", b"data")
    assert removal.sweep(vm.series).freed == 0
    with aged(27):
        assert removal.sweep(vm.series).freed == 4
        removal.sweep(vm.series)
    assert half_points.repacked(vm.series) == []


def test_nothing_is_removed_at_once(vm):
    with pytest.raises(errors.UsageError, match="--now: .* has no locks"):
        remove.remove(remove.Options(str(vm.root), [vm.points[0].id], now=True))
    with pytest.raises(errors.UsageError, match="--now: .* has no locks"):
        prune.prune(prune.Options(str(vm.root), keep_last=1, now=True))
    assert len(vm.series.points()) == len(vm.points)


# -- a copy -----------------------------------------------------------------------------------------------------------


def test_a_copy_that_fails_removes_nothing(vm, tmp_path, monkeypatch):
    """Another one may rely on it by now."""
    other = over(vm, tmp_path / "other")
    monkeypatch.setattr(half_points, "end_setting_apart", _raising)
    with pytest.raises(errors.OutputError):
        take(vm, other, vm.points[0])
    made = {entry.path for entry in references.of_point(vm.series, vm.points[0])}
    assert made <= {str(path.relative_to(other.folder)) for path in stores.files(other.folder)}


def _raising(*_):
    raise errors.OutputError("no")


def test_a_copied_number_that_another_point_has(vm, tmp_path):
    other = over(vm, tmp_path / "other")
    twin = Vm(tmp_path / "other", vm.name, vm.uuid)
    twin.add_disk("vda", 1000)

    def meanwhile():
        patched.stop()
        twin.pull()

    patched = just_before("publish", meanwhile)
    patched.start()
    with pytest.raises(errors.Busy, match="another run made point"):
        take(vm, other, vm.points[0])
    assert [point.id for point in other.series.points()] == [twin.points[0].id]


def test_a_copy_that_took_too_long(vm, tmp_path):
    """A sweep may be about to remove what it made."""
    other = over(vm, tmp_path / "other")
    late = aged(21, half_points.REMOVED)
    slow = mock.patch.object(incoming.Incoming, "_manifest", _after(late.start, incoming.Incoming._manifest))
    with slow, pytest.raises(errors.Busy, match=f"what is left of point {vm.points[0].id} of vm1 may be removed"):
        take(vm, other, vm.points[0])
    late.stop()
    assert other.series.points() == []
    take(vm, other, vm.points[0])


def test_a_copy_whose_mark_was_swept(vm, tmp_path):
    """By a prune that had found the directory old and empty just before."""
    other, point = over(vm, tmp_path / "other"), vm.points[0]

    def swept():
        other.store.delete(f"vm1/{point.id}/{half_points.REMOVED}")

    late = mock.patch.object(incoming.Incoming, "_manifest", _after(swept, incoming.Incoming._manifest))
    with late, pytest.raises(errors.Busy, match=f"what is left of point {point.id} of vm1 may be removed"):
        take(vm, other, point)
    assert other.series.points() == []
    with aged(21), pytest.raises(errors.Busy, match="may be removed"):  # as what a dead run left
        take(vm, other, point)
    take(vm, other, point)
    assert len(other.series.points()) == 1


def test_a_point_that_was_removed_since_the_copy_began(vm, tmp_path):
    """Its files may be about to go before the turn of the point that would refer to them."""
    other = over(vm, tmp_path / "other")
    take(vm, other, vm.points[0])
    taking = incoming.Incoming(vm.series, other.series, other.series.points(), Throttle())
    removal.remove(other.series, vm.points[0])
    with aged(27, f"{vm.points[0].id}/{half_points.REMOVED}"), pytest.raises(errors.Busy, match="may be removed"):
        taking.take(vm.points[1])
    assert other.series.points() == []
    taking.take(vm.points[1])  # of what was removed just now
    assert half_points.seconds_removed(other.series, vm.points[0].id) < HOUR


def test_a_point_that_was_brought_by_the_same_copy_and_removed(vm, tmp_path):
    other = over(vm, tmp_path / "other")
    other.store.make_folder("vm1")
    taking = incoming.Incoming(vm.series, other.series, [], Throttle())
    taking.take(vm.points[0])
    removal.remove(other.series, vm.points[0])
    with aged(27, f"{vm.points[0].id}/{half_points.REMOVED}"), pytest.raises(errors.Busy, match="may be removed"):
        taking.take(vm.points[1])


@pytest.mark.parametrize("of, message", [(1, "what is left of point"), (0, "which this one builds on, was removed")])
def test_a_copy_that_paused_before_its_manifest(vm, tmp_path, monkeypatch, of, message):
    """A sweep may be about to remove what it made, or what it relies on."""
    other, point = over(vm, tmp_path / "other"), vm.points[1]
    take(vm, other, vm.points[0])
    prove = lock_free.prove

    def stand():
        late.enter_context(aged(21, f"{vm.points[of].id}/{half_points.REMOVED}"))
        if of == 0:
            removal.remove(other.series, vm.points[0])

    with contextlib.ExitStack() as late, monkeypatch.context() as patch, pytest.raises(errors.Busy, match=message):
        patch.setattr(lock_free, "prove", _after(stand, prove))
        take(vm, other, point)
    assert [each.id for each in other.series.points()] == [vm.points[0].id] * of
    assert half_points.removed_point(other.series, point.id) == point, "somebody may build on it by now"
    take(vm, other, point)


def test_what_is_about_to_be_swept_is_not_counted_on(vm, tmp_path):
    other = over(vm, tmp_path / "other")
    take(vm, other)
    removal.remove(other.series, vm.points[0])
    with aged(21), pytest.raises(errors.StoreError, match=f"{vm.points[0].id} was removed from .* still need some of"):
        take(vm, other, vm.points[0])
    take(vm, other, vm.points[0])
    assert len(other.series.points()) == 3
    removal.remove(other.series, vm.points[0])
    with aged(27):
        removal.sweep(other.series)
    assert grace.of(vm.store) == 26 * HOUR


# -- two sweeps and a copy --------------------------------------------------------------------------------------------


@pytest.fixture
def emptied(vm, tmp_path):
    """A store whose points were all removed a while ago, the last but one while its remains are swept."""
    other = over(vm, tmp_path / "other")
    take(vm, other)
    for point in vm.points:
        removal.remove(other.series, point)
    return other


def own_files(series, point):
    return {name for name in series.store.names(f"vm1/{point.id}") if not name.startswith("manifest.")}


def test_a_copy_does_not_bring_back_what_another_sweep_may_have_found_too(vm, emptied):
    """The slower sweep would remove what the faster one has removed and the copy has created again."""
    point, done, real = vm.points[0], [], sweep_mark.put

    def put(series, name):
        """Do as the slower one, which has listed by now."""
        marking.stop()
        done.append(removal.sweep(series))
        with pytest.raises(errors.Busy, match=f"removing files of what is left of point {point.id} of vm1; copy again"):
            take(vm, emptied, point)
        real(series, name)

    marking = mock.patch.object(sweep_mark, "put", put)
    with aged(27, half_points.REMOVED):
        marking.start()
        removal.sweep(emptied.series)
    assert done[0].freed and own_files(emptied.series, point) == set()
    with aged(23, sweep_mark.NAME):
        take(vm, emptied, point)
    assert [each.id for each in emptied.series.points()] == [point.id]
    assert not any(map(emptied.series.size_flaw, references.of_point(emptied.series, point)))
    assert sweep_mark.NAME not in emptied.store.names(f"vm1/{point.id}")


def test_a_sweep_that_took_too_long_removes_nothing_more(vm, emptied, monkeypatch):
    """Not even the record that a point was removed."""
    hours, before, real = iter([0, 0, 0, 1]), len(stores.files(emptied.folder)), DirectoryStore.delete
    look, gone = half_points.seconds_set_apart, []

    def seconds(series, name, anew=False):
        return look(series, name) + (next(hours, 21) * HOUR if anew else 0)

    monkeypatch.setattr(half_points, "seconds_set_apart", seconds)
    monkeypatch.setattr(DirectoryStore, "delete", lambda self, path: gone.append(path) or real(self, path))
    with aged(27, half_points.REMOVED):
        swept = removal.sweep(emptied.series)
    assert len(gone) == 3 and swept.waiting and swept.points == ()
    assert len(stores.files(emptied.folder)) == before - 3 + 1, "and a mark"


def test_a_sweep_removes_nothing_that_a_copy_has_set_apart_meanwhile(vm, emptied, monkeypatch):
    """It lists once more when its mark exists: a copy that came later sees the mark."""
    before, put, look = len(stores.files(emptied.folder)), sweep_mark.put, half_points.seconds_set_apart
    renewed = set()

    def seconds(series, name, anew=False):
        return 0.0 if anew and name in renewed else look(series, name)

    monkeypatch.setattr(sweep_mark, "put", lambda series, name: put(series, name) or renewed.add(name))
    monkeypatch.setattr(half_points, "seconds_set_apart", seconds)
    with aged(27, half_points.REMOVED):
        swept = removal.sweep(emptied.series)
    assert swept.freed == 0 and len(stores.files(emptied.folder)) == before + len(renewed)


def test_the_mark_of_a_sweep_outlives_the_files(vm, emptied):
    """So long that nobody has these files on a list any more. A second sweep waits for it, too."""
    first, last = vm.points[0], vm.points[-1]
    with aged(27, half_points.REMOVED):
        swept = removal.sweep(emptied.series)
        assert set(swept.points) == {point.id for point in vm.points} and swept.waiting == 0
        assert emptied.store.names(f"vm1/{first.id}") == [half_points.REMOVED, sweep_mark.NAME]
        emptied.store.publish(f"vm1/{first.id}/vda.0009.zst", b"data")
        assert removal.sweep(emptied.series) == removal.Swept(waiting=4, has_locks=False)
        with aged(23, sweep_mark.NAME):
            assert removal.sweep(emptied.series).freed == 4
            assert sweep_mark.is_young(emptied.series, first.id) is False
        with aged(23, sweep_mark.NAME):
            assert removal.sweep(emptied.series).points == ()
    assert half_points.removed(emptied.series) == [last.id], "it holds the number"


def test_healing_does_not_renew_the_time_of_a_removal(vm):
    """A copy would rely on files that a sweep has already found."""
    point = vm.points[0]
    removal.remove(vm.series, point)
    mark = vm.folder / point.id / half_points.REMOVED
    before = mark.stat().st_mtime_ns
    half_points.set_apart(vm.series, point.id)
    assert mark.stat().st_mtime_ns == before
    half_points.renew(vm.series, point.id)
    assert mark.stat().st_mtime_ns > before


# -- half points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ages, late", [([0, 19], False), ([0, 19, 38], False), ([0, 21], True), ([1, 2, 23], True)])
def test_a_point_committed_in_between(vm, ages, late):
    """Anyone who looked then may be about to remove what was made before."""
    name = layout.new_point_id()
    vm.store.make_folder(f"vm1/{name}")
    for number, _ in enumerate(ages):
        vm.store.publish(f"vm1/{name}/{number}", b"")

    def seconds(self, path, anew=False):
        return ages[int(path[-1])] * HOUR

    with mock.patch.object(DirectoryStore, "seconds_since_change", seconds):
        assert lock_free.stood(vm.series, name) is late
        with pytest.raises(errors.Busy) if late else contextlib.nullcontext():
            lock_free.require_alive(vm.series, name)


def test_files_that_may_belong_to_another_run_are_left_to_a_sweep(vm):
    """It may have names that a copy creates again."""
    name = layout.new_point_id()
    vm.store.make_folder(f"vm1/{name}")
    vm.store.publish(f"vm1/{name}/vda.0000.zst", b"data")
    half_points.give_to_sweep(vm.series, name)
    half_points.give_to_sweep(vm.series, name)
    assert half_points.names(vm.series) == [] and half_points.removed(vm.series) == [name]
    with aged(27):
        assert removal.sweep(vm.series).freed == 4


def test_a_prune_frees_half_points_of_a_domain_that_is_never_pulled_again(vm):
    """As a pull would: once no run can be working on them, they become the rest of a removed point."""
    half = vm.folder / "20300101T000000Z-aaaaaa"
    half.mkdir()
    (half / "vda.0000.zst").write_bytes(b"1" * 1000)
    removal.sweep(vm.series)
    with aged(25):
        removal.sweep(vm.series)
    assert half_points.names(vm.series) == [half.name]
    with aged(27, half.name):
        assert removal.sweep(vm.series).freed == 0
    assert half_points.removed(vm.series) == [half.name]
    with aged(27):
        assert removal.sweep(vm.series).freed == 1000
    assert vm.series.points() == vm.points
