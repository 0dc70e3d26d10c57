"""Points laid over what is left of a damaged one: whole and sound, with no more read again than necessary."""

import os
import random

import numpy
import pytest
import stores
from hours import without_locks
from stores import KIB, MIB, Vm, directory_of

from nbdpull.core import errors, extents
from nbdpull.format import layout, pages
from nbdpull.format.index_writer import Disk, IndexWriter
from nbdpull.format.sound_part import SoundPart
from nbdpull.storage.directory import DirectoryStore

pytestmark = pytest.mark.usefixtures("no_threads")

SMALL = {"chunk_size": 100 * KIB, "batch_size": 64 * KIB, "frame_size": 16 * KIB}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", MIB)


def made(root, rng, points=4):
    """Return a Vm of some windows, with frames that several points show."""
    vm = Vm(root)
    vm.add_disk("vda", 4 * MIB + 12345)
    for number in range(points):
        if number:
            vm.grow("vda", vm.disks["vda"].size + rng.choice([0, 77777]))
        stores.scribble(vm, "vda", rng, count=4, longest=300 * KIB)
        vm.write("vda", rng.randrange(3 * MIB), rng.randbytes(200 * KIB))
        vm.pull(dedupe=True, **SMALL)
    return vm


def sound_part(vm, point, bad):
    return SoundPart(vm.store, vm.series.folder, point.manifest.disk("vda"), bad)


