"""Damaged files that a copy under another seal has in other files, made again to the byte."""

import random

import pytest
import stores
from copies import over, reseal
from sealed import KEYS, OTHER
from stores import KIB, flipped

from nbdpull.crypto import xaes
from nbdpull.format import reader
from nbdpull.repository import half_points, healing, references, remaking
from nbdpull.repository.healing import Outcome
from nbdpull.storage.directory import DirectoryStore


def pair(root, here=KEYS, there=OTHER):
    """(a Vm of three points, its copy)"""
    vm = stores.Vm(root / "store", keys=here)
    vm.add_disk("vda", 400 * KIB)
    vm.files = {"nvram": b"variables" * 100}
    for number in range(3):
        vm.write("vda", 64 * KIB * number, random.Random(number).randbytes(100 * KIB))
        vm.pull(dedupe=True, batch_size=64 * KIB)
    other = over(vm, root / "copy", there)
    other.keys = there
    reseal(vm, other)
    return vm, other


class Anything:
    """What is known, if everything may be damaged."""

    places = None

    def recorded(self, point):
        return [self]

    def lists_all(self, points):
        return False


def heal(vm, copy):
    with half_points.writing(vm.series):
        found = healing.heal(vm.series, copy.series, vm.points, Anything(), set(), lambda: None)
        return {each.path: each.outcome for each in found if each.outcome is not Outcome.SOUND}


def frames(vm, name):
    """(position, size) of each frame in a chunk file."""
    size = (vm.folder / name).stat().st_size
    page = reader.chunk_records(vm.store, f"vm1/{name}", size, "vda")
    own = page.records[page.records["kind"] == 0]
    return [(int(each["position"]), int(each["stored"])) for each in own if page.names[each["chunk"]] == name]


def chunk_of(vm):
    return next(entry.path for entry in references.of_point(vm.series, vm.points[0]) if entry.path.endswith(".zst"))


@pytest.mark.parametrize(("here", "there"), [(KEYS, OTHER), (KEYS, None), (None, None), (None, KEYS)])
def test_a_damaged_frame_and_a_lost_file(tmp_path, here, there):
    """Between all seals, but never from a sealed store into one that is not."""
    vm, copy = pair(tmp_path, here, there)
    if here == there:  # by way of another seal, so that the files are others
        copy = over(vm, tmp_path / "third", None)
        between = over(vm, tmp_path / "between", KEYS)
        between.keys = KEYS
        reseal(vm, between)
        reseal(between, copy)
    chunk, nvram = vm.folder / chunk_of(vm), vm.folder / vm.points[0].id / "nvram"
    before = chunk.read_bytes(), nvram.read_bytes()
    [first, *_, last] = frames(vm, chunk_of(vm))
    data = flipped(before[0], first[0] + 30)
    chunk.write_bytes(flipped(data, sum(last) - 1))
    nvram.unlink()
    found = heal(vm, copy)
    names = {str(path.relative_to(vm.folder)) for path in (chunk, nvram)}
    if here is None and there is not None:
        assert found == dict.fromkeys(names, Outcome.LACKING)
    else:
        assert found == dict.fromkeys(names, Outcome.HEALED)
        assert (chunk.read_bytes(), nvram.read_bytes()) == before
        assert heal(vm, copy) == {}


@pytest.mark.parametrize("what", ["nonce", "gone", "records", "swapped"])
def test_what_cannot_be_made_again_is_not_written(tmp_path, monkeypatch, what):
    """Nothing sealed with a nonce that is not the right one may be seen, not even for a moment."""
    vm, copy = pair(tmp_path)
    chunk = vm.folder / chunk_of(vm)
    before = chunk.read_bytes()
    [(one, _), (two, _), *_] = frames(vm, chunk_of(vm))
    data = flipped(before, {"records": len(before) - 60}.get(what, one))
    if what == "swapped":
        data = before[:one] + before[two : two + xaes.NONCE_SIZE] + before[one + xaes.NONCE_SIZE :]
    chunk.write_bytes(data)
    if what == "gone":
        chunk.unlink()
    monkeypatch.setattr(DirectoryStore, "replacing", lambda *about: pytest.fail("it was written"))
    assert heal(vm, copy) == {chunk_of(vm): Outcome.LACKING}


def test_a_copy_of_another_point_is_no_copy(tmp_path):
    vm, copy = pair(tmp_path, there=None)
    strange = vm.points[0]
    stores.resealed(copy, copy.series.point_in(strange.id), origin="0" * 64)
    assert [each.here.id for each in remaking.twins(vm.points, copy.series)] == [each.id for each in vm.points[1:]]
