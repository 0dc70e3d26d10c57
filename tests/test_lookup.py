"""Random access to an image: random points and random ranges against plain bytes; memory, cache and damage."""

import random
import threading
import tracemalloc

import numpy
import pytest
from stores import KIB, MIB, ROLLING, Blank, Vm, chain, chunks_of, damaged, flipped, index_of, scribble
from threads import at_once

from nbdpull.core import errors, extents
from nbdpull.format import layout
from nbdpull.repository import lookup
from nbdpull.repository.lookup import RandomImage


def ranges(rng, size, count=60):
    for _ in range(count):
        offset = rng.randrange(size)
        yield offset, rng.randint(0, min(size - offset, rng.choice([1, 5000, 70_000, 3 * MIB])))


@pytest.mark.parametrize("window, span", [(1 << 30, 1 << 32), (1 << 30, 100 * KIB), (MIB, 1 << 32)],
                         ids=["one window", "of 100 KiB", "many"])  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_random_points(tmp_path, monkeypatch, seed, window, span):
    monkeypatch.setattr(layout, "WINDOW", window)
    monkeypatch.setattr(lookup, "SPAN", span)
    rng = random.Random(seed)
    vm = Vm(tmp_path)
    vm.add_disk("vda", rng.choice([MIB, 3 * MIB + 512, 2 * MIB + 70_001]))
    for number in range(5):
        if number and rng.random() < 0.5:
            vm.grow("vda", vm.disks["vda"].size + rng.choice([1, 512, 100_000, 2 * MIB + 5]))
        scribble(vm, "vda", rng, count=rng.randint(0, 5))
        vm.pull(frame_size=rng.choice([64 * KIB, 256 * KIB, MIB]), chunk_size=rng.choice([8 * KIB, MIB]))
    for point in vm.points:
        expected = vm.images[point.id]["vda"]
        with RandomImage(vm.series, point, "vda", cache_bytes=rng.choice([1, MIB])) as opened:
            assert opened.size == len(expected)
            assert opened.read(0, opened.size) == expected
            for offset, length in ranges(rng, opened.size):
                assert opened.read(offset, length) == expected[offset : offset + length]
                if length:
                    check_extents(opened.extents(offset, length), offset, length, expected)
                    check_limited(opened, offset, length)


def check_extents(found, offset, length, expected):
    assert extents.gaps(found, offset, offset + length) == [] and extents.total(found) == length
    for each in found[found["kind"] == extents.ZERO]:
        assert not any(expected[int(each["offset"]) : int(each["offset"] + each["length"])])
    assert len(extents.merged(found)) == len(found)


def check_limited(opened, offset, length):
    """A limited answer is the beginning of the whole one, and never empty."""
    whole, some = opened.extents(offset, length), opened.extents(offset, length, limit=2)
    stop = int(extents.ends(some[-1:])[0])
    assert offset < stop <= offset + length
    assert extents.merged(extents.clip(whole, offset, stop)).tolist() == some.tolist()


def test_requests_must_be_within_the_disk(tmp_path):
    vm = chain(tmp_path, points=1)
    with RandomImage(vm.series, vm.points[0], "vda") as opened:
        assert opened.read(opened.size, 0) == b""
        for offset, length in ((opened.size, 1), (opened.size - 5, 6), (-1, 2)):
            with pytest.raises(errors.UsageError):
                opened.read(offset, length)


def test_many_threads(tmp_path):
    vm = chain(tmp_path, size=6 * MIB, points=4, **ROLLING)
    expected, wrong = vm.images[vm.points[-1].id]["vda"], []
    with RandomImage(vm.series, vm.points[-1], "vda", cache_bytes=MIB) as opened:

        def work(seed):
            for offset, length in ranges(random.Random(seed), opened.size, 100):
                if opened.read(offset, length) != expected[offset : offset + length]:
                    wrong.append((offset, length))

        at_once(work, range(4))
    assert wrong == []


def test_the_cache_is_bounded_and_spares_work(tmp_path, monkeypatch):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 4 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(4 * MIB))
    vm.pull(frame_size=MIB)
    reads = []
    real = lookup.reader.FrameReader.read

    def counted(self, place):
        reads.append(place["offset"])
        return real(self, place)

    monkeypatch.setattr(lookup.reader.FrameReader, "read", counted)
    with RandomImage(vm.series, vm.points[0], "vda", cache_bytes=2 * MIB) as opened:
        for at in (0, 4096, MIB, 0, MIB + 512):
            opened.read(at, 4096)
        assert reads == [0, MIB]
        opened.read(2 * MIB, 1)  # the one used longest ago goes
        opened.read(MIB, 1)
        opened.read(0, 1)
        assert reads == [0, MIB, 2 * MIB, 0]
        assert sum(map(len, opened._cache._held.values())) <= 2 * MIB


def test_a_sequential_reader_finds_the_next_frame_read_ahead(tmp_path, monkeypatch):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 8 * MIB)
    content = random.Random(1).randbytes(8 * MIB)
    vm.write("vda", 0, content)
    vm.pull(frame_size=MIB)
    begun = []
    monkeypatch.setattr(lookup.FrameCache, "begin", lambda self, place: begun.append(place["offset"]) or True)
    with RandomImage(vm.series, vm.points[0], "vda", ahead=2) as opened:
        for at in (5 * MIB, 7 * MIB, 5 * MIB + KIB):  # here and there
            opened.read(at, KIB)
        assert begun == []
        for at in range(0, 3 * MIB, 256 * KIB):
            assert opened.read(at, 256 * KIB) == content[at : at + 256 * KIB]
        assert begun == [2 * MIB, 3 * MIB, 3 * MIB, 4 * MIB]
    with RandomImage(vm.series, vm.points[0], "vda") as opened:
        assert opened.read(0, MIB) + opened.read(MIB, MIB) == content[: 2 * MIB]
    with RandomImage(vm.series, vm.points[0], "vda", ahead=1) as opened:
        other = threading.Thread(target=opened.read, args=(7 * MIB, KIB))
        opened.read(0, KIB)
        other.start()
        other.join()
        opened.read(MIB, KIB)  # the processors are busy with two clients
    assert len(begun) == 4


