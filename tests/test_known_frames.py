"""Data that the parent already holds: referred to, never stored again, and never mistaken for other data."""

import os
import random

import command
import pytest
import stores
from stores import MIB, Vm
from threads import at_once

from nbdpull.core import extents
from nbdpull.format import layout, writer
from nbdpull.repository import known_frames
from nbdpull.repository.image import Image

CHUNK = 1 << 16  # what stores.Vm makes one frame of


@pytest.fixture
def vm(tmp_path):
    made = Vm(tmp_path / "store")
    made.add_disk("vda", 8 * MIB)
    return made


def offered(vm, point, data):
    """Encode [(offset, bytes), …] against what a point holds."""
    known = known_frames.KnownFrames(stores.directory_of(vm, point, "vda"))
    batch = extents.of([(offset, len(part), extents.DATA) for offset, part in data])
    return writer.Encoder(1, known).encode(batch, [part for _, part in data])


def test_same_bytes_at_the_same_place_are_known(vm):
    data = os.urandom(CHUNK)
    vm.write("vda", 2 * MIB, data)
    encoded = offered(vm, vm.pull(), [(2 * MIB, data)])
    assert len(encoded.old) == 1 and not encoded.frames


@pytest.mark.parametrize(
    "change",
    [lambda o, d: (o + MIB, d), lambda o, d: (o, d[:-1] + bytes([d[-1] ^ 1])), lambda o, d: (o, d[: CHUNK // 2])],
)
def test_other_place_byte_or_length_is_new(vm, change):
    data = os.urandom(CHUNK)
    vm.write("vda", 2 * MIB, data)
    encoded = offered(vm, vm.pull(), [change(2 * MIB, data)])
    assert not len(encoded.old) and len(encoded.frames) == 1


def test_data_hidden_by_a_later_point_is_not_known(vm):
    first, second = os.urandom(CHUNK), os.urandom(CHUNK)
    vm.write("vda", 0, first)
    vm.pull()
    vm.write("vda", 0, second)
    vm.write("vda", MIB, first[:4096])
    point = vm.pull()
    encoded = offered(vm, point, [(0, first)])
    assert not len(encoded.old)
    encoded = offered(vm, point, [(0, second)])
    assert len(encoded.old) == 1


def test_a_part_of_a_frame_is_not_known(vm):
    """The digest is that of the whole frame, not of the visible part."""
    data = os.urandom(CHUNK)
    vm.write("vda", 0, data)
    vm.pull()
    vm.write("vda", 0, b"x" * 4096)
    point = vm.pull()
    for part in (data, data[4096:]):
        assert not len(offered(vm, point, [(CHUNK - len(part), part)]).old)


@pytest.mark.parametrize("held", [1, 4])
def test_windows_in_any_order(vm, monkeypatch, held):
    """Threads ask for what they read, and not all windows are in memory."""
    monkeypatch.setattr(layout, "WINDOW", MIB)
    monkeypatch.setattr(known_frames, "HELD", held)
    content = {at: os.urandom(CHUNK) for at in range(0, 8 * MIB, MIB // 2) if at // MIB != 5}
    for at, data in content.items():
        vm.write("vda", at, data)
    known = known_frames.KnownFrames(stores.directory_of(vm, vm.pull(), "vda"))
    encoder, wrong = writer.Encoder(1, known), []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(30):
            chosen = sorted(rng.sample([*content, 5 * MIB], 3))
            found = encoder.encode(
                extents.of([(at, CHUNK, extents.DATA) for at in chosen]),
                [content.get(at, b"x" * CHUNK) for at in chosen],
            )
            if [int(at) for at in found.records["offset"][found.old]] != [at for at in chosen if at in content]:
                wrong.append(chosen)

    at_once(work, range(4))
    assert wrong == [] and len(known._held) <= held


def test_references_and_new_frames_mixed_are_read_back(vm):
    """Chunk files of this point and of older ones, in an order that only the directory shows."""
    rng = random.Random(5)
    content = {offset: rng.randbytes(CHUNK) for offset in range(0, 8 * MIB, MIB)}
    for offset, data in content.items():
        vm.write("vda", offset, data)
    first = vm.pull()
    new = {offset: rng.randbytes(CHUNK) if rng.random() < 0.5 else data for offset, data in content.items()}
    for offset, data in new.items():
        vm.write("vda", offset, data)
    second = vm.pull(dedupe=True)
    assert {chunk.path.partition("/")[0] for chunk in stores.chunks_of(vm, second, "vda")} == {first.id, second.id}
    with Image(vm.series, second, "vda") as image:
        assert image.head(8 * MIB) == vm.images[second.id]["vda"]
    stored = stores.chunks_of(vm, second, "vda")[-1].size
    changed = sum(new[offset] != content[offset] for offset in new)
    assert 0 < changed < 8 and changed * CHUNK < stored < changed * CHUNK + 4096


def test_rewrite_of_the_same_data_in_a_real_vm(machine, tmp_path):
    import json

    vm = machine({"vda": 16 * MIB})
    data = os.urandom(3 * MIB)
    vm.write_bytes("vda", 4 * MIB, data)

    def nbdpull(*words):
        done = command.nbdpull(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pull(*options):
        text = nbdpull("pull", vm.name, "-c", vm.bed.uri, "-o", tmp_path / "store", "--json", *options)
        return json.loads(text.splitlines()[-1])["details"]["disks"][0]

    pull()
    vm.write_bytes("vda", 4 * MIB, data[: 2 * MIB])
    vm.write_bytes("vda", 9 * MIB, os.urandom(MIB))
    disk = pull()
    assert (disk["dirty_bytes"], disk["deduped_bytes"]) == (3 * MIB, 2 * MIB)
    assert MIB <= disk["stored_bytes"] < 1.1 * MIB
    nbdpull("verify", tmp_path / "store")
    nbdpull("restore", tmp_path / "store", "-o", tmp_path / "out", "--format", "raw")
    assert (tmp_path / "out" / "vda.raw").read_bytes() == vm.content("vda")
    vm.write_bytes("vda", 4 * MIB, data[: 2 * MIB])
    assert pull("--no-dedupe")["deduped_bytes"] == 0
