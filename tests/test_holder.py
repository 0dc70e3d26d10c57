"""Who holds a domain on this machine: one at a time, and what a holder that died was about to do is known."""

import os
import signal

import pytest

from nbdpull.core import errors
from nbdpull.pulling import holder

UUID = "3e3fce45-4f53-4fa7-bb32-11f34168b82b"


@pytest.fixture(autouse=True)
def of_this_test(tmp_path, monkeypatch):
    monkeypatch.setattr(holder, "_folder", lambda: str(tmp_path / "run"))
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "run"


def dies_holding(*steps):
    """A process that takes the domain, does these steps with the Hold, and is killed."""
    child = os.fork()
    if not child:
        with holder.holding(UUID, "vm1") as hold:
            for step in steps:
                getattr(hold, step)()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_one_process_holds_a_domain():
    with holder.holding(UUID, "vm1"), holder.holding(UUID.replace("3", "4"), "vm2"):
        assert holder.look(UUID) is None
        with pytest.raises(errors.Busy, match="domain 'vm1' is held by another nbdpull"), holder.holding(UUID, "vm1"):
            pass
    with holder.holding(UUID, "vm1"):
        pass


@pytest.mark.parametrize(
    "steps, starting", [([], False), (["note_start"], True), (["note_start", "clear_start"], False)]
)
def test_the_phase_of_a_dead_holder(steps, starting):
    """Its domain may run, and nothing marks it."""
    assert holder.look(UUID) is None
    dies_holding(*steps)
    assert holder.look(UUID).starting is starting
    with holder.holding(UUID, "vm1") as hold:
        assert hold.starting is starting
        hold.clear_start()
    assert holder.look(UUID).starting is False


def test_an_error_releases_the_domain():
    with pytest.raises(KeyError), holder.holding(UUID, "vm1"):
        raise KeyError
    with holder.holding(UUID, "vm1"):
        pass


def test_without_a_directory_for_locks_nobody_is_locked_out(of_this_test):
    """A pull goes on: its backup job keeps others out, if later."""
    of_this_test.write_text("a file")
    with holder.holding(UUID, "vm1") as hold, holder.holding(UUID, "vm1"):
        hold.note_start()
        assert not hold.starting and holder.look(UUID) is None
