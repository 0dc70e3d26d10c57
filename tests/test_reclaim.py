"""What is unknown about a dead run is not taken for its failure."""

import errno
import os
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import object_store as object_stores
import pytest
from memory_store import MemoryStore

from nbdpull.core import errors, process
from nbdpull.format import layout
from nbdpull.pulling import journal, journal_files, reclaim, run_record
from nbdpull.repository import announcement, half_points
from nbdpull.repository.series import Series
from nbdpull.storage import beneath
from nbdpull.storage.s3 import S3Store

ID = "20261122T194500Z-7f3a9c04"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that died just after its commit, with its directory in a store."""
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
    """A domain that has the checkpoint of the run."""
    vm = mock.MagicMock(uuid="u", **{"power.left_frozen": False, "jobs.backup.return_value": None})
    vm.backups.traces.return_value.found.return_value = ["checkpoint c"]
    return vm


def test_the_checkpoint_of_a_run_is_kept_while_its_store_cannot_be_read(run):
    """The manifest could not be read, but the announcement could: the point's checkpoint would have been deleted."""
    real = beneath.status

    def status(folder, name):
        if name == layout.MANIFEST:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(folder, name)

    with mock.patch.object(beneath, "status", status):
        (left,) = reclaim.reclaim(vm := domain(), None)
    assert "it is not known whether the run succeeded" in left.left
    assert not vm.backups.traces.return_value.clear.called and journal_files.runs("u") == [run]


@pytest.mark.parametrize("server", [None, "http://127.0.0.1:2"])
def test_the_store_of_a_run_is_not_sought_at_another_server(run, monkeypatch, server):
    """What that server has under the same name says nothing about the run; nor is it an error if access there is
    denied."""
    journal_files.remove(run)
    for name, value in object_stores.environment("http://127.0.0.1:1/").items():
        monkeypatch.setenv(name, value)
    asked = []

    def holds(_, path):
        asked.append(path)
        raise errors.AccessDenied("s3://bucket: no credentials")

    monkeypatch.setattr(S3Store, "holds", holds)
    journal_files.begin(replace(run, store="s3://bucket/vms", server=server)).close()
    (left,) = reclaim.reclaim(vm := domain(), None)
    where = "s3://bucket/vms at http://127.0.0.1:2" if server else "s3://bucket/vms"
    assert left.left.startswith(f"{where} is missing or cannot be read") and bool(asked) == (server is None)
    assert not vm.backups.traces.return_value.clear.called and len(journal_files.runs("u")) == 1


class Away(MemoryStore):
    """A bucket whose server may be unavailable. age: seconds since everything was created there."""

    has_locks, age, is_away = False, 0.0, False

    def seconds_since_change(self, path, anew=False):
        return self.age

    def holds(self, path):
        return super().holds(self._asked(path))

    def delete(self, path):
        super().delete(self._asked(path))

    def remove_file(self, path):
        if not self.is_away:
            super().remove_file(path)

    def remove_folder(self, path):
        if not self.is_away:
            super().remove_folder(path)

    def _asked(self, path):
        if self.is_away:
            raise errors.StoreError("no answer")
        return path


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))
    store = Away()
    store.make_folder("vm1")
    return store


def reclaimed(store):
    vm, series = domain(), Series(store, "vm1")
    vm.backups.traces.return_value.found.return_value = []
    vm.jobs.backup.return_value = None
    return reclaim.reclaim(vm, SimpleNamespace(series=series, points=SimpleNamespace(ids=(), newest=None)))


@pytest.mark.parametrize("has_locks, age, stays", [(True, 0, False), (False, 0, True), (False, 27 * 3600, False)])
def test_a_clone_of_this_machine_that_works_in_a_bucket(bucket, has_locks, age, stays):
    """It has the id of this machine, and another boot: its run looks dead from here, and no journal mentions it."""
    bucket.has_locks, bucket.age = has_locks, age
    clone = replace(process.of(), boot="another")
    announced = announcement.Announcement(ID, "vm1", "u", "memory:", f"vm1/{ID}", clone, "2026-11-22T19:45:00+00:00")
    bucket.make_folder(f"vm1/{ID}")
    bucket.publish(f"vm1/{ID}/{announcement.NAME}", announcement.encode(announced))
    [left] = reclaimed(bucket)
    assert left.left == ("somebody may be working on it" if stays else "")
    assert half_points.names(Series(bucket, "vm1")) == [ID] * stays


@pytest.mark.parametrize("is_away", [False, True])
def test_a_pull_that_failed_as_the_server_went_away(bucket, run, is_away):
    """Its journal stays as long as its half point: by it, the next pull recognizes it as its own, and removes it at
    once."""
    journal_files.remove(run)
    own = replace(run, process=process.of(), store=bucket.root)
    with pytest.raises(errors.OutputError), run_record.new_point(Series(bucket, "vm1"), own):
        bucket.is_away = is_away
        raise errors.OutputError("no answer")
    assert [left.id for left in journal_files.runs("u")] == [ID] * is_away
    bucket.is_away = False
    assert [left.left for left in reclaimed(bucket)] == [""] * is_away
    assert bucket.names("vm1") == [] and journal_files.runs("u") == []
