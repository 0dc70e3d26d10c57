"""What the writer writes, the reader reads; and so does every other program that implements zstd's specification."""

import io
import itertools
import json
import random
import subprocess
import threading
import time
import tracemalloc
from pathlib import Path

import numpy
import pytest
import stores
import zstandard
from blake3 import blake3
from stores import KIB, MIB, ROLLING, Vm, chain, flipped, records_of, scribble, zstd_frames
from strange import NO_FRAMES, compressed
from threads import at_once

from nbdpull.core import errors, extents
from nbdpull.core.extents import DATA, ZERO
from nbdpull.format import layout, pages, reader, stack, writer
from nbdpull.format.directory import renumbered
from nbdpull.format.manifest import FileEntry
from nbdpull.format.writer import ZERO_BLOCK


def written(vm, point, disk="vda"):
    """Return (FileEntry of a chunk file, Page of the records at its end) for each one that the pull of a point
    wrote."""
    for chunk in stores.chunks_of(vm, point, disk):
        if chunk.path.startswith(point.id):
            yield chunk, reader.chunk_records(vm.store, f"{vm.series.folder}/{chunk.path}", chunk.size, disk)


def read_back(vm, point, disk="vda"):
    """Return (bytes, bool array of those that any record has) of a disk, according to the chunk files of one point."""
    size = point.manifest.disk(disk).size
    content, reported = bytearray(size), numpy.zeros(size, bool)
    for _, page in written(vm, point, disk):
        with reader.FrameReader(vm.store, vm.series.folder, [FileEntry(name, 0, "") for name in page.names]) as frames:
            for record in page.records:
                start, length, skip = (int(record[field]) for field in ("offset", "length", "skip"))
                assert not reported[start : start + length].any()
                reported[start : start + length] = True
                if record["kind"] == DATA:
                    content[start : start + length] = frames.read(record)[skip : skip + length]
    return bytes(content), reported


def one_disk(root, size, *writes, **how):
    """Return a Vm with one full point of vda; writes: (offset, bytes)."""
    vm = Vm(root)
    vm.add_disk("vda", size)
    for offset, data in writes:
        vm.write("vda", offset, data)
    vm.pull(**how)
    return vm


def records_as_kinds(vm, point, disk="vda"):
    found = (record for _, page in written(vm, point, disk) for record in page.records)
    return [(int(r["offset"]), int(r["length"]), int(r["kind"])) for r in found]


def chunk_files(vm, point, disk="vda"):
    return [vm.folder / chunk.path for chunk, _ in written(vm, point, disk)]


# -- the mirror -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_what_is_written_is_read(tmp_path, seed):
    rng = random.Random(seed)
    vm = Vm(tmp_path)
    vm.add_disk("vda", rng.choice([1, 5 * MIB + 1, 3 * MIB, 2 * MIB + 512, 70_000]))
    for number in range(2):
        scribble(vm, "vda", rng, count=rng.randint(1, 12))
        dirty = vm.disks["vda"].dirty | (number == 0)
        point = vm.pull(
            frame_size=rng.choice([64 * KIB, 256 * KIB, MIB]),
            chunk_size=rng.choice([MIB, 4 * KIB, 256 * MIB]),
            batch_size=rng.choice([64 * KIB, MIB, 8 * MIB]),
        )
        content, reported = read_back(vm, point)
        expected = numpy.frombuffer(vm.images[point.id]["vda"], "u1")
        assert (reported == dirty).all()
        assert (numpy.frombuffer(content, "u1") == numpy.where(dirty, expected, 0)).all()
        for chunk, page in written(vm, point):
            assert page.names == [chunk.path] * bool(len(stack.data_of(page.records)))
            assert layout.records_flaw(page.records, vm.disks["vda"].size, 1) is None


def test_size_and_digest_of_every_file_are_recorded(tmp_path):
    vm = chain(tmp_path, **ROLLING)
    for point in vm.points:
        named = [entry for disk in vm.disks for entry in stores.directory_of(vm, point, disk).files]
        entries = [*point.manifest.all_files(), *named]
        assert [vm.series.file_flaw(entry) for entry in entries] == [None] * len(entries)
        on_disk = {f"{point.id}/{path.name}" for path in (vm.folder / point.id).iterdir()}
        assert on_disk - {f"{point.id}/manifest.json"} == {e.path for e in entries if e.path.startswith(point.id)}


