"""Disks of a point as volumes: random chains against plain bytes, what a point changed, growth, damage."""

import random
from contextlib import closing

import pytest
from stores import KIB, MIB, Vm, chain, chunks_of, damaged, flipped, index_of, scribble

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.serving.http import point_disks
from nbdpull.serving.http.point_disks import PointDisk
from nbdpull.serving.http.volume import DATA, ZERO


def laid_over(base, volume, start=0):
    """Return `base` as a client changes it by a volume's extents, which must be ascending, disjoint and merged."""
    image = bytearray(base[: volume.size].ljust(volume.size, b"\xee"))
    reached, before = start, None
    for offset, length, kind in volume.extents(start):
        assert reached <= offset < offset + length <= volume.size
        assert kind in (DATA, ZERO) and (offset > reached or kind != before)
        stop = offset + length
        image[offset:stop] = b"".join(map(bytes, volume.pieces(offset, stop))) if kind == DATA else bytes(length)
        reached, before = offset + length, kind
    return bytes(image)


@pytest.mark.parametrize("batch", [1, 1 << 14])
@pytest.mark.parametrize("seed", range(4))
def test_random_chains(tmp_path, monkeypatch, seed, batch):
    monkeypatch.setattr(point_disks, "BATCH", batch)
    rng = random.Random(seed)
    vm = Vm(tmp_path)
    vm.add_disk("vda", rng.choice([MIB, 2 * MIB + 70_001]))
    for number in range(5):
        if number and rng.random() < 0.5:
            vm.grow("vda", vm.disks["vda"].size + rng.choice([1, 512, 100_000, 2 * MIB + 5]))
        scribble(vm, "vda", rng, count=rng.randint(0, 5))
        vm.pull(frame_size=rng.choice([64 * KIB, MIB]), chunk_size=rng.choice([8 * KIB, MIB]))
    before = None
    for point in vm.points:
        expected = vm.images[point.id]["vda"]
        with PointDisk(vm.series, point, "vda") as disk:
            start = rng.randrange(disk.size)
            assert (disk.name, disk.size, disk.mode) == ("vda", len(expected), "full")
            assert laid_over(b"", disk) == expected
            assert laid_over(expected[:start], disk, start) == expected
            assert (disk.changes is None) == (before is None)
            if before:
                parent = vm.images[before.id]["vda"]
                assert (disk.changes.mode, disk.changes.since) == ("incremental", before.id)
                assert laid_over(parent, disk.changes) == expected
                begun = expected[:start] + parent[start:]
                assert laid_over(begun, disk.changes, start) == expected
        before = point


def test_unwritten_growth_is_reported_as_zero(tmp_path):
    """A client may have the parent's image in a larger file, with other bytes after its end."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, b"\x11" * MIB)
    vm.pull()
    vm.grow("vda", 3 * MIB)
    vm.write("vda", 2 * MIB, b"\x22" * (64 * KIB))
    vm.pull()
    with PointDisk(vm.series, vm.points[-1], "vda") as disk:
        reported = list(disk.changes.extents())
        assert reported[0][0] == MIB and sum(length for _, length, _ in reported) == 2 * MIB
        assert laid_over(vm.images[vm.points[0].id]["vda"], disk.changes) == vm.images[vm.points[-1].id]["vda"]


def test_unchanged_ranges_can_be_read(tmp_path):
    vm = chain(tmp_path, points=2)
    with PointDisk(vm.series, vm.points[-1], "vda") as disk:
        part = b"".join(map(bytes, disk.changes.pieces(0, disk.size)))
        assert part == vm.images[vm.points[-1].id]["vda"]


@pytest.mark.parametrize("name", [layout.MANIFEST, layout.directory_name("vda")])
@pytest.mark.parametrize("what", [None, b""])
def test_a_point_without_its_parent_is_a_whole_disk(tmp_path, what, name):
    """It is unknown then what has changed."""
    vm = chain(tmp_path, points=2)
    with damaged(vm.folder / vm.points[0].id / name, what), PointDisk(vm.series, vm.points[-1], "vda") as disk:
        assert disk.changes is None and laid_over(b"", disk) == vm.images[vm.points[-1].id]["vda"]


def test_a_partial_point_is_no_whole_disk(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    point = vm.pull(since="elsewhere")
    with pytest.raises(errors.PartialPoint):
        PointDisk(vm.series, point, "vda")


def test_a_disk_that_is_not_there(tmp_path):
    vm = chain(tmp_path, points=1)
    with pytest.raises(errors.NoSuchDisk):
        PointDisk(vm.series, vm.points[0], "vdz")


def test_a_damaged_frame_is_never_a_wrong_byte(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, random.Random(1).randbytes(MIB))
    vm.pull()
    chunk = vm.folder / chunks_of(vm, vm.points[0], "vda")[0].path
    with damaged(chunk, flipped(chunk.read_bytes(), 200_000)), PointDisk(vm.series, vm.points[0], "vda") as disk:
        sound = bytearray(4096)
        disk.read_into(MIB - 4096, memoryview(sound))
        assert sound == vm.images[vm.points[0].id]["vda"][-4096:]
        with pytest.raises(errors.Damaged):
            disk.read_into(0, memoryview(bytearray(MIB)))


def test_a_damaged_index_is_refused_at_once(tmp_path):
    vm = chain(tmp_path, points=2)
    index = index_of(vm, vm.points[-1], "vda")
    with damaged(index, flipped(index.read_bytes(), 20)), pytest.raises(errors.Damaged):
        PointDisk(vm.series, vm.points[-1], "vda")


def test_an_end_before_all_extents_are_taken(tmp_path):
    vm = chain(tmp_path, points=2)
    with PointDisk(vm.series, vm.points[-1], "vda") as disk, closing(disk.extents()) as taken:
        assert next(taken)[0] == 0
