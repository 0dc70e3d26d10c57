"""One restored disk on its way out: as items of work, and to every kind of target, compared with the expected bytes."""

import tracemalloc
from types import SimpleNamespace

import pytest
import stores

from nbdpull.core import errors, extents
from nbdpull.format import layout
from nbdpull.repository import image
from nbdpull.targets import disk_restore

SIZE = 1 << 50


@pytest.mark.parametrize("partial", [False, True])
def test_the_zeroes_of_the_largest_disk_take_no_memory(partial):
    """An attacker's index with one record can claim a PiB of zeroes: 8 million ranges to write, one after the other."""
    zero = layout.zero_records(extents.of([(0, SIZE, extents.ZERO)]))
    disk = SimpleNamespace(disk="vda", size=SIZE, partial=partial, pieces=lambda: [zero] if partial else [])
    place = SimpleNamespace(size=SIZE, blank=False, sequential=False)
    tracemalloc.start()
    try:
        first = next(disk_restore.DiskRestore(disk, place).batches())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    step = disk_restore.ZERO_STEP
    assert first.zeroes == [(number * step, step) for number in range(disk_restore.BATCH_ZEROES)]
    assert peak < 1 << 20


# -- a disk to every kind of target, against the bytes that it must have ----------------------------------------------


class Memory:
    """A target in memory. blank: it reads as zero at first; otherwise it holds something else everywhere."""

    def __init__(self, size, blank, sequential=False):
        self.size, self.blank, self.sequential = size, blank, sequential
        self.content = bytearray(size) if blank else bytearray(b"\xee" * size)
        self.written = self.reached = 0

    def write(self, parts):
        for offset, buffer in parts:
            assert not self.sequential or offset >= self.reached, "a pipe cannot go back"
            self._put(offset, bytes(buffer))
        return sum(len(buffer) for _, buffer in parts)

    def zero(self, offset, length):
        assert not self.blank, "a blank one is given no zeroes"
        self._put(offset, bytes(length))
        return length

    def _put(self, offset, data):
        self.content[offset : offset + len(data)] = data
        self.written += len(data)
        self.reached = offset + len(data)

    def read(self, offset, length):
        return bytes(self.content[offset : offset + length])

    def allocated(self, offset, length):
        return [(offset, length)]

    def flush(self):
        pass


TARGETS = {"new": (True, False), "pipe": (True, True), "old": (False, False)}


def restored(vm, point, target, **how):
    """Return (the DiskRestore, everything that it lost) of vda, with one thread."""
    with image.Image(vm.series, point, "vda") as whole:
        copy, lost = disk_restore.DiskRestore(whole, target, **how), []
        for batch in copy.batches():
            done = copy.work(batch)
            copy.add(done)
            lost += done.lost
        copy.flush()
        return copy, lost


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("disk_restore") / "store", size=3 * stores.MIB + 512)


@pytest.mark.parametrize("batch", [4 << 20, 1])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("number", range(3))
def test_each_point_to_each_target(vm, monkeypatch, number, kind, batch):
    monkeypatch.setattr(disk_restore, "BATCH_DATA", batch)
    point = vm.points[number]
    wanted = vm.images[point.id]["vda"]
    target = Memory(len(wanted), *TARGETS[kind])
    copy, lost = restored(vm, point, target)
    assert (bytes(target.content), lost) == (wanted, [])
    assert copy.written == target.written
    last = copy.progress(finished=True)
    assert (last["position"], last["size"], last["written_bytes"]) == (len(wanted), len(wanted), target.written)


@pytest.mark.parametrize("number", range(3))
def test_only_what_differs(vm, number):
    point = vm.points[number]
    wanted = vm.images[point.id]["vda"]
    target = Memory(len(wanted) + 4096, blank=False)  # what is behind the disk becomes zero
    target.content[: len(wanted)] = wanted
    target.content[5000:5010] = b"\x11" * 10
    copy, _ = restored(vm, point, target, delta=True)
    assert bytes(target.content) == wanted + bytes(4096)
    assert copy.written == target.written <= 4096 + 2 * disk_restore.COMPARED  # which of its blocks are in two extents


@pytest.mark.parametrize("kind", TARGETS)
def test_around_a_damaged_frame(tmp_path, kind):
    """What is lost reads as zero, whatever the target held; everything else is right."""
    vm = stores.chain(tmp_path / "store", points=1)
    point, wanted = vm.points[0], bytearray(vm.images[vm.points[0].id]["vda"])
    chunk = vm.folder / stores.chunks_of(vm, point, "vda")[0].path
    target = Memory(len(wanted), *TARGETS[kind])
    data = chunk.read_bytes()
    with stores.damaged(chunk, stores.flipped(data, len(data) // 2)):
        with pytest.raises(errors.Damaged):
            restored(vm, point, Memory(len(wanted), *TARGETS[kind]))
        copy, lost = restored(vm, point, target, salvage=True)
    assert lost and copy.written == target.written
    for offset, length, why in lost:
        assert str(chunk) in why
        wanted[offset : offset + length] = bytes(length)
    assert target.content == wanted
