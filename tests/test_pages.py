"""Pages and directories as bytes: they are read as they were written, and what a reader must refuse is refused by
name."""

import random
import struct
import tracemalloc

import numpy
import pytest
from stores import MIB
from strange import NO_FRAMES, compressed

from nbdpull.core import extents
from nbdpull.format import layout, pages
from nbdpull.format.manifest import FileEntry
from nbdpull.format.pages import Directory, Page

POINT, OLDER = "20261122T194500Z-7f3a9c04", "20261121T194500Z-00112233"
CHUNKS = [f"{POINT}/vda.0000.zst", f"{OLDER}/vda.0003.zst", f"{OLDER}/vda.12345.zst"]
INDEXES = [f"{OLDER}/vda.index", f"{POINT}/vda.index"]
GIB = 1 << 30


def some_records(count=3, start=0):
    records = numpy.zeros(count, layout.RECORD)
    records["offset"], records["length"] = start + numpy.arange(count, dtype="u8") * 4096, 512
    records["raw"], records["stored"], records["position"] = 512, 100, numpy.arange(count) * 100
    return records


def some_directory():
    names = [CHUNKS[0], INDEXES[0], CHUNKS[1], INDEXES[1]]
    entries = [FileEntry(name, 1000 * (n + 1), f"{n:02x}" * 32) for n, name in enumerate(names)]
    refs = numpy.zeros(3, pages.PAGE)
    refs["offset"], refs["position"], refs["file"] = [0, 0, 2 * GIB], [0, 500, 1000], [1, 3, 1]
    refs["stored"], refs["raw"], refs["records"] = 1000, 88, 1
    refs["digest"] = numpy.array([bytes([n] * 32) for n in (7, 8, 9)], "V32")
    return Directory(entries, numpy.array([5, 1000, 0, 1 << 40], "u8"), refs)


DISK = 2 * GIB + 1


# -- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[], CHUNKS[:1], CHUNKS])
def test_a_page_survives_a_round_trip(names):
    page = Page(names, some_records())
    data = pages.encode_page(page)
    assert len(data) == 8 + sum(len(name) + 1 for name in names) + 240
    found = pages.decode_page(data, "vda")
    assert found.names == names and found.records.tobytes() == page.records.tobytes()


def of(names, count=None, size=None, records=b""):
    """Return the bytes of a page with such names, given as bytes."""
    return struct.pack("<II", names.count(b"\n") if count is None else count, len(names) if size is None else size) + (
        names + records
    )


ONE = CHUNKS[0].encode() + b"\n"
NO_PAGES = {
    "nothing": b"",
    "cut in its head": b"\0" * 7,
    "one name less than it says": of(ONE, count=2),
    "one more": of(ONE, count=0),
    "a name without an end": of(ONE[:-1], count=1),
    "more names than bytes": of(ONE, size=len(ONE) + 1),
    "fewer bytes than names": of(ONE + ONE.replace(b"0000", b"0001"), count=1, size=len(ONE) - 1),
    "a name twice": of(ONE * 2),
    "no name": of(b"\n"),
    "a name of another disk": of(ONE.replace(b"vda", b"vdb")),
    "a name of another spelling": of(ONE.replace(b"vda", b"VDA")),
    "an index": of(INDEXES[0].encode() + b"\n"),
    "a path that leads out": of(b"../" + ONE),
    "no point": of(b"x/vda.0000.zst\n"),
    "few digits": of(ONE.replace(b"0000", b"000")),
    "no ASCII": of(ONE.replace(b"0000", "000\u0660".encode())),
    "no UTF-8": of(ONE.replace(b"vda", b"\xff\xff\xff")),
    "a carriage return": of(ONE.replace(b"\n", b"\r\n")),
    "names without end": of(ONE, size=(1 << 32) - 1),
    "half a record": of(ONE, records=b"\0" * 79),
}


@pytest.mark.parametrize("what", NO_PAGES)
def test_data_that_is_not_a_page(what):
    assert len(pages.decode_page(of(ONE), "vda").records) == 0
    with pytest.raises(ValueError):
        pages.decode_page(NO_PAGES[what], "vda")


