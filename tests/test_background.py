"""Threads in the background: the rule with numbers, and the scheduling classes of real threads."""

import os
import threading
import time
from contextlib import contextmanager

import pytest

from nbdpull.core import background
from nbdpull.core.background import Background

IDLE, OTHER = os.SCHED_IDLE, os.SCHED_OTHER


@pytest.fixture(autouse=True)
def back_to_the_usual_class():
    yield
    os.sched_setscheduler(0, OTHER, os.sched_param(0))


@pytest.fixture
def times(monkeypatch):
    """The times that the kernel counts: {thread: (seconds it ran, seconds it waited)}."""
    counted = {}
    monkeypatch.setattr(background, "_times", lambda thread: counted.get(thread, (0.0, 0.0)))
    return counted


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@contextmanager
def thread_in(group):
    """Yield the number of another thread that has joined."""
    joined, end, number = threading.Event(), threading.Event(), []

    def work():
        group.join()
        number.append(threading.get_native_id())
        joined.set()
        end.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    assert joined.wait(30)
    try:
        yield number[0]
    finally:
        end.set()
        thread.join()


def test_threads_are_in_the_background_while_that_is_wanted(times):
    group = Background()
    group.join()
    with thread_in(group) as other:
        for wanted, policy in ((False, OTHER), (True, IDLE), (True, IDLE), (False, OTHER), (True, IDLE)):
            group.look(wanted)
            assert group.inside == wanted
            assert [os.sched_getscheduler(each) for each in (0, other)] == [policy, policy]
        with thread_in(group) as late:
            assert os.sched_getscheduler(late) == IDLE
        group.close()
        group.look(True)
        assert [os.sched_getscheduler(each) for each in (0, other)] == [OTHER, OTHER]


def test_a_thread_of_another_class_keeps_it():
    group = Background()
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    group.join()
    group.look(True)
    group.close()
    assert os.sched_getscheduler(0) == os.SCHED_BATCH


@pytest.mark.parametrize(
    "ran, waited, starved",
    [(0, 0, False), (0, 0.09, False), (0, 0.11, True), (0.05, 0.4, False), (0.04, 0.4, True), (1.0, 8.0, False),
     (0.9, 8.2, True)],
)  # fmt: skip
def test_who_starves_leaves(times, ran, waited, starved):
    group, me = Background(Clock()), threading.get_native_id()
    times[me] = (7.0, 7000.0)  # before
    group.join()
    times[me] = (8.0, 8000.0)  # outside the background
    group.look(True)
    times[me] = (8.0 + ran, 8000.0 + waited)
    group.look(True)
    assert group.inside != starved


@pytest.mark.parametrize("ready", [True, False])
def test_a_wait_that_has_not_ended_counts(times, monkeypatch, ready):
    clock = Clock()
    monkeypatch.setattr(background, "_is_ready", lambda thread: ready)
    group = Background(clock)
    group.join()
    group.look(True)
    clock.now += 0.5
    group.look(True)
    assert group.inside != ready


def test_only_a_thread_that_could_run_is_ready():
    group = Background()
    with thread_in(group) as waiting:
        assert background._is_ready(threading.get_native_id())
        while background._is_ready(waiting):  # until it waits
            time.sleep(0.001)
    while background._is_ready(waiting):  # until it has ended: Python's join returns before that
        time.sleep(0.001)


def test_it_is_tried_again_after_a_pause_twice_as_long_each_time(times):
    clock, me = Clock(), threading.get_native_id()
    group = Background(clock)
    group.join()
    for pause in (10, 20, 40):
        group.look(True)
        assert group.inside
        times[me] = (0.0, times.get(me, (0, 0))[1] + 1.0)
        group.look(True)
        assert not group.inside
        clock.now += pause - 1
        group.look(True)
        assert not group.inside
        clock.now += 1


def test_no_thread_enters_that_could_not_leave(monkeypatch):
    """As for a user without root's rights."""

    def put(thread, policy, parameter):
        if policy == OTHER:
            raise PermissionError
        entered.append(thread)

    entered = []
    monkeypatch.setattr(os, "sched_setscheduler", put)
    group = Background()
    group.join()
    group.look(True)
    assert entered == [0], "only a thread that was made to try it"
    assert not group.inside


def test_without_times_none_enters(monkeypatch):
    monkeypatch.setattr(background, "_times", lambda thread: None)
    group = Background()
    group.join()
    group.look(True)
    assert (group.inside, os.sched_getscheduler(0)) == (False, OTHER)


def test_a_thread_that_has_ended_does_not_matter():
    group = Background()
    with thread_in(group):
        pass
    group.join()
    group.look(True)
    assert os.sched_getscheduler(0) == IDLE
    group.close()
