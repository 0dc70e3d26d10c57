"""The wait for a server's answer: how a signal ends it."""

import threading
from unittest import mock

import pytest

from nbdpull.core import ending, errors
from nbdpull.storage import s3_waiting


@pytest.fixture
def request_made():
    """Give (event, request): it sets the event, and is answered when the test ends."""
    made, released = threading.Event(), threading.Event()

    def ask():
        made.set()
        released.wait(30)

    yield made, ask
    released.set()


def begun(thread, made):
    """Start the thread of a request, and return when it was made."""
    threading.Thread.start(thread)
    assert made.wait(30)


def test_a_signal_just_as_the_request_is_made_ends_the_wait_at_once(request_made):
    """Otherwise it counts as one of before, after which a request may take its time."""
    made, ask = request_made

    def check():
        if made.is_set():
            raise errors.Interrupted(15)

    start = mock.patch.object(s3_waiting._Asked, "start", lambda thread: begun(thread, made))
    with mock.patch.object(s3_waiting, "LAST", 0.1), start, ending.asked_by(check), pytest.raises(errors.Interrupted):
        s3_waiting.answer(ask)


def test_a_signal_of_before_leaves_a_request_some_time(request_made):
    def check():
        raise errors.Interrupted(15)

    with mock.patch.object(s3_waiting, "LAST", 0.1), ending.asked_by(check):
        assert s3_waiting.answer(lambda: "removed") == "removed"
        with pytest.raises(s3_waiting.Unanswered, match="no answer in 0.1 s"):
            s3_waiting.answer(request_made[1])


def test_an_error_of_the_request_is_raised_where_it_is_waited_for():
    def refused():
        raise ValueError("refused")

    with ending.asked_by(lambda: None), pytest.raises(ValueError, match="refused"):
        s3_waiting.answer(refused)
