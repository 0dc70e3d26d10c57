"""Damaged chunk files that are made again from a newer point: byte for byte, or not at all."""

import random
from types import SimpleNamespace

import pytest
import stores
from sealed import KEYS
from stores import KIB, MIB, Vm

from nbdpull.core import errors
from nbdpull.definitions.domain_xml import Checkpoint
from nbdpull.format import layout, reader, writer
from nbdpull.pulling import copies
from nbdpull.pulling.base import Base, Choice
from nbdpull.repository import immutable, mending

HOW = {"chunk_size": 256 * KIB, "batch_size": 64 * KIB}


@pytest.fixture
def vm(tmp_path):
    """Two points of which the second one shows all but the first 64 KiB of the first."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, random.Random(1).randbytes(900 * KIB))
    vm.pull(**HOW)
    vm.write("vda", 0, b"x" * 64 * KIB)
    vm.pull(**HOW)
    return vm


def mended(vm, entry, levels=(1,), check=lambda: None):
    """Make a file of the first point again, from a point that does without it."""
    vm.bad = {entry.path}
    now = mending.Now(vm.series, vm.pull(**HOW), "vda")
    return mending.mended(now, entry, levels, check)


@pytest.mark.parametrize("frames", [1, 3])
def test_data_that_the_disk_still_holds(vm, tmp_path, frames):
    first, second, *_ = vm.points
    entry = stores.chunks_of(vm, first, "vda")[1]
    path = vm.folder / entry.path
    before = data = path.read_bytes()
    records = [each for each in stores.records_of(vm, first, "vda") if each["chunk"] == 1]
    for record in records[:frames]:
        data = stores.flipped(data, int(record["position"]) + int(record["stored"]) // 2)
    path.write_bytes(data)
    assert mended(vm, entry)
    assert path.read_bytes() == before
    for number, point in enumerate(vm.points):
        assert stores.restored(vm, point, tmp_path / f"out{number}") == vm.images[point.id]
    assert not stores.verify_store(vm.root).damages


def put(vm, path, data):
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    return data


@pytest.mark.parametrize("how", ["changed since", "cut", "gone", "no frame", "its records", "other level"])
def test_what_cannot_be_made_again_stays_as_it_is(vm, how):
    entry = stores.chunks_of(vm, vm.points[0], "vda")[0 if how == "changed since" else 1]
    path = vm.folder / entry.path
    data = path.read_bytes()
    frame = 20 * KIB if how != "no frame" else 20
    ways = {"cut": data[:-1], "gone": None, "its records": stores.flipped(data, len(data) - 300)}
    bad = put(vm, path, ways.get(how, stores.flipped(data, frame)))
    levels = () if how == "other level" else (1,)
    if how == "its records":
        with pytest.raises(errors.Damaged):
            mended(vm, entry, levels)
    else:
        assert not mended(vm, entry, levels)
    assert (path.read_bytes() if path.exists() else None) == bad
    assert not list(vm.folder.rglob("*.draft"))


def damaged(vm, entry, damage):
    """Damage three frames of a file; return its former content."""
    path = vm.folder / entry.path
    before = data = path.read_bytes()
    for record in [each for each in stores.records_of(vm, vm.points[0], "vda") if each["chunk"] == 1][:3]:
        start, stop = int(record["position"]), int(record["position"]) + int(record["stored"])
        data = data[:start] + damage(data[start:stop]) + data[stop:]
    path.write_bytes(data)
    return before


def flip(frame):
    return stores.flipped(frame, len(frame) // 2)


def zero(frame):
    return bytes(len(frame))


@pytest.mark.parametrize("damage, levels, is_mended", [(flip, [3, 2, 1], 1), (zero, [2, 1], 1), (zero, [3, 2, 1], 0)])
def test_levels_that_make_frames_of_one_size(vm, monkeypatch, damage, levels, is_mended):
    """One frame in some hundred has the same size at two levels: the rest of the frame shows which level it was, or
    else the digest of the file does. 27 files would be too many to try."""
    real = writer.compressor

    def fake(level):
        if level == 1:
            return real(1)
        return SimpleNamespace(compress=lambda data: real(1).compress(data)[:-1] + bytes([level]))

    monkeypatch.setattr(writer, "compressor", fake)
    entry = stores.chunks_of(vm, vm.points[0], "vda")[1]
    before = damaged(vm, entry, damage)
    assert mended(vm, entry, levels) == bool(is_mended)
    assert ((vm.folder / entry.path).read_bytes() == before) == bool(is_mended)
    assert not list(vm.folder.rglob("*.draft"))


def test_a_level_known_only_from_the_manifest(tmp_path):
    """A pull of today has another one; and no level that a manifest can name is fatal."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, b"".join(b"%x " % (number**3) for number in range(1 << 17))[: 900 * KIB])
    first = vm.pull(**HOW, level=12, levels={"-200000": 1, "12": 2, "99": 3, "x": 4})
    entry = stores.chunks_of(vm, first, "vda")[0]
    path = vm.folder / entry.path
    before = path.read_bytes()
    path.write_bytes(stores.flipped(before, 1000))
    vm.bad = {entry.path}
    now = mending.Now(vm.series, vm.pull(**HOW), "vda")
    assert not mending.mended(now, entry, [1, -1, 2, 3], lambda: None)
    assert mending.all_mended(now, [entry], [1, -1, 2, 3], lambda: None) == ([entry.path], "")
    assert path.read_bytes() == before


