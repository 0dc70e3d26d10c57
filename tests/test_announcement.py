"""What a half point records about its run: it is read as it was written, and a copy is distinguished from the
original."""

import json
import shutil
from dataclasses import replace

import pytest
import stores

from nbdpull.core import process
from nbdpull.repository import announcement, half_points, new_point, series
from nbdpull.storage.directory import DirectoryStore

ID = "20261122T194500Z-7f3a9c04"


@pytest.fixture
def vm(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 65536)
    vm.pull()
    return vm


def announced(vm, **values):
    members = {"id": ID, "domain": "vm1", "uuid": "u", "store": vm.store.root, "folder": f"{vm.series.folder}/{ID}"}
    begun = "2026-11-22T19:45:00+00:00"
    return announcement.Announcement(**{**members, "process": process.of(), "begun": begun, **values})


def left(vm, said):
    """The half point of a run that was killed."""
    vm.store.make_folder(f"{vm.series.folder}/{ID}")
    new_point.NewPoint(vm.series, ID).announce(said)
    return half_points.announced(vm.series, ID)


def test_it_names_the_owner_of_the_half_point(vm):
    said = announced(vm)
    with half_points.writing(vm.series), new_point.begun(vm.series, ID, said) as new:
        there = half_points.announced(vm.series, ID)
        assert there == replace(said, inode=(vm.folder / ID).stat().st_ino) and there.is_alive
        assert there.whose.startswith(f"run {ID} (process {said.process.pid} on ") and vm.store.root in there.whose
        new.add_file("domain.xml", b"<domain/>")
    assert half_points.announced(vm.series, ID) is None and not (vm.folder / ID).exists()


def test_a_committed_point_has_none(vm):
    assert not list(vm.folder.glob("*/run.json"))


def test_a_resuming_run_announces_itself(vm):
    left(vm, announced(vm, process=process.Process(1, 1)))
    with pytest.raises(KeyError), half_points.writing(vm.series), new_point.resumed(vm.series, announced(vm)):
        assert half_points.announced(vm.series, ID).process == process.of()
        raise KeyError
    assert not (vm.folder / ID).exists()


@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_copy_is_distinguished_from_the_original(vm, tmp_path, machine):
    owner = process.of() if machine == "this" else replace(process.of(), machine="another")
    said = left(vm, announced(vm, process=owner))

    def is_copy(place):
        found = series.Series(DirectoryStore(str(place)), vm.name, vm.series.folder)
        return half_points.is_copy(found, half_points.announced(found, ID))

    assert said and not is_copy(vm.store.root)
    shutil.copytree(vm.store.root, tmp_path / "copy")
    assert is_copy(tmp_path / "copy")
    shutil.move(vm.store.root, tmp_path / "moved")
    assert not is_copy(tmp_path / "moved") and is_copy(tmp_path / "copy")


GOOD = {
    "id": ID, "domain": "vm1", "uuid": "u", "store": "/s", "folder": f"vm1/{ID}",
    "process": {"pid": 1, "started": 1, "boot": "", "machine": "", "host": ""},
    "begun": "2026-11-22T19:45:00+00:00", "inode": 5,
}  # fmt: skip


def test_additions_of_a_later_nbdpull_are_ignored():
    assert announcement.decode(json.dumps({**GOOD, "later": 1}).encode()).inode == 5


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"null", b"[" * 100_000, b"\xff"])
def test_files_that_are_not_announcements(data):
    assert announcement.decode(data) is None


@pytest.mark.parametrize(
    "name, value",
    [("id", 5), ("id", f"../{ID}"), ("store", None), ("process", {"pid": -1}), ("process", 1), ("begun", "yesterday"),
     ("begun", "2026-11-22T19:45:00"), ("inode", "5"), ("uuid", "\0")],
)  # fmt: skip
def test_impossible_announcements_are_ignored(name, value):
    """Anyone who can write to the store can have written it."""
    assert announcement.decode(json.dumps({**GOOD, name: value}).encode()) is None
