"""What is not known of a dead run is not taken for its failure."""

import errno
import os
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
from memory_store import MemoryStore

from nbdpull.core import process
from nbdpull.format import layout
from nbdpull.pulling import journal, journal_files, reclaim
from nbdpull.repository import announcement
from nbdpull.repository.series import Series
from nbdpull.storage import beneath

ID = "20261122T194500Z-7f3a9c04"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """One that died just after its commit, with its directory in a store."""
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))
    made = journal.of_this_process(
        id=ID, domain="vm1", uuid="u", uri="qemu:///system", checkpoint="c", checkpoint_disks=["vda"],
        disks={"vda": None}, socket="/s", scratch_dir="/var/tmp", guest_runs=True, store=str(tmp_path / "store"),
        folder=f"vm1/{ID}",
    )  # fmt: skip
    dead = replace(made, process=replace(process.of(), started=1))
    journal_files.begin(dead).close()
    folder = tmp_path / "store" / dead.folder
    folder.mkdir(parents=True)
    for name in (layout.MANIFEST, announcement.NAME):
        (folder / name).write_text("x")
    return dead


def domain():
    """One that has the checkpoint of the run."""
    vm = mock.MagicMock(uuid="u", **{"power.left_frozen": False, "jobs.backup.return_value": None})
    vm.backups.traces.return_value.found.return_value = ["checkpoint c"]
    return vm


def test_the_checkpoint_of_a_run_stays_while_its_store_does_not_tell(run):
    """The manifest could not be looked at, the announcement could: the point's checkpoint would have gone."""
    real = beneath.status

    def status(folder, name):
        if name == layout.MANIFEST:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(folder, name)

    with mock.patch.object(beneath, "status", status):
        (left,) = reclaim.reclaim(vm := domain(), None)
    assert "it is not known whether the run succeeded" in left.left
    assert not vm.backups.traces.return_value.clear.called and journal_files.runs("u") == [run]


@pytest.mark.parametrize("has_locks, age, stays", [(True, 0, False), (False, 0, True), (False, 27 * 3600, False)])
def test_a_clone_of_this_machine_that_works_in_a_bucket(has_locks, age, stays, monkeypatch):
    """It has the id of this machine, and another boot: its run looks dead from here, and no journal tells of it."""
    monkeypatch.setattr(MemoryStore, "has_locks", has_locks)
    monkeypatch.setattr(MemoryStore, "seconds_since_change", lambda *_: age)
    store = MemoryStore()
    clone = replace(process.of(), boot="another")
    told = announcement.Announcement(ID, "vm1", "u", "memory:", f"vm1/{ID}", clone, "2026-11-22T19:45:00+00:00")
    for folder in ("vm1", f"vm1/{ID}"):
        store.make_folder(folder)
    store.publish(f"vm1/{ID}/{announcement.NAME}", announcement.encode(told))
    held = SimpleNamespace(series=Series(store, "vm1"), points=SimpleNamespace(ids=(), newest=None))
    vm = domain()
    vm.jobs.backup.return_value = None
    [left] = reclaim.reclaim(vm, held)
    assert left.left == ("somebody may work on it" if stays else "")
    assert store.holds(f"vm1/{ID}/{announcement.NAME}") is stays
