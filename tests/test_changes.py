"""Where two images differ, according to their directories: against their bytes, and without reading pages that both
have."""

import random

import numpy
import pytest
from stores import KIB, MIB, Vm, directory_of, scribble

from nbdpull.core import errors, extents
from nbdpull.format import directory, layout
from nbdpull.repository import changes


def reported(before, after, size):
    """Return the kind that is reported for each byte, 255 where none is."""
    found, at = numpy.full(size, 255, "u1"), 0
    for batch in changes.between(before, after):
        assert extents.flaw(batch, size) is None
        for each in batch.tolist():
            assert each[0] >= at
            at = each[0] + each[1]
            found[each[0] : at] = each[2]
    return found


@pytest.mark.parametrize("window", [1 << 30, MIB], ids=["one window", "several"])
@pytest.mark.parametrize("seed", range(3))
def test_random_points(tmp_path, monkeypatch, seed, window):
    monkeypatch.setattr(layout, "WINDOW", window)
    rng, vm = random.Random(seed), Vm(tmp_path)
    vm.add_disk("vda", 3 * MIB + 512)
    states = []
    for _ in range(6):
        since, size = "last", vm.disks["vda"].size
        if rng.random() < 0.3:
            vm.grow("vda", size + rng.choice([1, 70_000, 2 * MIB]))
        elif rng.random() < 0.3:
            vm.shrink("vda", max(size - rng.choice([1, 70_000, MIB]), 1))
            since = "nothing, alike"
        scribble(vm, "vda", rng, count=rng.randint(0, 4))
        point = vm.pull(since, dedupe=True)
        states.append((directory_of(vm, point, "vda"), numpy.frombuffer(vm.images[point.id]["vda"], "u1")))
    for before, old in states:
        for after, new in states:
            found = reported(before, after, len(new))
            both = min(len(old), len(new))
            assert (found[both:] != 255).all(), "what it grew by"
            assert (found[:both][old[:both] != new[:both]] != 255).all(), "what differs"
            assert not new[found == extents.ZERO].any()
            if before is after:
                assert (found == 255).all()


def test_equal_data_is_not_reported(tmp_path):
    vm, rng = Vm(tmp_path), random.Random(1)
    vm.add_disk("vda", 4 * MIB)
    vm.write("vda", 0, rng.randbytes(2 * MIB))
    first = directory_of(vm, vm.pull(), "vda")
    vm.write("vda", 640 * KIB, rng.randbytes(64 * KIB))
    vm.write("vda", 3 * MIB, rng.randbytes(100 * KIB))
    vm.zero("vda", MIB, 64 * KIB)
    vm.zero("vda", 2 * MIB + 5, 100)  # where there was nothing
    second = directory_of(vm, vm.pull(), "vda")

    def between(*both):
        return [each for batch in changes.between(*both) for each in batch.tolist()]

    assert between(first, second) == [
        (640 * KIB, 64 * KIB, extents.DATA), (MIB, 64 * KIB, extents.ZERO), (3 * MIB, 100 * KIB, extents.DATA)
    ]  # fmt: skip
    assert between(second, first) == [
        (640 * KIB, 64 * KIB, extents.DATA), (MIB, 64 * KIB, extents.DATA), (3 * MIB, 100 * KIB, extents.ZERO)
    ]  # fmt: skip


def test_a_part_of_a_frame_is_reported_as_that_part(tmp_path):
    """What surrounds a small write is the same place of the same frame in both."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, random.Random(1).randbytes(MIB))
    first = directory_of(vm, vm.pull(frame_size=MIB), "vda")
    vm.write("vda", 5000, b"x" * 10)
    second = directory_of(vm, vm.pull(), "vda")
    for both in ((first, second), (second, first)):
        assert [batch.tolist() for batch in changes.between(*both)] == [[(5000, 10, extents.DATA)]]


def test_pages_that_both_have_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    vm = Vm(tmp_path)
    vm.add_disk("vda", 8 * MIB)
    for number in range(8):
        vm.write("vda", number * MIB, b"x" * 100)
    vm.pull()
    vm.write("vda", 3 * MIB, b"y")
    vm.pull()
    vm.grow("vda", 12 * MIB)
    vm.pull()
    before, _, after = (directory_of(vm, point, "vda") for point in vm.points)
    read, real = set(), directory.reader.page
    monkeypatch.setattr(directory.reader, "page", lambda *about: read.add(int(about[2]["offset"])) or real(*about))
    found = reported(before, after, 12 * MIB)
    assert read == {3 * MIB}
    assert numpy.flatnonzero(found[: 8 * MIB] != 255).tolist() == [3 * MIB]
    assert (found[8 * MIB :] == extents.ZERO).all()


def test_data_only_behind_the_new_end(tmp_path):
    """Nothing is left to compare in the last window of either."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    vm.write("vda", MIB - 10, b"x" * 10)
    first = directory_of(vm, vm.pull(), "vda")
    vm.shrink("vda", MIB - 20)
    second = directory_of(vm, vm.pull("nothing, alike"), "vda")
    assert (reported(first, second, MIB - 20) == 255).all()
    assert (reported(second, first, MIB) != 255).nonzero()[0].tolist() == [*range(MIB - 20, MIB)]


def test_it_can_be_stopped(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, b"x")
    found = directory_of(vm, vm.pull(), "vda")

    def check():
        raise errors.Interrupted(2)

    with pytest.raises(errors.Interrupted):
        list(changes.between(found, found, check))
