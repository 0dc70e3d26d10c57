"""An image: random points against plain bytes, even if the disk has many windows."""

import os
import random
import resource

import numpy
import pytest
import stores
from stores import KIB, MIB, ROLLING, Vm, chain, records_of, scribble
from threads import at_once

from nbdpull.core import errors, extents
from nbdpull.format import directory, layout
from nbdpull.repository import image
from nbdpull.repository.image import Image
from nbdpull.repository.lookup import RandomImage


def content(opened):
    """Return all bytes of an Image by its pieces; a byte in two pieces is an error."""
    found, known = bytearray(opened.size), numpy.zeros(opened.size, bool)
    for piece in opened.pieces():
        for extent in piece:
            start, stop = int(extent["offset"]), int(extent["offset"] + extent["length"])
            assert start < stop and not known[start:stop].any()
            known[start:stop] = True
        if stores.is_data(piece):
            assert (piece["kind"] == extents.DATA).all()
            buffers = opened.read_piece(piece)
            assert len(buffers) == len(piece)
            for extent, buffer in zip(piece, buffers):
                assert len(buffer) == extent["length"]
                found[int(extent["offset"]) : int(extent["offset"]) + len(buffer)] = buffer
        else:
            assert (piece["kind"] == extents.ZERO).all()
    return bytes(found)


@pytest.mark.parametrize("window", [1 << 30, MIB], ids=["one window", "several"])
@pytest.mark.parametrize("seed", range(7))
def test_random_points(tmp_path, monkeypatch, seed, window):
    monkeypatch.setattr(layout, "WINDOW", window)
    rng = random.Random(seed)
    vm = Vm(tmp_path)
    vm.add_disk("vda", rng.choice([MIB, 3 * MIB + 512, 2 * MIB + 70_001]))
    for number in range(6):
        if number and rng.random() < 0.5:
            vm.grow("vda", vm.disks["vda"].size + rng.choice([1, 512, 100_000, MIB, 2 * MIB + 5]))
        scribble(vm, "vda", rng, count=rng.randint(0, 5))
        since = "nothing" if rng.random() < 0.15 else "last"
        vm.pull(since, frame_size=rng.choice([64 * KIB, 256 * KIB, MIB]), chunk_size=rng.choice([8 * KIB, MIB]))
    for point in vm.points:
        with Image(vm.series, point, "vda") as opened:
            assert opened.size == len(vm.images[point.id]["vda"])
            assert content(opened) == vm.images[point.id]["vda"]


def test_the_last_of_many_points(tmp_path):
    vm = chain(tmp_path, points=30, size=500_000)
    with Image(vm.series, vm.points[-1], "vda") as opened:
        assert content(opened) == vm.images[vm.points[-1].id]["vda"]


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2, MIB, MIB + 1])
def test_zeros_that_reach_over_the_end_of_a_window(tmp_path, monkeypatch, beyond):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    vm = Vm(tmp_path)
    vm.add_disk("vda", 3 * MIB)
    vm.write("vda", 0, b"x" * 3 * MIB)
    vm.pull(frame_size=MIB)
    vm.zero("vda", MIB - 10, 10 + beyond)
    point = vm.pull()
    with Image(vm.series, point, "vda") as opened:
        windows = list(opened.windows())
        left = [n * MIB for n in range(3) if n != 1 or beyond < MIB]  # what is all zeros has no page
        assert [(window.start, window.stop) for window in windows] == [(start, start + MIB) for start in left]
        for window in windows:
            assert (window.segments["offset"] >= window.start).all()
            assert (extents.ends(window.segments) <= window.stop).all()
        assert content(opened) == vm.images[point.id]["vda"]


def test_a_window_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    """Memory must not grow with the size of the disk: what lies ahead is not loaded yet, what was passed is freed."""
    monkeypatch.setattr(layout, "WINDOW", MIB)
    vm = Vm(tmp_path)
    vm.add_disk("vda", 8 * MIB)
    for at in range(0, 8 * MIB, 64 * KIB):
        vm.write("vda", at, b"x" * 100)
    vm.pull()
    read, real = [], image.reader.page
    monkeypatch.setattr(
        directory.reader, "page", lambda *about: (read.append(int(about[2]["offset"])), real(*about))[1]
    )
    with Image(vm.series, vm.points[0], "vda") as opened:
        for number, (window, piece_count) in enumerate(zip(opened.windows(), range(8))):
            assert read == [each * MIB for each in range(number + 1)] and piece_count == number
            assert len(window.segments) == 16
        assert not opened.directory._held


def test_it_can_be_stopped(tmp_path):
    """An image of a thousand empty terabytes takes long to read."""
    vm = chain(tmp_path, points=1)

    def check():
        raise errors.Interrupted(2)

    with Image(vm.series, vm.points[-1], "vda", check=check) as opened, pytest.raises(errors.Interrupted):
        opened.data_bytes(512)


