"""Data that the parent holds already: referred to, never stored again, and never taken for what it is not."""

import os
import random

import command
import pytest
from stores import MIB, Vm

from nbdpull.core import extents
from nbdpull.format import layout, reader, writer
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
    known = known_frames.of_point(vm.series, point, "vda")
    batch = extents.of([(offset, len(part), extents.DATA) for offset, part in data])
    return known, writer.Encoder(1, known).encode(batch, [part for _, part in data])


def test_same_bytes_at_the_same_place_are_known(vm):
    data = os.urandom(CHUNK)
    vm.write("vda", 2 * MIB, data)
    _, encoded = offered(vm, vm.pull(), [(2 * MIB, data)])
    assert len(encoded.old) == 1 and not encoded.frames


@pytest.mark.parametrize(
    "change",
    [lambda o, d: (o + MIB, d), lambda o, d: (o, d[:-1] + bytes([d[-1] ^ 1])), lambda o, d: (o, d[: CHUNK // 2])],
)
def test_other_place_byte_or_length_is_new(vm, change):
    data = os.urandom(CHUNK)
    vm.write("vda", 2 * MIB, data)
    _, encoded = offered(vm, vm.pull(), [change(2 * MIB, data)])
    assert not len(encoded.old) and len(encoded.frames) == 1


def test_what_a_later_point_hid_is_not_known(vm):
    first, second = os.urandom(CHUNK), os.urandom(CHUNK)
    vm.write("vda", 0, first)
    vm.pull()
    vm.write("vda", 0, second)
    vm.write("vda", MIB, first[:4096])
    point = vm.pull()
    _, encoded = offered(vm, point, [(0, first)])
    assert not len(encoded.old)
    _, encoded = offered(vm, point, [(0, second)])
    assert len(encoded.old) == 1


def test_nothing_known_where_the_list_would_be_too_large(vm, monkeypatch):
    monkeypatch.setattr(known_frames, "BUDGET", 79)
    vm.write("vda", 0, os.urandom(CHUNK))
    assert known_frames.of_point(vm.series, vm.pull(), "vda") is None


def test_references_and_new_frames_mixed_are_read_back(vm, tmp_path):
    """Chunk files of this point and of older ones, in an order that only the manifest's list tells."""
    rng = random.Random(5)
    content = {offset: rng.randbytes(CHUNK) for offset in range(0, 8 * MIB, MIB)}
    for offset, data in content.items():
        vm.write("vda", offset, data)
    point = vm.pull()
    new = {offset: rng.randbytes(CHUNK) if rng.random() < 0.5 else data for offset, data in content.items()}
    known = known_frames.of_point(vm.series, point, "vda")
    encoder, folder = writer.Encoder(1, known), layout.new_point_id()
    vm.store.make_folder(f"{vm.series.folder}/{folder}")
    with writer.DiskWriter(vm.store, vm.series.folder, folder, "vda", 8 * MIB, MIB, known.chunks) as output:
        for offset, data in new.items():
            output.add(encoder.encode(extents.of([(offset, CHUNK, extents.DATA)]), [data]))
        index, chunks = output.close()
    entry = type(point.manifest.disk("vda"))(**{**vars(point.manifest.disk("vda")), "index": index, "chunks": chunks})
    assert {chunk.path.partition("/")[0] for chunk in chunks} == {point.id, folder}
    with reader.FrameReader(vm.store, vm.series.folder, entry) as frames:
        read = {
            int(record["offset"]): frames.read(record)
            for batch in reader.records(vm.store, vm.series.folder, entry)
            for record in batch
        }
    assert read == new


def test_image_tells_each_chunk_file_once(vm):
    vm.write("vda", 0, os.urandom(CHUNK))
    vm.pull()
    vm.write("vda", MIB, os.urandom(CHUNK))
    with Image(vm.series, vm.pull(), "vda") as image:
        paths = [chunk.path for chunk in image.chunks]
        assert len(paths) == len(set(paths)) == 2
        assert [len(numbers) for numbers in image.chunk_numbers] == [1, 1]


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
