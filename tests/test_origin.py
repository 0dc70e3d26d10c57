"""Where restored disks come from: everything that they consist of is proved, and what can be salvaged of a damaged
point."""

import contextlib

import pytest
import stores

from nbdpull.core import errors
from nbdpull.format import layout, reader
from nbdpull.restoring import loss, origin


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("origin") / "store")


def origin_of(vm, number=-1):
    return origin.Origin(vm.series, vm.points[number], onto=False, threads=2, check=lambda: None)


def proved(vm, disks, beside=(), whole=True):
    with contextlib.ExitStack() as opened:
        images = origin.images(origin_of(vm), disks, opened)
        return origin.prove(origin_of(vm), images.values(), beside, whole)


def made_from(vm, disks):
    """Return the domain's definition and what the directories of the disks name, by their paths in the series."""
    point = vm.points[-1]
    named = [entry for disk in disks for entry in stores.directory_of(vm, point, disk).files]
    return {entry.path for entry in [point.file(layout.DOMAIN_XML), *named]}


def sums_of(vm):
    return f"{vm.points[-1].id}/{layout.SUMS}"


@pytest.mark.parametrize("disks", [["vda"], ["vda", "vdb"]])
def test_every_file_is_proved_and_each_once(vm, monkeypatch, disks):
    seen, real = [], vm.series.own_flaw
    monkeypatch.setattr(vm.series, "own_flaw", lambda entry, check: seen.append(entry.path) or real(entry, check))
    proved(vm, disks)
    assert sorted(seen) == sorted({*made_from(vm, disks), sums_of(vm)}) and len(seen) > 5


def test_a_flaw_in_any_of_them_is_found(vm):
    for path in sorted(made_from(vm, ["vda"])):
        data = (vm.folder / path).read_bytes()
        for changed in (stores.flipped(data, len(data) // 2), data[:-1], None):
            with stores.damaged(vm.folder / path, changed), pytest.raises(errors.Damaged, match=f"{path}: .*--salvage"):
                proved(vm, ["vda"])
    directory = vm.points[-1].disk("vda").directory.path
    with stores.damaged(vm.folder / directory, b""), pytest.raises(errors.Damaged, match=f"{directory}: .*--rebuild"):
        proved(vm, ["vda"])
    proved(vm, ["vda"])


def test_chunk_files_are_checked_by_size_only(vm, monkeypatch):
    """For new images. The frames are checked later, each before it is written."""
    seen, real = [], vm.series.own_flaw
    monkeypatch.setattr(vm.series, "own_flaw", lambda entry, check: seen.append(entry.path) or real(entry, check))
    chunks = {entry.path for entry in stores.chunks_of(vm, vm.points[-1], "vda")}
    proved(vm, ["vda"], whole=False)
    assert {*seen} == {*made_from(vm, ["vda"]), sums_of(vm)} - chunks and chunks
    for path in sorted(made_from(vm, ["vda"])):
        data = (vm.folder / path).read_bytes()
        for changed in (data[:-1], data + b"\n", None):
            with stores.damaged(vm.folder / path, changed), pytest.raises(errors.Damaged, match=f"{path}: .*--salvage"):
                proved(vm, ["vda"], whole=False)
        refusal = contextlib.nullcontext() if path in chunks else pytest.raises(errors.Damaged)
        with stores.damaged(vm.folder / path, stores.flipped(data, len(data) // 2)), refusal:
            proved(vm, ["vda"], whole=False)


def test_files_that_the_disk_does_not_need_may_be_damaged(vm):
    """Nothing else in the store is checked, and the image is whole without it."""
    point = vm.points[-1]
    needed = {*made_from(vm, ["vda"]), f"{point.id}/{layout.MANIFEST}", point.disk("vda").directory.path}
    others = {str(path.relative_to(vm.folder)) for path in stores.files(vm.folder)} - needed
    assert {f"{vm.points[0].id}/{layout.MANIFEST}", f"{point.id}/vdb.directory"} < others
    with contextlib.ExitStack() as stack:
        for path in others:
            stack.enter_context(stores.damaged(vm.folder / path, b""))
        [warning] = proved(vm, ["vda"])
        assert sums_of(vm) in warning and "restored without this file" in warning
        [image] = origin.images(origin_of(vm), ["vda"], stack).values()
        assert image.head(image.size) == vm.images[point.id]["vda"]
        with pytest.raises(errors.Damaged):
            proved(vm, ["vda", "vdb"])
        with pytest.raises(errors.Damaged):
            proved(vm, [], [point.disk("vdb").directory])


def salvaged(vm, disks):
    events = []
    with contextlib.ExitStack() as opened:
        found = origin.salvaged(origin_of(vm), disks, opened, lambda **event: events.append(event))
        assert events == [{"event": "lost", **vars(each)} for each in found.lost]
        return list(found.images), found.lost


@pytest.mark.parametrize("what", ["an index", "the directory"])
def test_a_disk_without_its_records_is_lost_as_a_whole(vm, what):
    assert salvaged(vm, ["vda", "vdb"]) == (["vda", "vdb"], [])
    point, size = vm.points[-1], vm.points[-1].disk("vda").size
    index = stores.directory_of(vm, point, "vda").indexes[0]
    path = vm.folder / (index.path if what == "an index" else point.disk("vda").directory.path)
    with stores.damaged(path, b""):
        images, [lost] = salvaged(vm, ["vda", "vdb"])
        assert images == ["vdb"] and lost == loss.Loss("vda", 0, size, lost.problem)
        assert str(path) in lost.problem and "index --rebuild may rebuild it" in lost.problem
        with pytest.raises(errors.Damaged, match="nothing can be salvaged"):
            salvaged(vm, ["vda"])


def test_a_disk_without_its_beginning_is_not_salvaged(tmp_path):
    """Nothing of it is damaged: its beginning never was in the store."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 1000)
    vm.pull(since="elsewhere")
    with pytest.raises(errors.PartialPoint):
        salvaged(vm, ["vda"])


def test_chunk_files_stay_open_until_they_are_read(vm, monkeypatch):
    """For the check of their sizes and for their frames each was looked up on its own."""
    opened, real = [], vm.store.open_reader
    monkeypatch.setattr(vm.store, "open_reader", lambda path, *how: opened.append(path) or real(path, *how))
    with contextlib.ExitStack() as stack:
        images = origin.images(origin_of(vm), ["vda"], stack)
        origin.prove(origin_of(vm), images.values(), [], whole=False)
        chunks = [f"{vm.series.folder}/{entry.path}" for entry in images["vda"].directory.chunks]
        assert opened == chunks and len(chunks) > 2
        stores.shown(images["vda"])
    assert {path: opened.count(path) for path in chunks} == dict.fromkeys(chunks, 1)


def test_more_chunk_files_than_may_be_open_are_checked(vm, monkeypatch):
    monkeypatch.setattr(reader, "MAX_OPEN", 1)
    proved(vm, ["vda"], whole=False)
    last = stores.chunks_of(vm, vm.points[-1], "vda")[-1].path
    with stores.damaged(vm.folder / last, b""), pytest.raises(errors.Damaged, match=f"{last}: .*has 0 bytes"):
        proved(vm, ["vda"], whole=False)
