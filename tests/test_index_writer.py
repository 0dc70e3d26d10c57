"""Index and directory of random series of points: what they show, what they name, and what was not written again."""

import random
import tracemalloc
from collections import Counter

import numpy
import pytest
import stores
from memory_store import MemoryStore
from stores import KIB, MIB, Vm, directory_of, scribble

from nbdpull.core import errors, extents
from nbdpull.format import layout, stack
from nbdpull.format.index_writer import Disk, IndexWriter
from nbdpull.repository.image import Image

POINT = "20261122T194500Z-7f3a9c04"


def shown(vm, point):
    """Return (bytes of vda, bool array of those that the point contains)."""
    with Image(vm.series, point, "vda", partial=True) as opened:
        return stores.shown(opened)


def needed(found):
    """Return {path: bytes that the image needs} of a directory, computed from scratch."""
    frames = {}
    for start in found.starts():
        layers = [found.records(ref) for ref in found.refs(start)]
        owner = {}
        for layer, records in enumerate(layers):  # by borders, not by stack.py
            for record in records:
                owner[int(record["offset"]), int(extents.ends(record))] = layer
        edges = sorted({edge for both in owner for edge in both})
        for number, records in enumerate(layers):
            above = layers[number + 1 :]
            for record in records[records["kind"] == extents.DATA]:
                inner = [e for e in edges if record["offset"] <= e < extents.ends(record)]
                if any(not any(_covers(upper, edge) for upper in above) for edge in inner):
                    frames[found.files[record["chunk"]].path, int(record["position"])] = int(record["stored"])
    total = Counter()
    for (path, _), stored in frames.items():
        total[path] += stored
    for ref in found.pages:
        total[found.files[ref["file"]].path] += int(ref["stored"])
    return total


def _covers(records, at):
    nearest = int(numpy.searchsorted(records["offset"], at, side="right")) - 1
    return nearest >= 0 and at < extents.ends(records[nearest])


def check(vm, point, before):
    """Check everything that must hold for a point's directory; before: that of the point below, None if there is
    none."""
    found = directory_of(vm, point, "vda")
    total = needed(found)
    own = {entry.path for entry in found.files if entry.path.startswith(point.id)}
    assert {entry.path for entry in found.files} == {path for path in total if total[path]} | own
    assert {f"{point.id}/{path.name}" for path in (vm.folder / point.id).glob("vda.[0-9i]*")} == own
    assert found.live.tolist() == [total[entry.path] for entry in found.files]
    for start in found.starts():
        layers = [found.records(ref) for ref in found.refs(start)]
        assert 0 < len(layers) <= stack.DEPTH
        counts = [len(records) for records in layers]
        assert all(below > stack.GROWTH * top for below, top in zip(counts, counts[1:]))
        if found.whole:
            assert (layers[0]["kind"] == extents.DATA).all()
    assert [vm.series.file_flaw(entry) for entry in found.files] == [None] * len(found.files)
    return found


def pages_of(found, start):
    return [(found.files[ref["file"]].path, int(ref["position"]), ref["digest"].tobytes()) for ref in found.refs(start)]


