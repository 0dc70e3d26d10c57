"""The files that a copy relies on in its destination, against what all of its points name, read one by one."""

import random
from unittest import mock

import pytest
import stores
from stores import KIB

from nbdpull.core import errors
from nbdpull.format.manifest import FileEntry
from nbdpull.repository import half_points, references, removal
from nbdpull.repository.counted_on import CountedOn
from nbdpull.storage.directory import DirectoryStore


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five points, of which the newer ones refer to files of most others, and one file that is damaged on record."""
    vm = stores.chain(tmp_path_factory.mktemp("made") / "store", 7, points=5, size=300 * KIB, chunk_size=60 * KIB)
    path = vm.folder / stores.chunks_of(vm, vm.points[2], "vda")[-1].path
    path.write_bytes(stores.flipped(path.read_bytes(), 200))
    assert stores.verify_store(vm.root, keep=True).is_bad
    return vm, str(path.relative_to(vm.folder))


@pytest.fixture
def vm(made, tmp_path):
    return made[0].copy(tmp_path / "store")


def named(vm, points):
    """{path: its entry} of all that points name."""
    return {entry.path: entry for point in points for entry in references.of_point(vm.series, point)}


def entries(vm):
    """Of all points, and others of their names."""
    found = [*named(vm, vm.points).values()]
    return [*found, *(FileEntry(each.path, each.size, "0" * 64) for each in found)]


def lose_some(vm, chance):
    """Chunk files: without a directory nobody knows what its point names."""
    for path in chance.sample(sorted(vm.folder.rglob("*.zst")), 3):
        path.unlink()


@pytest.mark.parametrize("seed", range(6))
def test_files_that_points_vouch_for(vm, made, seed):
    """In whatever order it is asked for, and whichever points are left; some of their files are lost."""
    chance = random.Random(seed)
    for point in chance.sample(vm.points, seed % 4):
        removal.remove(vm.series, point)
    points, asked = vm.series.points(), entries(vm)
    lose_some(vm, chance)
    known, counted = named(vm, points), CountedOn(vm.series, points)
    chance.shuffle(asked)
    for entry in asked:
        is_named = known.get(entry.path) == entry
        is_bad = entry.path == made[1] and any(made[1] in named(vm, [point]) for point in points)
        assert counted.includes(entry) == is_named
        assert counted.has(entry) == (is_named and not is_bad and (vm.folder / entry.path).exists())
    for name in half_points.removed(vm.series):
        others = [each for gone, each in half_points.removed_points(vm.series).items() if gone != name]
        needed = {path: entry for path, entry in named(vm, [*points, *others]).items() if path.startswith(name)}
        assert counted.held_in(name) == needed


@pytest.mark.parametrize("seed", range(4))
def test_forged_files_do_no_harm(vm, seed):
    """A file may be made where none is, where nobody needs the one that is there, or where it is that very one."""
    chance = random.Random(seed)
    for point in chance.sample(vm.points, 2):
        removal.remove(vm.series, point)
    points, asked = vm.series.points(), entries(vm)
    lose_some(vm, chance)
    known, counted = named(vm, vm.points), CountedOn(vm.series, points)  # a removal can be undone
    for entry in [*asked, FileEntry(f"{vm.points[0].id}/new.zst", 5, "0" * 64)]:
        if not (vm.folder / entry.path).exists() or known[entry.path] == entry:
            counted.require_free(entry, lambda: None)
        else:
            with pytest.raises(errors.StoreError, match="differs from the one of that name"):
                counted.require_free(entry, lambda: None)


def test_a_point_that_cannot_be_read_may_need_any_file(vm):
    """Nothing is known of its files then: what is there stays."""
    path = vm.folder / vm.points[1].id / "manifest.json"
    own = {name: entry for name, entry in named(vm, vm.points).items() if name.startswith(vm.points[1].id)}
    path.write_bytes(b"?")
    counted = CountedOn(vm.series, vm.series.load()[0])
    assert counted.held_in(vm.points[1].id) is None
    for entry in own.values():
        other = FileEntry(entry.path, entry.size, "0" * 64)
        with pytest.raises(errors.StoreError, match="is or may be needed there"):
            counted.require_free(other, lambda: None)


def test_what_was_just_committed_counts_and_what_was_removed_does_not(vm, monkeypatch):
    first, *others = vm.points
    counted, own = CountedOn(vm.series, others), named(vm, [first])
    only = [entry for path, entry in own.items() if path not in named(vm, others)]
    assert only and not any(map(counted.includes, only))
    with pytest.raises(errors.Busy, match="was moved to may be removed"):
        counted.require(only)
    counted.add(first, own.values())
    counted.require(only)
    removal.remove(vm.series, first)
    counted.forget_removed()
    assert all(map(counted.includes, only)), "where a lock keeps others out, nobody else removes points"
    monkeypatch.setattr(type(vm.store), "has_locks", False)
    counted.forget_removed()
    assert not any(map(counted.includes, only)) and first.id not in counted.points
    assert all(map(counted.includes, named(vm, others).values()))


def test_a_file_is_looked_for_until_it_was_seen(vm):
    """And again once the caller has removed some."""
    counted, [entry, *_] = CountedOn(vm.series, vm.points), entries(vm)
    assert counted.includes(entry)
    with mock.patch.object(DirectoryStore, "size", autospec=True, side_effect=DirectoryStore.size) as size:
        assert [counted.has(entry) for _ in range(3)] == [True] * 3
    assert size.call_count == 1
    (vm.folder / entry.path).unlink()
    counted.present.forget()
    assert not counted.has(entry)