def damage(vm, point, rng):
    """Damage some files of a point; return their paths."""
    files = directory_of(vm, point, "vda").files
    bad = rng.sample(files, rng.randrange(1, 1 + max(1, len(files) // 2)))
    for entry in bad:
        path = vm.folder / entry.path
        if rng.random() < 0.2:
            path.unlink()
        else:
            path.write_bytes(stores.flipped(path.read_bytes(), rng.randrange(entry.size), rng.randrange(8)))
    return {entry.path for entry in bad}


def owners(directory):
    """Return {offset of a block of 512 bytes: path of the file that decides it, or of its indexes if no page can be
    read}."""
    found = {}
    for start in {*directory.pages["offset"].tolist()}:
        try:
            shown = directory.window(start).flat()
        except errors.Damaged:
            found.update(dict.fromkeys(range(start, min(start + MIB, directory.size), 512), ""))
            continue
        for record in shown[shown["kind"] == extents.DATA]:
            first, stop = -(-int(record["offset"]) // 512) * 512, int(extents.ends(record))
            found.update(dict.fromkeys(range(first, stop, 512), directory.files[record["chunk"]].path))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_next_point_is_whole_and_older_ones_are_what_they_were(tmp_path, seed):
    rng = random.Random(seed)
    vm = made(tmp_path / "store", rng)
    base = vm.points[-1]
    vm.bad = damage(vm, base, rng)
    part = sound_part(vm, base, vm.bad)
    again = {at for offset, length, _ in part.again.tolist() for at in range(offset, offset + length)}
    for at, path in owners(directory_of(vm, base, "vda")).items():
        assert (at in again) == (path in vm.bad or not path), (at, path)
    if rng.random() < 0.7:
        stores.scribble(vm, "vda", rng, count=3, longest=100 * KIB)
    point = vm.pull(since=rng.choice(["last", "nothing, alike"]), dedupe=rng.random() < 0.7, **SMALL)
    assert vm.bad.isdisjoint(entry.path for entry in directory_of(vm, point, "vda").files)
    require_counted(directory_of(vm, point, "vda"))
    bad = {each.point for each in stores.verify_store(vm.root).verdicts if each.is_bad}
    assert base.id in bad and point.id not in bad
    for number, each in enumerate(vm.points):
        images = stores.restored(vm, each, tmp_path / f"out{number}")
        assert images == vm.images[each.id] or (images == {} and each.id in bad)


def require_counted(directory):
    """Require that it was counted correctly how much of each file is needed."""
    live = numpy.zeros(len(directory.files), "u8")
    for start in directory.starts():
        for number, size in pages.total_live(directory.window(start).flat()).items():
            live[number] += size
    for ref in directory.pages:
        live[ref["file"]] += ref["stored"]
    assert live.tolist() == directory.live.tolist()


def test_a_damaged_index_whose_pages_are_sound_costs_no_read(tmp_path):
    vm = made(tmp_path / "store", random.Random(1))
    [*_, newest] = directory_of(vm, vm.points[-1], "vda").indexes
    part = sound_part(vm, vm.points[-1], {newest.path})
    assert not len(part.again) and not all(map(part.can_stay, part.starts()))
    vm.bad = {newest.path}
    point = vm.pull()
    found = directory_of(vm, point, "vda")
    assert found.number(newest.path) == (1 << 32) - 1
    require_counted(found)
    assert stores.restored(vm, point, tmp_path / "out") == vm.images[point.id]


def test_data_of_a_lost_page_is_not_stored_again_if_another_page_has_the_digest(tmp_path):
    """A page on top is lost; data in the pages below it is still the same where the digest is."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, os.urandom(MIB))
    vm.pull(**SMALL)
    vm.write("vda", 0, b"x" * 512)
    second = vm.pull(**SMALL)
    index = stores.index_of(vm, second, "vda")
    (vm.folder / index).unlink()
    vm.bad = {index}
    assert sound_part(vm, second, vm.bad).again.tolist() == [(0, MIB, extents.DATA)]
    point = vm.pull(dedupe=True, **SMALL)
    assert stores.restored(vm, point, tmp_path / "out") == vm.images[point.id]
    assert sum((vm.folder / chunk.path).stat().st_size for chunk in stores.chunks_of(vm, point, "vda")[-1:]) < 32 * KIB


def test_without_locks_it_is_stored_again(tmp_path):
    """Another run may be about to repack the file, with what points show of it."""
    with without_locks(DirectoryStore):
        vm = Vm(tmp_path / "store")
        vm.add_disk("vda", MIB)
        vm.write("vda", 0, os.urandom(MIB))
        vm.pull(**SMALL)
        vm.write("vda", 0, b"x" * 512)
        index = stores.index_of(vm, vm.pull(**SMALL), "vda")
        index.unlink()
        vm.bad = {str(index.relative_to(vm.folder))}
        point = vm.pull(dedupe=True, **SMALL)
        assert stores.restored(vm, point, tmp_path / "out") == vm.images[point.id]
    assert sum((vm.folder / chunk.path).stat().st_size for chunk in chunks_of_own(vm, point)) > MIB


def test_what_was_not_read_again_is_never_committed(tmp_path):
    vm = made(tmp_path / "store", random.Random(3), points=2)
    bad = stores.chunks_of(vm, vm.points[-1], "vda")[0].path
    part = sound_part(vm, vm.points[-1], {bad})
    about = Disk(vm.series.folder, layout.new_point_id(), "vda", part.size, True)
    vm.store.make_folder(f"{vm.series.folder}/{about.point}", fresh=True)
    writer = IndexWriter(vm.store, about, part)
    with pytest.raises(errors.NbdpullError, match="not all data in damaged files was read again"):
        writer.close({})
    writer.abandon()


def test_what_only_a_lost_page_hid_may_be_in_no_file_any_more(tmp_path):
    """A page on top is lost, and the disk again holds the data below it: but if the file was repacked meanwhile, the
    frame of that data is gone."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    before = os.urandom(MIB)
    vm.write("vda", 0, before)
    first = vm.pull(**SMALL)
    vm.write("vda", 0, b"x" * 64 * KIB)
    second = vm.pull(**SMALL)
    stores.move(vm, second, "vda", {entry.path for entry in chunks_of_own(vm, first)})
    vm.write("vda", 0, before[: 64 * KIB])
    index = stores.index_of(vm, second, "vda")
    index.unlink()
    vm.bad = {str(index.relative_to(vm.folder))}
    point = vm.pull(dedupe=True, **SMALL)
    assert stores.restored(vm, point, tmp_path / "out") == vm.images[point.id]


def chunks_of_own(vm, point):
    return [entry for entry in stores.chunks_of(vm, point, "vda") if entry.path.startswith(point.id)]