def test_only_the_windows_of_the_file_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 8 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(8 * MIB))
    first = vm.pull(**HOW)
    entry, seen, real = stores.chunks_of(vm, first, "vda")[-1], set(), reader.page
    path = vm.folder / entry.path
    before = path.read_bytes()
    path.write_bytes(stores.flipped(before, 20 * KIB))
    vm.bad = {entry.path}
    now = mending.Now(vm.series, vm.pull(**HOW), "vda")
    monkeypatch.setattr(reader, "page", lambda *about: seen.add(int(about[2]["offset"])) or real(*about))
    assert mending.mended(now, entry, [1], lambda: None)
    assert path.read_bytes() == before and seen == {7 * MIB}


def test_in_a_sealed_store_no_frame_can_be_made_again(tmp_path):
    """Each frame has a random nonce."""
    vm = Vm(tmp_path / "store", keys=KEYS)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, random.Random(1).randbytes(900 * KIB))
    entry = stores.chunks_of(vm, vm.pull(**HOW), "vda")[1]
    path = vm.folder / entry.path
    path.write_bytes(stores.flipped(path.read_bytes(), 20 * KIB))
    assert not mended(vm, entry, check=lambda: pytest.fail("it was read"))


def test_obstacles_are_reported(vm):
    entry = stores.chunks_of(vm, vm.points[0], "vda")[1]
    path = vm.folder / entry.path
    path.write_bytes(stores.flipped(path.read_bytes(), 20 * KIB))
    vm.bad = {entry.path}
    now = mending.Now(vm.series, vm.pull(**HOW), "vda")

    def end():
        raise errors.LimitReached("the time is up")

    assert mending.all_mended(now, [entry], [1], end) == ([], "the time is up")
    assert mending.all_mended(now, [entry], [1], lambda: None) == ([entry.path], "")


@pytest.mark.parametrize("lost", [False, True])
def test_a_committed_pull_does_not_fail_by_it(vm, monkeypatch, lost):
    """The directory of the base is read once more, and none of its pages. A refused lock is reported as such."""

    def refused(*about):
        raise errors.AccessDenied("no s3:PutObjectRetention")

    monkeypatch.setattr(immutable, "_keep_promises", refused)
    monkeypatch.setattr(copies, "SoundPart", lambda *about: pytest.fail("all pages were read once more"))
    base, entry = vm.points[-1], stores.chunks_of(vm, vm.points[0], "vda")[1]
    path, checkpoint = vm.folder / entry.path, Checkpoint("", 0, "", {}, "")
    path.write_bytes(stores.flipped(path.read_bytes(), 20 * KIB))
    vm.bad = frozenset({entry.path})
    found = [copies.Healed("vda", 64 * KIB, [entry.path], [])]
    like = Base(checkpoint, base, whole=frozenset({"vda"}), bad={"vda": vm.bad})
    now = vm.series, vm.pull(**HOW)
    if lost:
        (vm.folder / base.manifest.disk("vda").directory.path).unlink()
    choice = Choice(None, {"vda": ("full", "requested")}, like=like)
    [healed], [warning, *more] = copies.mended(now, choice, found, 1, lambda: None)
    assert healed == found[0]._replace(mended=[] if lost else [entry.path])
    assert ("not made again" in warning) == lost
    assert lost or (warning.endswith("that it is: no s3:PutObjectRetention") and len(more) == 1)