def test_what_is_read_ahead_is_what_is_there(tmp_path):
    vm = chain(tmp_path, size=6 * MIB, points=4, **ROLLING)
    expected, step = vm.images[vm.points[-1].id]["vda"], 200 * KIB
    with RandomImage(vm.series, vm.points[-1], "vda", cache_bytes=MIB, ahead=2) as opened:
        read = [opened.read(at, min(step, opened.size - at)) for at in range(0, opened.size, step)]
    assert b"".join(read) == expected


def test_damage_is_refused_and_other_frames_still_read(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 2 * MIB)
    content = random.Random(2).randbytes(2 * MIB)
    vm.write("vda", 0, content)
    point = vm.pull(frame_size=MIB)
    path = vm.folder / chunks_of(vm, point, "vda")[0].path
    with damaged(path, flipped(path.read_bytes(), 5000)), RandomImage(vm.series, point, "vda") as opened:
        for _ in range(2):
            with pytest.raises(errors.Damaged, match="bytes 0 to 1048576"):
                opened.read(0, 10)
        assert opened.read(MIB, 10) == content[MIB : MIB + 10]
    index = index_of(vm, point, "vda")
    with damaged(index, flipped(index.read_bytes(), 20)), pytest.raises(errors.Damaged, match="vda.index"):
        RandomImage(vm.series, point, "vda")


def test_each_further_run_takes_little_memory(tmp_path):
    """44 bytes if its frame has the size of all others: a million fit in 64 MiB, also while the map is made. Measured
    between maps of one span and of four, because both read the same amount at once."""
    few, many = (peak_of_a_map(tmp_path / str(spans), spans * RUNS_OF_A_SPAN) for spans in (1, 4))
    assert 40 < (many - few) / (3 * RUNS_OF_A_SPAN) < 56


def peak_of_a_map(folder, count):
    """Return the most memory, in bytes, that was used until the map of that many runs of data was made and queried."""
    vm = Vm(folder)
    vm.add_disk("vda", 1)
    vm.write("vda", 0, b"x")
    chunks = chunks_of(vm, vm.pull(), "vda")
    vm.disks["vda"] = Blank(2 * count * 65536)
    vm.pull("nothing", handmade={"vda": lambda folder: (many_records(count), chunks)})
    tracemalloc.start()
    try:
        with RandomImage(vm.series, vm.points[-1], "vda") as opened:
            assert opened.frames == count
            assert len(opened.extents(0, 1 << 30)) == 16384
            return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_more_runs_than_can_be_held(tmp_path, monkeypatch):
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    for at in (0, 100 * KIB, 200 * KIB):
        vm.write("vda", at, b"x")
    point = vm.pull()
    monkeypatch.setattr(lookup, "MAX_RUNS", 3)
    RandomImage(vm.series, point, "vda").close()
    monkeypatch.setattr(lookup, "MAX_RUNS", 2)
    with pytest.raises(errors.StoreError, match="disk vda has more than 2 runs of data .* restore it instead"):
        RandomImage(vm.series, point, "vda")


def test_an_empty_disk_of_a_thousand_terabytes(tmp_path):
    """It is opened as quickly as one of a gigabyte."""
    vm = Vm(tmp_path)
    vm.disks["vda"] = Blank(1 << 50)
    point = vm.pull("nothing", handmade={"vda": lambda folder: (numpy.empty(0, layout.RECORD), [])})
    with RandomImage(vm.series, point, "vda") as opened:
        assert opened.extents().tolist() == [(0, 1 << 50, extents.ZERO)] and not opened._windows
        assert opened.read((1 << 50) - 5, 5) == bytes(5)


RUNS_OF_A_SPAN = lookup.SPAN // 2 // 65536  # of many_records


def many_records(count):
    """64 KiB of data, 64 KiB of zeros, and so on."""
    records = numpy.zeros(2 * count, layout.RECORD)
    records["offset"] = numpy.arange(2 * count, dtype="u8") * 65536
    records["length"] = 65536
    records["kind"] = numpy.tile([extents.DATA, extents.ZERO], count)
    for field in ("stored", "raw"):
        records[field][::2] = 65536
    records["position"][::2] = numpy.arange(count, dtype="u8") * 65536
    return records


@pytest.mark.parametrize("seed", range(3))
def test_extents_in_blocks(seed):
    rng, size = random.Random(seed), 4096
    for _ in range(50):
        edges = sorted(rng.sample(range(100_000), rng.randint(2, 12)))
        kinds = [rng.choice([extents.DATA, extents.ZERO]) for _ in edges]
        found = extents.merged(extents.of((a, b - a, kind) for a, b, kind in zip(edges, edges[1:], kinds)))
        result = extents.in_blocks(found, size)
        assert extents.gaps(result, edges[0], edges[-1]) == [] and extents.total(result) == edges[-1] - edges[0]
        assert not (result["offset"][1:] % size).any()
        for zero in result[result["kind"] == extents.ZERO]:
            held = extents.clip(found, int(zero["offset"]), int(zero["offset"] + zero["length"]))
            assert (held["kind"] == extents.ZERO).all()