def shared_frames(vm, records):
    """A point whose disk has handmade records into the chunk files of the first one."""
    chunks = stores.chunks_of(vm, vm.points[0], "vda")
    return vm.pull("nothing", handmade={"vda": lambda folder: (records, chunks)})


def test_parts_of_many_frames_in_one_block(tmp_path, monkeypatch):
    """If parts of a thousand frames of 1 MiB are in one block, they are not all in memory at once."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", 8 * MIB)
    data = random.Random(3).randbytes(8 * MIB)
    vm.write("vda", 0, data)
    vm.pull(frame_size=MIB)
    frames = records_of(vm, vm.points[0], "vda")
    records = numpy.concatenate([frames] * 16)
    records["offset"] = numpy.arange(len(records)) * 8192
    records["skip"], records["length"] = 4096, 8192
    monkeypatch.setattr(image, "HELD_BYTES", 2 * MIB)
    vm.disks["vda"] = stores.Disk.blank(MIB)
    point = shared_frames(vm, records)
    with Image(vm.series, point, "vda") as opened:
        expected = b"".join(data[n % 8 * MIB + 4096 :][:8192] for n in range(128))
        assert content(opened) == expected


@pytest.mark.parametrize("how", ["image", "random access"])
def test_a_frame_is_distinguished_from_another_at_its_place(tmp_path, how):
    """Two records have one place and two digests: the second one does not get the first one's frame."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", 64 * KIB)
    vm.write("vda", 0, random.Random(3).randbytes(64 * KIB))
    vm.pull()
    records = numpy.concatenate([records_of(vm, vm.points[0], "vda")] * 2)
    records["length"] = records["length"] // 2
    records["offset"][1] = records["length"][0]
    records["digest"][1] = numpy.void(bytes(32))
    point = shared_frames(vm, records)
    with pytest.raises(errors.Damaged, match="not what was stored"):
        if how == "image":
            with Image(vm.series, point, "vda") as opened:
                content(opened)
        else:
            with RandomImage(vm.series, point, "vda") as opened:
                opened.read(0, opened.size)


@pytest.mark.parametrize("count", [100, 5])
@pytest.mark.parametrize("patched", [{"MAX_OPEN": 10}, {"SHARE": resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 10}])
def test_many_chunk_files_are_not_all_open_at_once(tmp_path, monkeypatch, count, patched):
    """1000 of them, 256 GB of data, were more than a process may open: a sound store was reported as damaged. At most
    ten are open, or fewer if the process may open only few."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", count * 64 * KIB)
    vm.write("vda", 0, random.Random(3).randbytes(count * 64 * KIB))
    point = vm.pull(chunk_size=64 * KIB, batch_size=64 * KIB)
    assert len(stores.chunks_of(vm, point, "vda")) == count
    for name, value in patched.items():
        monkeypatch.setattr(image.reader, name, value)
    most, before = [0], len(os.listdir("/proc/self/fd"))
    with Image(vm.series, point, "vda") as opened:
        at_once(lambda _: read_all(opened, most), range(4))
        assert content(opened) == vm.images[point.id]["vda"]
    assert max(most) - before <= 10 + 4 + 4 + 2  # those in use, the indexes, and the look at it
    assert len(os.listdir("/proc/self/fd")) == before


def read_all(opened, most):
    for piece in opened.pieces():
        opened.read_piece(piece)
        most.append(len(os.listdir("/proc/self/fd")))


def test_pieces_are_ascending_and_within_a_block(tmp_path):
    vm = chain(tmp_path, size=4 * MIB)
    with Image(vm.series, vm.points[-1], "vda") as opened:
        data = [piece for piece in opened.pieces() if stores.is_data(piece)]
    starts = [int(piece["offset"][0]) for piece in data]
    assert starts == sorted(starts)
    for piece in data:
        assert len({*(piece["offset"] // MIB), *((extents.ends(piece) - 1) // MIB)}) == 1


def test_each_frame_is_decompressed_once(tmp_path, monkeypatch):
    """A frame of which many small ranges are visible must not be decompressed for each of them."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", 2 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(2 * MIB))
    vm.pull(frame_size=MIB)
    for at in range(0, 2 * MIB, 8 * KIB):
        vm.write("vda", at, b"y" * 1000)
    vm.pull()
    reads = []
    real = image.reader.FrameReader.read

    def read(self, record):
        reads.append((record["chunk"], record["position"]))
        return real(self, record)

    monkeypatch.setattr(image.reader.FrameReader, "read", read)
    with Image(vm.series, vm.points[-1], "vda") as opened:
        assert content(opened) == vm.images[vm.points[-1].id]["vda"]
    assert len(reads) == len(set(reads)) == 2 + 256


