"""The limit on bytes a second, by a clock that only moves when somebody sleeps."""

import pytest

from nbdpull.core import errors, throttle
from nbdpull.core.throttle import BURST, Throttle

MIB = 1 << 20


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(throttle.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(throttle.time, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def seconds_for(clock, throttle, count, size=MIB):
    began = clock.now
    for _ in range(count):
        throttle.take(size)
    return clock.now - began


def test_no_rate_never_waits(clock):
    assert seconds_for(clock, Throttle(), 1000) == 0


def test_rate_is_kept_except_for_one_burst(clock):
    taken = seconds_for(clock, Throttle(10 * MIB), 100)
    assert 10 - BURST <= taken <= 10.01


def test_idle_time_earns_no_credit(clock):
    bound = Throttle(10 * MIB)
    seconds_for(clock, bound, 10)
    clock.now += 100
    assert seconds_for(clock, bound, 100) >= 9.99 - BURST


def test_file_changes_the_rate_while_running(clock, tmp_path):
    file = tmp_path / "rate"
    bound = Throttle(MIB, file)
    assert seconds_for(clock, bound, 20) > 19
    file.write_text("100M\n")
    seconds_for(clock, bound, 2)  # the wait that was booked before
    assert seconds_for(clock, bound, 100) < 1.2
    file.write_text("0")
    seconds_for(clock, bound, 50)
    assert seconds_for(clock, bound, 1000) == 0


def test_file_that_holds_no_rate_is_a_usage_error(clock, tmp_path):
    (tmp_path / "rate").write_text("fast")
    with pytest.raises(errors.UsageError, match="'fast' is not a size"):
        Throttle(None, tmp_path / "rate").take(1)


def test_a_signal_ends_the_wait(clock):
    def check():
        raise errors.Interrupted(15)

    bound = Throttle(1, check=check)
    with pytest.raises(errors.Interrupted):
        bound.take(MIB)
