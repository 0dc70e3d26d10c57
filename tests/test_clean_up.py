"""A step of a clean-up that fails: the next ones are done, and what is left is reported, with who removes it later."""

import pytest

from nbdpull.core import errors
from nbdpull.hypervisor import clean_up


@pytest.mark.parametrize(
    "error, says",
    [
        (errors.DomainNotRunning("x"), "the job is left behind because the domain is off: the next pull removes it"),
        (errors.DomainStopped("x"), "the job is left behind because the domain is off"),
        (errors.DomainCrashed("x"), "the job is left behind because the domain is off"),
        (errors.NoAnswer("x"), "the job is left behind because libvirt does not answer: the next "),
        (errors.HypervisorError("libvirt says no"), "the job is left behind: libvirt says no"),
        (errors.Busy("another job"), "the job is left behind: another job"),
    ],
)  # fmt: skip
def test_leftovers_are_reported(error, says):
    left = ["before"]

    def step():
        raise error

    assert clean_up.attempt(step, "the job", left) is False
    assert left[0] == "before" and len(left) == 2 and left[1].startswith(says)


def test_a_completed_step_reports_nothing():
    done, left = [], []
    assert clean_up.attempt(lambda: done.append(1), "the job", left) is True
    assert (done, left) == ([1], [])


@pytest.mark.parametrize("error", [errors.JobLost("x"), MemoryError(), ZeroDivisionError("x")])
def test_any_error_says_what_is_left(error):
    """Also one that is a fault of nbdpull: a domain that stays paused is more important than why."""
    clean_up.leave(error, [])
    assert getattr(error, "left_behind", ()) == ()
    clean_up.leave(error, ["the job"])
    clean_up.leave(error, ["a file", "a domain"])
    assert error.left_behind == ("the job", "a file", "a domain")


def test_foreign_exceptions_are_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        clean_up.attempt(lambda: (_ for _ in ()).throw(KeyboardInterrupt), "the job", [])