@pytest.mark.parametrize("hidden, copied", [(256 * KIB, False), (768 * KIB, True)])
def test_only_a_small_rest_of_a_frame_is_copied(tmp_path, hidden, copied):
    """Otherwise a whole frame is kept for it. What is left may be in several parts."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, random.Random(1).randbytes(MIB))
    vm.pull(frame_size=MIB)
    vm.write("vda", 128 * KIB, b"y" * hidden)
    vm.pull()
    with Image(vm.series, vm.points[-1], "vda") as opened:
        [piece] = opened.pieces()
        parts = opened.read_piece(piece)
    assert b"".join(parts) == vm.images[vm.points[-1].id]["vda"]
    assert [isinstance(part, bytes) for part in (parts[0], parts[-1])] == [copied, copied]
    assert copied or parts[0].obj is parts[-1].obj


def test_many_threads_read_pieces(tmp_path):
    vm = chain(tmp_path, size=6 * MIB, points=4, **ROLLING)
    expected, wrong = vm.images[vm.points[-1].id]["vda"], []
    with Image(vm.series, vm.points[-1], "vda") as opened:
        pieces = [piece for piece in opened.pieces() if stores.is_data(piece)]

        def work(seed):
            for piece in random.Random(seed).choices(pieces, k=20):
                for extent, buffer in zip(piece, opened.read_piece(piece)):
                    if bytes(buffer) != expected[int(extent["offset"]) :][: len(buffer)]:
                        wrong.append(extent)

        at_once(work, range(4))
    assert wrong == []


def test_growth_reads_as_zero(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 100_000)
    vm.write("vda", 0, b"z" * 100_000)
    vm.pull()
    vm.grow("vda", 3 * MIB)
    vm.write("vda", 2 * MIB, b"new")
    point = vm.pull()
    with Image(vm.series, point, "vda") as opened:
        assert content(opened) == b"z" * 100_000 + bytes(2 * MIB - 100_000) + b"new" + bytes(MIB - 3)


def test_a_range_without_a_record_is_zero(tmp_path):
    """Or unchanged, if the disk is not whole."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", 200_000)
    for since, partial in (("nothing", False), ("elsewhere", True)):
        vm.write("vda", 70_000, b"x" * 100)
        point = vm.pull(since)
        with Image(vm.series, point, "vda", partial=True) as opened:
            assert opened.partial is partial
            assert content(opened) == bytes(70_000) + b"x" * 100 + bytes(129_900)
            known = sum(extents.total(piece) for piece in opened.pieces())
            assert known == 100
    with pytest.raises(errors.PartialPoint):
        Image(vm.series, point, "vda")


def test_a_record_may_point_into_a_frame_of_an_older_point(tmp_path):
    """Unchanged data refers to old frames; skip and length select a part of one."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    noise = random.Random(7).randbytes(64 * KIB)
    vm.write("vda", 128 * KIB, noise)
    first = vm.pull()
    old = records_of(vm, first, "vda")
    old = old[old["offset"] == 128 * KIB][0]

    record = numpy.zeros(2, layout.RECORD)
    for at, (offset, length, skip) in enumerate([(500_000, 100, 0), (600_000, 30_000, 20_000)]):
        record[at] = old
        record["offset"][at], record["length"][at], record["skip"][at] = offset, length, skip
        vm.write("vda", offset, noise[skip : skip + length])
    chunks = stores.chunks_of(vm, first, "vda")
    second = vm.pull(handmade={"vda": lambda folder: (record, chunks)})
    vm.write("vda", 610_000, b"over it")
    third = vm.pull()
    for point in (first, second, third):
        with Image(vm.series, point, "vda") as opened:
            assert content(opened) == vm.images[point.id]["vda"]


def test_an_image_is_of_its_point(tmp_path):
    vm = chain(tmp_path)
    with pytest.raises(errors.NbdpullError):
        Image(vm.series, vm.points[0], "vdz")


def test_files_are_closed(tmp_path):
    import os

    vm = chain(tmp_path, **ROLLING)
    before = os.listdir("/proc/self/fd")
    with Image(vm.series, vm.points[-1], "vda") as opened:
        content(opened)
        assert len(os.listdir("/proc/self/fd")) > len(before)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("seed", range(4))
def test_the_head_of_a_disk(tmp_path, seed):
    """By the model, whatever is on top of what, also with tiny frames and tiny disks."""
    rng = random.Random(seed)
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", rng.choice([100, 512, 4 * KIB, MIB]))
    for number in range(4):
        vm.pull(since="last" if number else "nothing")
        size = vm.disks["vda"].size
        for _ in range(3):
            at = rng.randrange(min(size, 700))
            length = min(rng.randrange(1, 300), size - at)
            vm.zero("vda", at, length) if rng.randrange(3) == 0 else vm.write("vda", at, rng.randbytes(length))
    for point in vm.points:
        with Image(vm.series, point, "vda") as opened:
            assert opened.head(512) == vm.images[point.id]["vda"][:512]


def test_the_head_of_a_disk_with_only_changes(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 2 * KIB)
    for at, length, known in ((0, 512, True), (0, 511, False), (600, 100, False)):
        vm.points.clear()
        vm.write("vda", at, b"x" * length)
        point = vm.pull(since="elsewhere")
        with Image(vm.series, point, "vda", partial=True) as opened:
            assert opened.head(512) == (vm.images[point.id]["vda"][:512] if known else None)
