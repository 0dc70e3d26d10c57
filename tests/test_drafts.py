"""Remains of files that should have appeared as a whole: the next run that holds the series removes them."""

import os
import random
import shutil
from unittest import mock

import dying
import pytest
import sealed
import stores
from key_store import AGE1, SSH, key_path, made, replaced
from stores import KIB, flipped

from nbdpull.format import findings, layout
from nbdpull.operations.verify import Options, verify
from nbdpull.repository import (
    drafts,
    half_points,
    healing,
    key_changes,
    key_files,
    key_healing,
    marker,
    mending,
    pins,
    removal,
    repack,
    verdict,
)
from nbdpull.storage import directory
from nbdpull.storage.directory import DirectoryStore
from nbdpull.storage.directory_file import DirectoryWriter

CHANGES = {
    directory: ("_rename",),
    DirectoryStore: ("create", "remove_file", "sync_folder"),
    DirectoryWriter: ("write", "seal"),
}


def left(vm):
    return [str(path.relative_to(vm.folder)) for path in vm.root.rglob("*.draft")]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """(a store with a point that does without a damaged file, that file, an intact copy)"""
    vm = stores.Vm(tmp_path_factory.mktemp("drafts") / "store")
    vm.add_disk("vda", 200 * KIB)
    vm.write("vda", 0, random.Random(1).randbytes(200 * KIB))
    vm.pull(chunk_size=60 * KIB, batch_size=64 * KIB)
    copy = vm.copy(vm.root.parent / "copy")
    entry = stores.chunks_of(vm, vm.points[0], "vda")[1]
    path = vm.folder / entry.path
    path.write_bytes(flipped(path.read_bytes(), entry.size // 4))
    assert verify(Options(str(vm.root))).is_bad
    vm.bad = {entry.path}
    vm.pull(chunk_size=60 * KIB, batch_size=64 * KIB)
    return vm, entry, copy


def mend(vm, entry, copy):
    now = mending.Now(vm.series, vm.points[-1], "vda")
    return mending.all_mended(now, [entry], [1], lambda: None) == ([entry.path], "")


def heal(vm, entry, copy):
    points = vm.series.points()
    known = verdict.Known(points, findings.load(vm.series))
    return [*healing.heal(vm.series, copy.series, points, known, set(), lambda: None)][0].outcome.value == "healed"


@pytest.mark.parametrize("how", [mend, heal])
def test_killed_at_every_step_of_a_mending(damaged, tmp_path, how):
    vm, entry, copy = damaged
    whole, died_with_one = (copy.folder / entry.path).read_bytes(), 0
    for count in range(30):
        twin = vm.copy(tmp_path / str(count))
        path = twin.folder / entry.path
        bad = path.read_bytes()
        died = dying.killed_at(count, lambda twin=twin: how(twin, entry, copy), CHANGES)
        assert path.read_bytes() in (bad, whole)
        died_with_one += bool(left(twin))
        if not died:
            break
        if count % 2:
            size = sum(os.path.getsize(twin.folder / name) for name in left(twin))
            assert removal.sweep(twin.series).freed == size
        elif path.read_bytes() == bad:
            assert how(twin, entry, copy)
        else:
            how(twin, entry, copy)
        assert not left(twin) and path.read_bytes() in (bad, whole)
        assert stores.verify_store(twin.root).damages == [] or path.read_bytes() == bad
    assert not died and died_with_one >= 3


def test_of_the_store_itself(tmp_path):
    """The draft of a key would open the store for whom it was meant, even after that key was removed."""
    vm = sealed.filled(tmp_path / "store")
    made = [f"{name}.00000000.draft" for name in ("nbdpull.json", "policy.json", f"{layout.KEYS}/12345678.age")]
    for name in made:
        (vm.root / name).write_bytes(b"12")
    before = set(stores.files(vm.root))
    assert drafts.remove_all(vm.series) == 0 and set(stores.files(vm.root)) == before
    vm.store.seconds_since_change = lambda path: 90000.0
    assert drafts.remove_all(vm.series) == 2 * len(made)
    assert before - set(stores.files(vm.root)) == {vm.root / name for name in made}


def test_of_a_key_file(tmp_path):
    """Who heals the file again, or removes the key, removes at once what a killed healing left of it."""
    copy, died_with_one = made(tmp_path / "copy", AGE1, SSH), 0
    for count in range(30):
        store = marker.open_store(str(shutil.copytree(copy.root, tmp_path / str(count))))
        where = key_path(store)
        replaced(store, where, b"?")
        died = dying.killed_at(count, lambda store=store, where=where: key_healing.heal(store, copy, [where]), CHANGES)
        died_with_one += has_draft(store)
        if not died:
            break
        if store.read(where) == b"?" and count % 2:
            assert key_healing.heal(store, copy, [where]) == [where]
        else:
            key_changes.remove(store, [where.rpartition("/")[2][: -len(key_files.WRAPPED)]])
        assert not has_draft(store)
    assert not died and died_with_one >= 3


def has_draft(store):
    return any(name.endswith(".draft") for name in store.files(layout.KEYS))


NEW = "20300101T000000Z-aaaaaa"


@pytest.mark.parametrize("make", [
    lambda series: repack._Run(series, None, ())._new_folder(),
    lambda series: half_points.set_apart(series, NEW),
])  # fmt: skip
@pytest.mark.parametrize("made", [{DirectoryStore: ("publish",)}, {directory: ("_link_or_rename",)}])
def test_directories_whose_maker_was_killed_before_it_said_what_they_are(tmp_path, make, made):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 4096)
    vm.pull()
    with mock.patch.object(DirectoryStore, "remove_file"):
        assert dying.killed_at(0, lambda: make(vm.series), made)
    [left] = half_points.names(vm.series)
    removal.sweep(vm.series)
    assert half_points.names(vm.series) == [left], "on a network file system, another run may have made it just now"
    vm.store.seconds_since_change = lambda path: 90000.0
    removal.sweep(vm.series)
    assert not (vm.folder / left).exists() and len(vm.series.points()) == 1


def test_what_may_be_written_stays(damaged, tmp_path):
    """Drafts of pins and findings for a day; and those in a half point."""
    vm = damaged[0].copy(tmp_path / "store")
    point, half = vm.points[0].id, "20300101T000000Z-aaaaaa"
    (vm.folder / half).mkdir()
    (vm.folder / half / half_points.ANNOUNCED).write_bytes(b"?")
    young = [f"{point}/{pins.NAME}.00000000.draft", "20300101T000000Z-bbbbbb.verify.json.00000000.draft"]
    stay = [*young, f"{half}/vda.0000.zst.00000000.draft"]
    gone = [f"{point}/manifest.json.00000000.draft", f"{point}/x.zst.00000000.draft"]
    for name in [*stay, *gone]:
        (vm.folder / name).write_bytes(b"1")
    assert drafts.remove_all(vm.series) == len(gone) and sorted(left(vm)) == sorted(stay)
    vm.store.seconds_since_change = lambda path: 90000.0
    assert drafts.remove_all(vm.series) == len(young) and left(vm) == [stay[-1]]
    assert half_points.names(vm.series) == [half]