def test_many_threads_read_at_once(tmp_path):
    vm = one_disk(tmp_path, 2 * MIB, *[(i * 64 * KIB, bytes([i + 1]) * 64 * KIB) for i in range(32)], chunk_size=300)
    records, wrong = records_of(vm, vm.points[0], "vda"), []
    with frame_reader(vm) as frames:

        def work(seed):
            for i in random.Random(seed).choices(range(32), k=100):
                if frames.read(records[i]) != bytes([i + 1]) * 64 * KIB:
                    wrong.append(i)

        at_once(work, range(6))
    assert wrong == []


def test_an_encoder_serves_many_threads():
    encoder, content = writer.Encoder(1), random.Random(1).randbytes(256 * KIB)
    batch = extents.of([(0, 256 * KIB, DATA)])
    frames = []

    def work():
        frames.extend(encoder.encode(batch, [content]).frames[0] for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [zstandard.decompress(frame) for frame in frames] == [content] * 80


def test_a_disk_with_nothing_dirty(tmp_path):
    vm = one_disk(tmp_path, MIB, (0, b"x" * 100))
    point = vm.pull()
    first, second = (stores.directory_of(vm, each, "vda") for each in vm.points)
    assert second.files == first.files and (second.pages == first.pages).all()
    assert {path.name for path in (vm.folder / point.id).glob("vda*")} == {"vda.directory"}


def test_an_empty_disk_of_one_zero_extent(tmp_path):
    vm = one_disk(tmp_path, 5 * MIB)
    assert records_as_kinds(vm, vm.points[0]) == [(0, 5 * MIB, ZERO)]
    assert read_back(vm, vm.points[0])[1].all()
    assert len(stores.directory_of(vm, vm.points[0], "vda").pages) == 0


# -- zeros ------------------------------------------------------------------------------------------------------------


def test_zero_blocks_inside_data_become_zero_records(tmp_path):
    data = b"a" * ZERO_BLOCK + bytes(2 * ZERO_BLOCK) + b"b" * ZERO_BLOCK + bytes(100)
    vm = one_disk(tmp_path, len(data), (0, data), frame_size=MIB)
    assert records_as_kinds(vm, vm.points[0]) == [
        (0, ZERO_BLOCK, DATA),
        (ZERO_BLOCK, 2 * ZERO_BLOCK, ZERO),
        (3 * ZERO_BLOCK, ZERO_BLOCK, DATA),
        (4 * ZERO_BLOCK, 100, ZERO),
    ]
    assert read_back(vm, vm.points[0])[0] == data


@pytest.mark.parametrize("at", [0, 1, 511, 4095, 4096, 30_000, ZERO_BLOCK - 1])
def test_one_byte_makes_a_block_data(tmp_path, at):
    data = bytes(at) + b"\x01" + bytes(ZERO_BLOCK - at - 1)
    vm = one_disk(tmp_path, 2 * ZERO_BLOCK, (0, data + bytes(ZERO_BLOCK)), frame_size=MIB)
    assert records_as_kinds(vm, vm.points[0]) == [(0, ZERO_BLOCK, DATA), (ZERO_BLOCK, ZERO_BLOCK, ZERO)]
    assert read_back(vm, vm.points[0])[0] == data + bytes(ZERO_BLOCK)


@pytest.mark.parametrize("seed", range(30))
def test_zero_blocks_are_found_as_by_a_naive_search(seed):
    rng = random.Random(seed)
    blocks = [rng.choice([bytes(ZERO_BLOCK), rng.randbytes(ZERO_BLOCK)]) for _ in range(rng.randint(0, 6))]
    data = b"".join(blocks) + rng.choice([b"", bytes(1000), rng.randbytes(1000)])
    if not data:
        return
    encoded = writer.Encoder(1).encode(extents.of([(5 * MIB, len(data), DATA)]), [data])
    model = []
    for start in range(0, len(data), ZERO_BLOCK):
        block = data[start : start + ZERO_BLOCK]
        kind = DATA if any(block) else ZERO
        if model and model[-1][2] == kind:
            model[-1] = (model[-1][0], model[-1][1] + len(block), kind)
        else:
            model.append((5 * MIB + start, len(block), kind))
    assert [tuple(map(int, r)) for r in encoded.records[["offset", "length", "kind"]]] == model
    assert encoded.read_bytes == len(data)


# -- chunk files ------------------------------------------------------------------------------------------------------


def test_chunk_files_roll_over(tmp_path):
    content = random.Random(1).randbytes(1 * MIB)
    vm = one_disk(tmp_path, MIB, (0, content), chunk_size=300 * KIB, batch_size=64 * KIB)
    point = vm.points[0]
    paths = chunk_files(vm, point)
    assert [path.name for path in paths] == [f"vda.{i:04d}.zst" for i in range(4)]
    limit = 300 * KIB + 64 * KIB + 4 * KIB  # the batch that fills it, and what it ends in
    assert all(300 * KIB <= path.stat().st_size < limit for path in paths[:-1])
    assert sorted(set(records_of(vm, point, "vda")["chunk"].tolist())) == [0, 1, 2, 3]
    assert read_back(vm, point)[0] == content


def test_a_chunk_file_holds_a_bounded_number_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_CHUNK_RECORDS", 10)
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    for at in range(0, MIB, 16 * KIB):
        vm.write("vda", at, b"x" * 512)
    point = vm.pull(batch_size=1024)
    assert len(chunk_files(vm, point)) == 11
    assert read_back(vm, point)[0] == vm.images[point.id]["vda"]


def test_a_chunk_file_is_laid_out_as_specified(tmp_path):
    vm = chain(tmp_path, **ROLLING)
    for point in vm.points:
        for number, (chunk, page) in enumerate(written(vm, point)):
            data = (vm.folder / chunk.path).read_bytes()
            frames = zstd_frames(data)
            magics = [magic for magic, _, _ in frames]
            assert (magics[0], *magics[-2:]) == (0x184D2A50, 0x184D2A51, 0x184D2A5E)
            assert set(magics[1:-2]) <= {0xFD2FB528}
            header = json.loads(data[8 : frames[0][2]])
            assert (header["point"], header["disk"], header["chunk"]) == (point.id, "vda", number)
            assert header["size"] == point.manifest.disk("vda").size

            mine = page.records[page.records["kind"] == DATA]
            assert page.names == [chunk.path] * bool(len(mine)) and not mine["chunk"].any()
            assert [(start, stop) for _, start, stop in frames[1:-2]] == [
                (int(r["position"]), int(r["position"] + r["stored"])) for r in mine
            ]
            for record in mine:
                start = int(record["position"])
                frame = data[start : start + int(record["stored"])]
                parameters = zstandard.get_frame_parameters(frame)
                assert parameters.has_checksum and parameters.content_size == int(record["raw"])
                assert blake3(zstandard.decompress(frame)).digest() == record["digest"].tobytes()


def test_chunk_files_contain_the_records_of_the_index(tmp_path):
    """A point without a point below it can be rebuilt from them."""
    vm = chain(tmp_path, points=1, **ROLLING)
    point = vm.points[0]
    directory = stores.directory_of(vm, point, "vda")
    parts = [renumbered(page, directory.number) for _, page in written(vm, point)]
    assert len(parts) > 1
    assert stack.data_of(numpy.concatenate(parts)).tobytes() == directory.window(0).flat().tobytes()


# -- other programs ---------------------------------------------------------------------------------------------------


def stored_data(vm, point):
    """Return the bytes of the data that the pull of a point stored, one after another."""
    image = vm.images[point.id]["vda"]
    return b"".join(image[o : o + n] for o, n, kind in records_as_kinds(vm, point) if kind == DATA)


@pytest.mark.parametrize("how", [{}, ROLLING], ids=["one", "several"])
def test_zstd_decompresses_chunk_files(tmp_path, how):
    vm = chain(tmp_path, **how)
    for point in vm.points:
        done = subprocess.run(["zstd", "-dcq", *chunk_files(vm, point)], check=True, capture_output=True)
        assert done.stdout == stored_data(vm, point)
        assert len(done.stdout) > 100 * KIB


def test_zstd_decompresses_an_index_and_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    vm = chain(tmp_path, size=5 * MIB)
    point = vm.points[0]
    found, path = stores.directory_of(vm, point, "vda"), stores.index_of(vm, point, "vda")
    index = subprocess.run(["zstd", "-dcq"], input=path.read_bytes(), check=True, capture_output=True).stdout
    sizes = found.pages["raw"].tolist()
    assert len(sizes) > 1 and sum(sizes) == len(index)
    for ref, stop in zip(found.pages, itertools.accumulate(sizes)):
        page = pages.decode_page(index[stop - int(ref["raw"]) : stop], "vda")
        assert renumbered(page, found.number).tobytes() == found.records(ref).tobytes()
    path = vm.folder / point.disk("vda").directory.path
    raw = subprocess.run(["zstd", "-dcq"], input=path.read_bytes(), check=True, capture_output=True).stdout
    assert pages.decode_directory(raw, "vda", found.size).files == found.files


def test_a_foreign_reader_seeks_in_a_chunk_file(tmp_path):
    """pyzstd reads the seek table of the zstd seekable format with none of our code."""
    import pyzstd

    vm = one_disk(tmp_path, 3 * MIB, *[(i * 100_000, b"%c" % (65 + i) * 50_000) for i in range(25)])
    (path,) = chunk_files(vm, vm.points[0])
    expected = stored_data(vm, vm.points[0])
    assert pyzstd.SeekableZstdFile.is_seekable_format_file(str(path))
    rng = random.Random(3)
    with pyzstd.SeekableZstdFile(path, "r") as file:
        assert file.seek(0, io.SEEK_END) == len(expected)
        for _ in range(50):
            at = rng.randrange(len(expected))
            file.seek(at)
            assert file.read(300) == expected[at : at + 300]


def test_the_seek_table_lists_every_frame(tmp_path):
    vm = chain(tmp_path, **ROLLING)
    for path in chunk_files(vm, vm.points[0]):
        data = path.read_bytes()
        *frames, (_, table, _) = zstd_frames(data)
        raw = [
            len(zstandard.decompress(data[start:stop])) if magic == 0xFD2FB528 else 0 for magic, start, stop in frames
        ]
        assert layout.parse_seek_table(data) == [(stop - start, size) for (_, start, stop), size in zip(frames, raw)]
        assert layout.parse_seek_table(data[table:]) == layout.parse_seek_table(data)


def test_sha256sum_checks_a_point(tmp_path):
    vm = chain(tmp_path, **ROLLING)
    for point in vm.points:
        folder = vm.folder / point.id
        done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0
        checked = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
        assert checked == {path.name for path in folder.iterdir()} - {"manifest.json", "SHA256SUMS"}
    victim = chunk_files(vm, vm.points[0])[0]
    victim.write_bytes(flipped(victim.read_bytes(), 100))
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=victim.parent, capture_output=True, text=True)
    assert done.returncode and f"{victim.name}: FAILED" in done.stdout


