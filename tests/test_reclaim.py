"""What is not known of a dead run is not taken for its failure."""

import errno
import os
from dataclasses import replace
from unittest import mock

import pytest

from nbdpull.core import process
from nbdpull.format import layout
from nbdpull.pulling import journal, journal_files, reclaim
from nbdpull.repository import announcement
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
