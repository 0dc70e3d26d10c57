"""The directory of a disk: each page is the stored one, what it shows is sound, and few windows are in memory."""

import random
from dataclasses import replace

import numpy
import pytest
import stores
from stores import KIB, MIB, Vm, directory_of, page_of, relaid
from strange import FILES, NO_FRAMES, compressed
from threads import at_once

from nbdpull.core import errors, extents
from nbdpull.format import directory, layout, pages
from nbdpull.format.directory import NOWHERE, renumbered, same_pages
from nbdpull.format.pages import Page
from nbdpull.repository.image import Image

SIZE = 200_000


@pytest.fixture
def vm(tmp_path):
    """A point with one page of a few records."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", SIZE)
    vm.write("vda", 0, random.Random(5).randbytes(130_000))
    vm.pull()
    return vm


def point_of(vm):
    return vm.series.point_in(vm.points[0].id)


def window_of(vm, start=0):
    return directory_of(vm, point_of(vm), "vda").window(start)


def prove(vm):
    directory_of(vm, point_of(vm), "vda").prove(0)


def content(vm):
    with Image(vm.series, point_of(vm), "vda") as opened:
        return opened.head(SIZE)


def test_contents_of_a_directory(vm):
    found = directory_of(vm, vm.points[0], "vda")
    [chunk], [index] = found.chunks, found.indexes
    assert {chunk.path, index.path} == {entry.path for entry in found.files}
    assert [found.number(entry.path) for entry in found.files] == [0, 1] and found.number("x") == NOWHERE
    assert found.starts() == [0] and len(found.refs(0)) == 1 and not len(found.refs(layout.WINDOW))
    window = found.window(0)
    assert (window.start, window.stop) == (0, SIZE)
    assert extents.total(window.flat()) == 130_000


# -- the file ---------------------------------------------------------------------------------------------------------


def test_it_is_the_file_that_the_manifest_names(vm):
    path = vm.folder / vm.points[0].disk("vda").directory.path
    data = path.read_bytes()
    other = pages.compressed(pages.decompressed(data, 1 << 20) + b"x")
    for changed in (stores.flipped(data, 20), data[:-1], data + b"x", b"", other):
        with stores.damaged(path, changed), pytest.raises(errors.Damaged, match=f"{path}: .*not the one that the man"):
            directory_of(vm, vm.points[0], "vda")
    with stores.damaged(path, None), pytest.raises(errors.Damaged, match=f"{path}: the file is missing"):
        directory_of(vm, vm.points[0], "vda")


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "folder"])
def test_it_is_a_file(vm, kind):
    path = vm.folder / vm.points[0].disk("vda").directory.path
    path.unlink()
    FILES[kind](path)
    with pytest.raises(errors.Damaged, match=str(path)):
        directory_of(vm, vm.points[0], "vda")


def redirected(vm, data):
    """Let the manifest name other bytes as the directory."""
    point = point_of(vm)
    entry = point.disk("vda")
    written = stores.replaced(vm, entry.directory.path, data)
    stores.resealed(vm, point, disks=[replace(entry, directory=written)])


@pytest.mark.parametrize("how", NO_FRAMES)
def test_it_is_one_whole_frame(vm, how):
    raw = pages.decompressed((vm.folder / vm.points[0].disk("vda").directory.path).read_bytes(), 1 << 20)
    redirected(vm, compressed(raw))
    assert content(vm) == vm.images[vm.points[0].id]["vda"]
    redirected(vm, NO_FRAMES[how](raw))
    with pytest.raises(errors.Damaged, match="vda.directory: not the directory of a disk"):
        directory_of(vm, point_of(vm), "vda")


def test_entries_that_a_directory_must_not_have(vm):
    raw = pages.decompressed((vm.folder / vm.points[0].disk("vda").directory.path).read_bytes(), 1 << 20)
    redirected(vm, compressed(raw.replace(b"vda.index", b"vdb.index")))
    with pytest.raises(errors.Damaged, match="vda.directory: not .*a path that is not a file of the disk"):
        directory_of(vm, point_of(vm), "vda")


# -- its pages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", NO_FRAMES)
def test_a_page_is_one_whole_frame(vm, how):
    point, page = vm.points[0], page_of(vm, vm.points[0], "vda")
    relaid(vm, point, "vda", [page], frame=compressed)
    assert content(vm) == vm.images[point.id]["vda"]
    relaid(vm, point, "vda", [page], frame=lambda raw: NO_FRAMES[how](raw) or b"x")
    with pytest.raises(errors.Damaged, match="vda.index: a page of the index is damaged"):
        window_of(vm)


@pytest.mark.parametrize("field, value", [("digest", None), ("raw", 1), ("raw", -1), ("records", 1), ("records", -1),
                                          ("position", 1), ("stored", -1)])  # fmt: skip
def test_a_page_is_what_was_stored(vm, field, value):
    def changed(data):
        found = pages.decode_directory(data, "vda", SIZE)
        refs = found.pages.copy()
        refs[field] = numpy.void(bytes(32)) if value is None else refs[field].astype("i8") + value
        refs["stored"] -= (field == "position") * 2
        return pages.encode_directory(pages.Directory(found.files, found.live, refs))

    relaid(vm, vm.points[0], "vda", [page_of(vm, vm.points[0], "vda")], directory=changed)
    with pytest.raises(errors.Damaged, match="vda.index: a page of the index is damaged"):
        window_of(vm)


@pytest.mark.parametrize("expected, change", [
    ("overlap or are out of order", lambda r: r[::-1]),
    ("overlap or are out of order", lambda r: numpy.concatenate([r, r[-1:]])),
    ("an empty range", lambda r: numpy.concatenate([r, numpy.zeros(1, layout.RECORD)])),
    ("past the end of 200000 bytes", lambda r: layout.zero_records(extents.of([(0, SIZE + 1, extents.ZERO)]))),
])  # fmt: skip
def test_records_that_are_refused(vm, expected, change):
    names, records = page_of(vm, vm.points[0], "vda")
    relaid(vm, vm.points[0], "vda", [Page(names, change(records))])
    with pytest.raises(errors.Damaged, match=f"vda.index: the index holds .*{expected}"):
        window_of(vm)


def test_records_of_another_window(vm, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", 64 * KIB)
    names, records = page_of(vm, vm.points[0], "vda")
    relaid(vm, vm.points[0], "vda", [Page(names, records[:1])], starts=[64 * KIB])
    with pytest.raises(errors.Damaged, match="a record outside of its window"):
        window_of(vm, 64 * KIB)
    relaid(vm, vm.points[0], "vda", [Page(names, records[:2])])
    with pytest.raises(errors.Damaged, match="past the end"):
        window_of(vm, 0)


def test_a_file_that_it_does_not_name(vm):
    """If nothing of it is visible, the file may be gone; if a byte of it is visible, the disk is damaged."""
    names, records = page_of(vm, vm.points[0], "vda")
    gone = Page(["20200101T000000Z-aaaaaa/vda.0000.zst"], records[:1])
    relaid(vm, vm.points[0], "vda", [gone, Page(names, records)])
    assert content(vm) == vm.images[vm.points[0].id]["vda"]
    for hidden in (records[1:], numpy.empty(0, layout.RECORD)):
        layers = [gone, Page(names, hidden)] if len(hidden) else [gone]
        relaid(vm, vm.points[0], "vda", layers)
        for look in (window_of, prove):
            with pytest.raises(errors.Damaged, match="disk vda lacks a chunk file that its pages point into"):
                look(vm)
    shorter = records.copy()
    shorter["length"][0] -= 1  # one byte of it shows
    relaid(vm, vm.points[0], "vda", [gone, Page(names, shorter)])
    for look in (window_of, prove):
        with pytest.raises(errors.Damaged, match="lacks a chunk file"):
            look(vm)


# -- windows ----------------------------------------------------------------------------------------------------------


def test_few_windows_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    vm = Vm(tmp_path)
    vm.add_disk("vda", 8 * MIB)
    for number in range(0, 8, 2):
        vm.write("vda", number * MIB, bytes([number + 1]) * 100)
    monkeypatch.setattr(directory, "HELD", 2)
    found, reads = directory_of(vm, vm.pull(), "vda"), []
    real = directory.reader.page
    monkeypatch.setattr(directory.reader, "page", lambda *about: reads.append(int(about[2]["offset"])) or real(*about))
    assert found.starts() == [0, 2 * MIB, 4 * MIB, 6 * MIB]
    for start in (0, 0, 2 * MIB, 0, 4 * MIB, 0, 2 * MIB):
        window = found.window(start)
        assert window.flat()["offset"].tolist() == [start]
    assert reads == [0, 2 * MIB, 4 * MIB, 2 * MIB] and len(found._held) == 2
    empty = found.window(MIB)
    assert (empty.start, empty.stop, len(empty.flat())) == (MIB, 2 * MIB, 0)


def test_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    vm = Vm(tmp_path)
    vm.add_disk("vda", 8 * MIB)
    for number in range(8):
        vm.write("vda", number * MIB + number, b"x")
    found, wrong = directory_of(vm, vm.pull(), "vda"), []

    def work(seed):
        for start in random.Random(seed).choices(found.starts(), k=50):
            if found.window(start).flat()["offset"].tolist() != [start + start // MIB]:
                wrong.append(start)

    at_once(work, range(4))
    assert wrong == [] and len(found._held) <= directory.HELD


def test_numbers_of_another_list():
    records = numpy.zeros(3, layout.RECORD)
    records["chunk"], records["kind"] = [1, 0, 0], [extents.DATA, extents.ZERO, extents.DATA]
    found = renumbered(Page(["a", "b"], records), {"a": 7, "b": NOWHERE}.__getitem__)
    assert found["chunk"].tolist() == [NOWHERE, 0, 7] and records["chunk"].tolist() == [1, 0, 0]


def test_same_pages_are_those_of_one_content():
    refs = numpy.zeros(3, pages.PAGE)
    refs["digest"] = numpy.array([bytes([n] * 32) for n in (1, 1, 2)], "V32")
    refs["file"] = [0, 5, 0]
    assert same_pages(refs[:1], refs[1:2]) and not same_pages(refs[:1], refs[2:])
    assert not same_pages(refs[:1], refs[:2]) and not same_pages(None, refs[:1]) and not same_pages(refs[:1], None)