# -- what the reader refuses ------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    return one_disk(tmp_path, 200_000, (0, random.Random(5).randbytes(130_000)))


def frame_reader(vm):
    return reader.FrameReader(vm.store, vm.series.folder, stores.directory_of(vm, vm.points[0], "vda").files)


@pytest.mark.parametrize("field, change", [("digest", None), ("raw", 1), ("raw", -1), ("stored", -1), ("position", 1)])
def test_a_frame_that_is_not_the_recorded_one(small, field, change):
    record = records_of(small, small.points[0], "vda")[:1].copy()[0]
    record[field] = numpy.void(bytes(32)) if change is None else int(record[field]) + change
    with frame_reader(small) as frames, pytest.raises(errors.Damaged, match=r"vda.0000.zst: .*\(bytes 0 to 65536"):
        frames.read(record)


@pytest.mark.parametrize("position", [1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_frame_behind_the_end(small, position):
    record = records_of(small, small.points[0], "vda")[:1].copy()[0]
    record["position"] = position
    with frame_reader(small) as frames, pytest.raises(errors.Damaged, match="cut short"):
        frames.read(record)


def test_the_size_that_a_damaged_frame_claims_is_not_allocated(small):
    """A flipped bit in a frame's header may claim terabytes."""
    record = records_of(small, small.points[0], "vda")[:1].copy()[0]
    (path,) = chunk_files(small, small.points[0])
    data, start = path.read_bytes(), int(record["position"])
    claims = b"\x28\xb5\x2f\xfd" + b"\xe0" + (1 << 44).to_bytes(8, "little")  # single segment, 8 bytes of size
    path.write_bytes(data[:start] + claims + data[start + len(claims) :])
    with frame_reader(small) as frames, pytest.raises(errors.Damaged, match="not what was stored"):
        frames.read(record)


def test_a_lost_chunk_file(small):
    record = records_of(small, small.points[0], "vda")[0]
    chunk_files(small, small.points[0])[0].unlink()
    with frame_reader(small) as frames, pytest.raises(errors.Damaged, match="vda.0000.zst: the file is missing"):
        frames.read(record)


@pytest.mark.parametrize("how", NO_FRAMES)
def test_a_frame_is_one_whole_frame(small, how):
    """Even if its digest is that of what it decompresses to."""
    path, data = chunk_files(small, small.points[0])[0], random.Random(1).randbytes(1000) * 3
    with frame_reader(small) as frames:
        for frame, good in ((compressed(data), True), (NO_FRAMES[how](data), False)):
            record = records_of(small, small.points[0], "vda")[:1].copy()[0]
            path.write_bytes(frame + b"what follows")
            record["position"], record["stored"], record["raw"] = 0, len(frame), len(data)
            record["digest"] = numpy.void(blake3(data).digest())
            frames._files.close()
            if good:
                assert frames.read(record) == data
                continue
            with pytest.raises(errors.Damaged, match="not what was stored"):
                frames.read(record)


def ending(vm, payload):
    """Replace the records at the end of a point's only chunk file; return what a reader makes of that."""
    frame = layout.skippable(layout.RECORDS_MAGIC, payload)
    path = stores.chunks_of(vm, vm.points[0], "vda")[0].path
    entry = stores.replaced(vm, path, frame + layout.seek_table([(len(frame), 0)]))
    return reader.chunk_records(vm.store, f"{vm.series.folder}/{path}", entry.size, "vda")


def test_records_of_a_chunk_file_that_are_refused(small):
    page = stores.page_of(small, small.points[0], "vda")
    raw = pages.encode_page(page)
    found = ending(small, compressed(raw))
    assert found.names == page.names and found.records.tobytes() == page.records.tobytes()
    strange = pages.encode_page(pages.Page(["../../etc/shadow"], page.records))
    others = [compressed(raw + b"x"), compressed(raw[:7]), compressed(strange), raw]
    for payload in (b"x", *others, *(make(raw) for make in NO_FRAMES.values())):
        with pytest.raises(errors.Damaged, match="the records of the chunk file cannot be read"):
            ending(small, payload)


@pytest.mark.parametrize("count", [0, 1, 100, (1 << 32) - 1])
def test_what_the_footer_of_a_chunk_file_claims_is_not_read_unseen(small, count):
    """An attacker can make a sparse file of any size."""
    path = chunk_files(small, small.points[0])[0]
    footer = layout._SEEK_FOOTER.pack(count, 0, layout.SEEKABLE_MAGIC)
    with open(path, "r+b") as file:
        file.truncate((1 << 40) - len(footer))
        file.seek(0, 2)
        file.write(footer)
    tracemalloc.start()
    with pytest.raises(errors.Damaged, match="the records of the chunk file cannot be read"):
        reader.chunk_records(small.store, f"vm1/{small.points[0].id}/vda.0000.zst", 1 << 40, "vda")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * MIB


# -- when writing fails -----------------------------------------------------------------------------------------------


def test_a_failed_fsync_of_a_chunk_file_ends_the_run(tmp_path, monkeypatch):
    from nbdpull.storage.directory_file import DirectoryWriter

    real = DirectoryWriter.seal

    def seal(file):
        if file.path.endswith("vda.0001.zst"):
            raise errors.OutputError("cannot write: Input/output error")
        real(file)

    monkeypatch.setattr(DirectoryWriter, "seal", seal)
    vm = Vm(tmp_path)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, random.Random(1).randbytes(MIB))
    with pytest.raises(errors.OutputError, match="Input/output"):
        vm.pull(chunk_size=128 * KIB, batch_size=64 * KIB)
    assert vm.series.points() == []
    assert list(vm.folder.iterdir()) == []


# -- what cannot be compressed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 12, 13, 19])
def test_random_bytes_are_stored_as_they_are_and_quickly(level):
    """At level 19, zstd itself took 120 ms for each such MiB, and stored it raw nevertheless."""
    data = [random.Random(seed).randbytes(MIB) for seed in range(4)]
    batch = extents.of([(number * MIB, MIB, DATA) for number in range(4)])
    encoder = writer.Encoder(level)
    began = time.thread_time()
    frames = encoder.encode(batch, data).frames
    assert time.thread_time() - began < 0.2
    for frame, raw in zip(frames, data):
        assert len(frame) < MIB + 100 and zstandard.ZstdDecompressor().decompress(frame) == raw


def test_a_high_level_still_compresses_what_can_be():
    text = Path(__file__).read_bytes()
    batch = extents.of([(0, len(text), DATA)])
    sizes = [len(writer.Encoder(level).encode(batch, [text]).frames[0]) for level in (1, 19)]
    assert sizes[1] < sizes[0]
