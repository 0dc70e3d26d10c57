"""The limit for the duration of a run."""

import pytest

from nbdpull.core import deadline, errors


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(deadline, "time", clock)
    return clock


def test_a_deadline_expires_when_its_time_has_passed(clock):
    is_over, never = deadline.after(5), deadline.after(None)
    clock.now += 5
    assert not is_over()
    clock.now += 0.1
    assert is_over() and not never()


def test_a_bounded_run_ends_by_its_own_check_first(clock):
    looks = []
    check = deadline.bounded(lambda: looks.append(clock.now), 5, "the pull")
    check()
    clock.now += 6
    with pytest.raises(errors.LimitReached, match=r"the pull took longer than --max-duration \(5 s\)"):
        check()
    assert looks == [1000, 1006]
    endless = deadline.bounded(lambda: looks.append(0), None, "the pull")
    clock.now += 1e9
    endless()
    assert looks[-1] == 0