def with_(records, row=1, **values):
    records = records.copy()
    for name, value in values.items():
        records[name][row] = value
    return records


@pytest.mark.parametrize(
    "records, message",
    [
        (some_records(start=GIB), None),
        (some_records(start=GIB)[:0], None),
        (some_records(start=2 * GIB - 3 * 4096), None),
        (some_records(start=GIB - 4096), "a record outside of its window"),
        (some_records(start=2 * GIB - 2 * 4096), "past the end"),
        (some_records(start=GIB)[::-1], "out of order"),
        (with_(some_records(start=GIB), length=4097, raw=5000), "overlap"),
        (with_(some_records(start=GIB), length=0), "an empty range"),
        (with_(some_records(start=GIB), chunk=1), "without a name"),
        (with_(some_records(start=GIB), flags=1), "flags"),
        (with_(some_records(start=GIB), kind=1), "a zero record with a frame"),
        (with_(some_records(start=GIB), row=2, offset=(1 << 64) - 1), "past the end"),
    ],
)
def test_flaws_of_a_page(records, message):
    flaw = pages.page_flaw(Page(CHUNKS[:1], records), GIB, 2 * GIB)
    assert flaw is None if message is None else message in flaw


def test_records_of_a_page_are_not_more_nor_denser_than_they_may_be(monkeypatch):
    def zeros(count, step=2):
        ranges = extents.of([(n * step, 1, extents.ZERO) for n in range(count)])
        return pages.page_flaw(Page([], layout.zero_records(ranges)), 0, GIB)

    monkeypatch.setattr(layout, "MAX_BLOCK_RECORDS", 100)
    assert zeros(100) is None and zeros(101) == "more than 100 records in 1048576 bytes"
    assert zeros(200, MIB // 100 + 1) is None
    monkeypatch.setattr(layout, "MAX_PAGE_RECORDS", 50)
    assert zeros(50) is None and zeros(51) == "more than 50 records in 1073741824 bytes"


# -- directories ------------------------------------------------------------------------------------------------------


def test_a_directory_survives_a_round_trip():
    directory = some_directory()
    data = pages.encode_directory(directory)
    assert len(data) == 16 + 4 * 48 + 3 * 64 + sum(len(entry.path) + 1 for entry in directory.files)
    found = pages.decode_directory(data, "vda", DISK)
    assert found.files == directory.files and found.live.tolist() == directory.live.tolist()
    assert found.pages.tobytes() == directory.pages.tobytes()


def test_a_directory_of_nothing():
    nothing = Directory([], numpy.zeros(0, "u8"), numpy.zeros(0, pages.PAGE))
    found = pages.decode_directory(pages.encode_directory(nothing), "vda", 0)
    assert found.files == [] and len(found.pages) == len(found.live) == 0


@pytest.mark.parametrize("row, values, message", [
    (2, {"offset": 2 * GIB - 1}, "a page outside any window"),
    (2, {"offset": 3 * GIB}, "a page outside any window"),
    (2, {"offset": 1 << 63}, "a page outside any window"),
    (0, {"offset": GIB}, "out of order"),
    (0, {"file": 4}, "in a file that is not an index"),
    (0, {"file": 0}, "in a file that is not an index"),
    (0, {"file": (1 << 32) - 1}, "in a file that is not an index"),
    (0, {"stored": 0}, "of impossible size"),
    (0, {"records": 0}, "of impossible size"),
    (0, {"records": (1 << 21) + 1}, "of impossible size"),
    (0, {"stored": (1 << 28) + 1}, "of impossible size"),
    (0, {"raw": (1 << 28) + 1}, "of impossible size"),
    (0, {"stored": 2001}, "past the end of its file"),
    (1, {"position": 3001}, "past the end of its file"),
    (1, {"position": 4001}, "past the end of its file"),
    (1, {"position": (1 << 64) - 1}, "past the end of its file"),
    (1, {"position": (1 << 64) - 500}, "past the end of its file"),
])  # fmt: skip
def test_pages_that_a_directory_must_not_have(row, values, message):
    directory = some_directory()
    for name, value in values.items():
        directory.pages[name][row] = value
    with pytest.raises(ValueError, match=message):
        pages.decode_directory(pages.encode_directory(directory), "vda", DISK)


def test_pages_end_where_their_file_does():
    directory = some_directory()
    directory.pages["position"] = [1000, 3000, 1000]
    pages.decode_directory(pages.encode_directory(directory), "vda", DISK)


def test_the_seventeenth_page_of_a_window():
    directory = some_directory()
    for count in (16, 17):
        many = Directory(directory.files, directory.live, numpy.repeat(directory.pages[:1], count))
        if count == 16:
            assert len(pages.decode_directory(pages.encode_directory(many), "vda", DISK).pages) == 16
    with pytest.raises(ValueError, match="more than 16 pages of a window"):
        pages.decode_directory(pages.encode_directory(many), "vda", DISK)


@pytest.mark.parametrize("change", [
    lambda data: data[:15], lambda data: data[:-1], lambda data: data + b"x", lambda data: b"\xff" * 16,
    lambda data: b"\5" + data[1:], lambda data: data[:4] + b"\4" + data[5:], lambda data: data[:8] + b"\0" + data[9:],
])  # fmt: skip
def test_a_directory_of_another_size_than_it_says(change):
    with pytest.raises(ValueError, match="cut short|does not have the size"):
        pages.decode_directory(change(pages.encode_directory(some_directory())), "vda", DISK)


@pytest.mark.parametrize("name", [CHUNKS[0], f"{POINT}/vdb.index", f"{POINT}/vda.directory", f"{POINT}/manifest.json",
                                  "../vda.0000.zst", f"{POINT}/../x", "", f"{POINT}/vda.0000.zst\n{POINT}/vda.0001.zst",
                                  f"{POINT}/vda.index\r"])  # fmt: skip
def test_names_that_a_directory_must_not_have(name):
    directory = some_directory()
    directory.files[2] = FileEntry(name, 3000, "02" * 32)
    with pytest.raises(ValueError, match="names a path that is not a file of the disk|not one for each file"):
        pages.decode_directory(pages.encode_directory(directory), "vda", DISK)


# -- frames -----------------------------------------------------------------------------------------------------------


def test_a_frame_survives_a_round_trip():
    data = random.Random(1).randbytes(10_000) + bytes(1 << 20)
    assert pages.decompressed(pages.compressed(data), len(data)) == data
    with pytest.raises(ValueError, match="sensible size"):
        pages.decompressed(pages.compressed(data), len(data) - 1)


@pytest.mark.parametrize("how", NO_FRAMES)
def test_data_that_is_not_a_complete_frame(how):
    data = random.Random(1).randbytes(1000) * 3
    assert pages.decompressed(compressed(data), 1 << 20) == data
    with pytest.raises(ValueError):
        pages.decompressed(NO_FRAMES[how](data), 1 << 20)


def test_a_bomb_takes_little_memory():
    """A few KiB that claim to hold 1 KiB, and hold 128 MiB."""
    raw = b"\0" * (1 << 16)
    bomb = compressed(raw * 2048)
    assert len(bomb) < 64 << 10 and bomb[4] >> 6 == 2
    smaller = bomb[:5] + (1000).to_bytes(4, "little") + bomb[9:]
    tracemalloc.start()
    for data, limit in ((bomb, 1 << 26), (smaller, 1000)):
        with pytest.raises(ValueError):
            pages.decompressed(data, limit)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MIB


@pytest.mark.parametrize("seed", range(5))
def test_live_records(seed):
    rng, records = random.Random(seed), some_records(100)
    records["kind"] = [rng.choice([extents.DATA, extents.DATA, extents.ZERO]) for _ in range(100)]
    records["chunk"] = [rng.choice([0, 3, 7]) for _ in range(100)]
    records["position"] = [rng.randrange(20) for _ in range(100)]
    records["stored"] = records["position"] + 1  # of one frame always the same
    frames = {(int(r["chunk"]), int(r["position"])) for r in records if r["kind"] == extents.DATA}
    expected = {}
    for chunk, position in frames:
        expected[chunk] = expected.get(chunk, 0) + position + 1
    assert pages.total_live(records) == expected
    assert pages.total_live(records[:0]) == {}