def some_changes(rng, vm):
    """Write, grow, shrink; return how the disk has to be pulled then."""
    size, since = vm.disks["vda"].size, rng.choice(["last"] * 6 + ["nothing, alike"] * 2 + ["elsewhere", "nothing"])
    if rng.random() < 0.2:
        vm.grow("vda", size + rng.choice([1, 70_000, MIB, 3 * MIB + 5]))
    elif rng.random() < 0.2:
        vm.shrink("vda", max(rng.choice([1, size // 2, size - 1, size // MIB * MIB]), 1))
        since = rng.choice(["nothing", "nothing, alike"])
    for _ in range(rng.choice([0, 1, 3, 10])):
        scribble(vm, "vda", rng, count=1, longest=rng.choice([10 * KIB, MIB, vm.disks["vda"].size + 1]))
    return since


@pytest.mark.parametrize("window", [1 << 30, MIB], ids=["one window", "several"])
@pytest.mark.parametrize("seed", range(4))
def test_random_points(tmp_path, monkeypatch, seed, window):
    monkeypatch.setattr(layout, "WINDOW", window)
    rng, vm = random.Random(seed), Vm(tmp_path)
    vm.add_disk("vda", rng.choice([3 * MIB + 512, 2 * MIB, 5 * MIB - 1]))
    known, below = numpy.zeros(0, bool), None
    for number in range(8):
        since = some_changes(rng, vm)
        size = vm.disks["vda"].size
        dirty = vm.disks["vda"].dirty.copy()
        if since == "elsewhere" or (since == "last" and number):
            base = numpy.zeros(size, bool) if since == "elsewhere" else numpy.resize(known, size)
            base[len(known) :] = below is not None and since == "last" and below.whole
            known = base | dirty
        else:
            known = numpy.ones(size, bool)
        point = vm.pull(since, frame_size=rng.choice([64 * KIB, MIB]), chunk_size=rng.choice([100 * KIB, 8 * MIB]),
                        dedupe=rng.random() < 0.7)  # fmt: skip
        found = check(vm, point, below)
        content, seen = shown(vm, point)
        expected = numpy.frombuffer(vm.images[point.id]["vda"], "u1")
        assert found.whole == known.all() or since == "elsewhere" or not below.whole
        assert (content == numpy.where(known, expected, 0)).all()
        assert found.whole or (seen == known).all()
        if since == "last" and number:
            still = [start for start in {*found.starts(), *below.starts()} if not dirty[start : start + window].any()]
            assert [pages_of(found, start) for start in still] == [pages_of(below, start) for start in still]
        below = found
    for point in vm.points:
        content, _ = shown(vm, point)
        if point.manifest.disk("vda").whole:
            assert content.tobytes() == vm.images[point.id]["vda"]


@pytest.mark.parametrize("since", ["last", "nothing, alike"])
def test_what_did_not_change_is_not_stored(tmp_path, since):
    """Frames are recognized as they were cut, so the writes have the same size."""
    vm, rng = Vm(tmp_path), random.Random(1)
    vm.add_disk("vda", 3 * MIB)
    for _ in range(2):
        for _ in range(8):
            vm.write("vda", rng.randrange(48) * 64 * KIB, rng.randbytes(64 * KIB))
        vm.pull()
    below = directory_of(vm, vm.points[-1], "vda")
    point = vm.pull(since, dedupe=True)
    found = check(vm, point, below)
    assert not stores.index_of(vm, point, "vda").exists()
    assert (found.pages["digest"] == below.pages["digest"]).all()
    assert sum(path.stat().st_size for path in (vm.folder / point.id).glob("vda.*")) < 8 * KIB


def test_small_changes_leave_the_large_page_alone(tmp_path):
    """One scattered write does not write the records of a whole window again."""
    vm = Vm(tmp_path)
    vm.add_disk("vda", 16 * MIB)
    for at in range(0, 16 * MIB, 64 * KIB):
        vm.write("vda", at, random.Random(at).randbytes(100))
    vm.pull()
    size = stores.index_of(vm, vm.points[0], "vda").stat().st_size
    for number in range(8):
        vm.write("vda", number * 300 * KIB, b"%02d" % number)
        point = vm.pull()
        assert stores.index_of(vm, point, "vda").stat().st_size < size / 4
    check(vm, point, None)


def test_records_that_come_too_late(tmp_path):
    writer = IndexWriter(MemoryStore(), Disk("vm", POINT, "vda", MIB, True))
    writer.add(layout.zero_records(extents.of([(100, 100, extents.ZERO)])))
    with pytest.raises(errors.NbdpullError, match="disk vda: records from byte 199 come too late"):
        writer.add(layout.zero_records(extents.of([(199, 1, extents.ZERO)])))


def data_records(count, step=512):
    records = numpy.zeros(count, layout.RECORD)
    records["offset"], records["length"] = numpy.arange(count, dtype="u8") * step, step
    records["raw"], records["stored"], records["position"] = step, step, numpy.arange(count) * step
    return records


@pytest.mark.parametrize("limit, where", [("MAX_PAGE_RECORDS", 1 << 30), ("MAX_BLOCK_RECORDS", MIB)])
def test_more_records_than_a_page_holds(monkeypatch, limit, where):
    """What no reader would accept is not committed."""
    monkeypatch.setattr(layout, limit, 10)
    for count in (10, 11):
        store = MemoryStore()
        store.make_folder("vm")
        store.make_folder(f"vm/{POINT}")
        writer = IndexWriter(store, Disk("vm", POINT, "vda", MIB, True))
        writer.number(f"{POINT}/vda.0000.zst")
        writer.add(data_records(count))
        if count == 10:
            writer._end_window()
            continue
        with pytest.raises(errors.Unsupported, match=f"disk vda has more than 10 records in {where} bytes"):
            writer._end_window()


def test_memory_grows_with_a_window_only(monkeypatch):
    """Whatever the size of the disk: the records of passed windows are in the file."""
    monkeypatch.setattr(layout, "WINDOW", MIB)
    peaks = []
    for windows in (10, 100):
        store = MemoryStore()
        store.make_folder("vm")
        store.make_folder(f"vm/{POINT}")
        writer = IndexWriter(store, Disk("vm", POINT, "vda", windows * MIB, True))
        writer.number(f"{POINT}/vda.0000.zst")
        tracemalloc.start()
        for number in range(windows):
            records = data_records(2048)
            records["offset"] += number * MIB
            writer.add(records)
        peaks.append(tracemalloc.get_traced_memory()[1] - writer._index.size)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5


def test_names_of_a_page():
    writer = IndexWriter(MemoryStore(), Disk("vm", POINT, "vda", MIB, True))
    paths = [f"{POINT}/vda.{number:04d}.zst" for number in range(5)]
    assert [writer.number(path) for path in paths] == [writer.number(path) for path in paths] == [0, 1, 2, 3, 4]
    records = data_records(4)
    records["chunk"], records["kind"][1] = [4, 0, 1, 4], extents.ZERO
    page = writer.page(records)
    assert page.names == [paths[1], paths[4]] and page.records["chunk"].tolist() == [1, 0, 0, 1]
    assert records["chunk"].tolist() == [4, 0, 1, 4]
