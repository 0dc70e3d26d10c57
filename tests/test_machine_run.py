"""What dead runs left in the series of a KubeVirt machine, and which series that is."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import stores
from memory_store import MemoryStore

from nbdpull.core import process
from nbdpull.format import layout
from nbdpull.kubevirt.given import Machine
from nbdpull.repository import announcement, half_points
from nbdpull.repository.announcement import Announcement
from nbdpull.repository.points import Points
from nbdpull.repository.series import Series
from nbdpull.volumes import machine_run

RUN = "20261122T194500Z-7f3a9c04"
MACHINE = Machine("ns", "vm1")
HERE = process.of()
DEAD = replace(HERE, started=1)
ELSEWHERE = replace(HERE, host="another-host", machine="another-machine")


class Bucket(MemoryStore):
    """A store without locks. age: seconds since everything was created there."""

    has_locks, age = False, 0.0

    def seconds_since_change(self, path, anew=False):
        return self.age


def half(store, of=DEAD, folder=None, files=("vda.0000.zst",)):
    """Make a half point; return what a run holds."""
    series = Series(store, MACHINE.domain)
    path = f"{series.folder}/{RUN}"
    store.make_folder(series.folder)
    store.make_folder(path)
    for name in files:
        store.publish(f"{path}/{name}", b"x")
    if of:
        said = Announcement(RUN, MACHINE.domain, "u", store.root, folder or path, of, "2026-11-22T19:45:00+00:00")
        store.publish(f"{path}/{announcement.NAME}", announcement.encode(said))
    return SimpleNamespace(series=series, points=Points(series))


def left(held, dry_run=False):
    [found] = machine_run.reclaimed(held, dry_run)
    assert found.run == RUN
    return found.left


def is_there(held):
    return half_points.names(held.series) == [RUN]


@pytest.fixture
def store(tmp_path):
    return stores.Vm(tmp_path / "store").store


def test_what_a_dead_run_left_is_removed(store):
    held = half(store)
    assert left(held, dry_run=True) == "dry run" and is_there(held)
    assert left(held) == "" and not is_there(held)
    assert machine_run.reclaimed(held) == []


def test_a_run_that_is_alive_is_left_alone(store):
    held = half(store, HERE)
    found = left(held)
    assert found == f"remove {store.path(held.series.folder, RUN)} if that run has ended" and is_there(held)


def test_a_run_of_another_machine_may_be_alive(store):
    held = half(store, ELSEWHERE)
    assert "if that run has ended" in left(held) and is_there(held)


def test_a_directory_without_an_announcement(store):
    held = half(store, of=None)
    assert left(held) == "" and not is_there(held)


def test_files_that_points_refer_to_stay(tmp_path):
    vm = stores.Vm(tmp_path / "store", name=MACHINE.domain)
    vm.add_disk("vda", 4096)
    vm.write("vda", 0, b"x")
    vm.pull(point_id=RUN)
    vm.pull()
    (vm.folder / RUN / layout.MANIFEST).unlink()
    held = SimpleNamespace(series=vm.series, points=Points(vm.series))
    assert left(held) == "points refer to its files" and is_there(held)
    (vm.folder / vm.points[-1].id / layout.MANIFEST).unlink()
    assert [each.left for each in machine_run.reclaimed(held)] == ["", ""] and not half_points.names(vm.series)


@pytest.mark.parametrize("of, age, why", [
    (HERE, 0.0, "if that run has ended"),
    (ELSEWHERE, 0.0, "somebody may be working on it"),
    (ELSEWHERE, 1e6, ""),  # nobody works for so long
    (None, 0.0, "somebody may be working on it"),
    (None, 1e6, ""),
])  # fmt: skip
def test_without_locks_only_time_shows_that_a_run_of_another_machine_is_dead(of, age, why):
    held = half(Bucket(), of)
    held.series.store.age = age
    found = left(held)
    assert found.endswith(why) and bool(found) == bool(why)
    path = f"{held.series.folder}/{RUN}/{half_points.REMOVED}"
    assert held.series.store.holds(path) == (not why)  # a sweep removes its files, by its own rules


def test_the_announcement_of_the_newest_point_is_removed(tmp_path):
    vm = stores.Vm(tmp_path / "store", name=MACHINE.domain)
    vm.add_disk("vda", 4096)
    vm.pull()
    path = vm.folder / vm.points[0].id / announcement.NAME
    path.write_text(json.dumps(asdict(DEAD)))
    held = SimpleNamespace(series=vm.series, points=Points(vm.series, vm.series.heads()[0]))
    assert machine_run.reclaimed(held, dry_run=True) == [] and path.exists()
    assert machine_run.reclaimed(held) == [] and not path.exists()


# -- which series ------------------------------------------------------------------------------------------------------

UUID = "3e3fce45-4f53-4fa7-bb32-11f34168b82b"


def test_a_machine_without_a_known_uid_is_recognized_by_its_name(store):
    """Each time by the same UUID."""
    series, known = machine_run.series_of(store, MACHINE, "")
    assert machine_run.series_of(store, MACHINE, "")[1] == known and len(known) == 36
    assert (series.domain, series.folder) == ("ns/vm1", layout.folder_name("ns/vm1"))
    assert machine_run.series_of(store, Machine("ns", "vm2"), "")[1] != known
    assert machine_run.series_of(store, MACHINE, UUID)[1] == UUID


def test_a_series_that_exists_knows_the_uid(tmp_path):
    vm = stores.Vm(tmp_path / "store", name=MACHINE.domain, uuid=UUID)
    vm.add_disk("vda", 4096)
    vm.pull()
    series, known = machine_run.series_of(vm.store, MACHINE, "")
    assert (series.folder, known) == (vm.series.folder, UUID)
    renamed, _ = machine_run.series_of(vm.store, Machine("ns", "new-name"), UUID)
    assert renamed.folder == vm.series.folder
