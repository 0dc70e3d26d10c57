"""How long the journal of a run is kept: as long as something of the run may be left. test_reclaim.py has what the next
run does with it."""

import pytest
from memory_store import MemoryStore

from nbdpull.core import errors
from nbdpull.pulling import journal, journal_files, run_record
from nbdpull.repository.series import Series

pytest.importorskip("libvirt")

ID = "20261122T194500Z-7f3a9c04"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv(journal_files.VARIABLE, str(tmp_path))
    return journal.of_this_process(
        id=ID, domain="vm1", uuid="u", uri="qemu:///system", checkpoint=None, checkpoint_disks=[], disks={"vda": None},
        socket="/s", scratch_dir="/var/tmp", guest_runs=True, store="/store", folder=f"vm1/{ID}",
    )  # fmt: skip


def known():
    return [(each.id, each.withdrawn) for each in journal_files.runs("u")]


def left_behind():
    error = errors.HypervisorError("the job could not be ended")
    error.left_behind = ("the job",)
    return error


@pytest.mark.parametrize("raised, is_left, stays", [
    (None, False, False),
    (errors.OutputFull("no room"), False, False),
    (errors.OutputFull("no room"), True, True),  # in a store where nothing else shows whose it is
    (left_behind(), False, True),
    (None, True, False),  # it was committed
    (KeyboardInterrupt(), False, True),  # nobody has undone anything
])  # fmt: skip
def test_a_journal_stays_if_something_may_be_left(run, raised, is_left, stays):
    def record():
        with run_record.written(run, is_left=lambda: is_left):
            assert known() == [(ID, False)]
            if raised:
                raise raised

    if raised:
        with pytest.raises(type(raised)):
            record()
    else:
        record()
    assert known() == [(ID, False)] * stays


def test_the_journal_of_a_dead_run_is_not_begun_again(run):
    journal_files.begin(run).close()
    resumed = journal_files.resume(run)
    with run_record.written(run, resumed) as kept:
        assert kept is resumed
    assert known() == []


class Store(MemoryStore):
    has_locks, is_away = False, False

    def size(self, path):
        if self.is_away:
            raise errors.StoreError("no answer")
        return super().size(path)


@pytest.mark.parametrize("is_away", [False, True])
def test_a_point_that_is_given_up_is_withdrawn_if_it_was_not_committed(run, is_away):
    """As long as the store cannot be read, it may have been."""
    store = Store()
    store.make_folder("vm1")
    error = left_behind()
    with pytest.raises(errors.HypervisorError), run_record.new_point(Series(store, "vm1"), run):
        store.is_away = is_away
        raise error
    assert known() == [(ID, not is_away)]
