"""The pipeline: results in order, bounded memory, the first error stops everything; the same results as a plain
loop."""

import random
import threading
import time
from concurrent.futures import wait as futures_wait

import pytest

from nbdpull.core import errors, pipeline
from nbdpull.core.pipeline import ordered, synchronous


class Gauge:
    """Counts the bytes in progress: taken from the items, and not yet yielded."""

    def __init__(self):
        self.now = self.most = 0

    def items(self, weights):
        for weight in weights:
            self.now += weight
            self.most = max(self.most, self.now)
            yield weight

    def drain(self, results):
        for weight in results:
            self.now -= weight
            yield weight


def threads_alive():
    return set(threading.enumerate())


@pytest.mark.parametrize("seed", range(8))
def test_it_agrees_with_a_plain_loop(seed):
    rng = random.Random(seed)
    items = [rng.randrange(1000) for _ in range(rng.choice([0, 1, 3, 200]))]
    how = {"threads": rng.randint(1, 6), "budget": rng.choice([0, 1, 500, 10**9]), "weight": lambda item: item}

    def work(item):
        time.sleep(random.random() / 2000)
        return item, str(item)

    assert list(ordered(work, items, **how)) == list(synchronous(work, items, **how))


def test_results_are_in_order_though_the_first_takes_longest():
    started = threading.Event()

    def work(item):
        if item == 0:
            assert started.wait(10)
        if item == 3:
            started.set()
        return item

    assert list(ordered(work, range(8), threads=4, budget=100, weight=lambda _: 1)) == list(range(8))


def test_many_items_are_worked_on_at_once():
    together = threading.Barrier(3)
    done = list(ordered(lambda _: together.wait(10), range(3), threads=3, budget=100, weight=lambda _: 1))
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_it_is_bounded_in_bytes(seed):
    rng = random.Random(seed)
    weights = [rng.randrange(1, 100) for _ in range(300)]
    gauge, budget = Gauge(), rng.choice([1, 150, 400])
    results = ordered(lambda item: item, gauge.items(weights), threads=3, budget=budget, weight=lambda item: item)
    assert list(gauge.drain(results)) == weights
    assert gauge.most <= budget + 2 * max(weights)


def test_it_is_bounded_in_items_that_weigh_nothing():
    gauge = Gauge()
    results = ordered(lambda item: item, gauge.items([1] * 500), threads=2, budget=10**9, weight=lambda _: 0)
    assert len(list(gauge.drain(results))) == 500
    assert gauge.most <= 2 * 8 + 2


def test_items_are_drawn_in_the_callers_thread():
    seen = set()

    def items():
        for i in range(50):
            seen.add(threading.get_ident())
            yield i

    list(ordered(lambda item: item, items(), threads=3, budget=5, weight=lambda _: 1))
    assert seen == {threading.get_ident()}


def test_the_first_error_in_order_wins():
    """Which error the operator sees must not depend on which thread was faster."""
    second = threading.Event()

    def work(item):
        if item == 5:
            assert second.wait(10)
            raise KeyError("five")
        if item == 6:
            second.set()
            raise ValueError("six")
        return item

    got = []
    with pytest.raises(KeyError, match="five"):
        for result in ordered(work, range(20), threads=4, budget=100, weight=lambda _: 1):
            got.append(result)
    assert got == [0, 1, 2, 3, 4]


def test_an_error_stops_the_others(monkeypatch):
    """Waiting items are not started, and the error is raised when the started ones have ended."""
    before, begun, worked, stopped = threads_alive(), [], [], threading.Event()

    def waited(futures):
        """Release the work when everything that waited for a thread is cancelled."""
        stopped.set()
        return futures_wait(futures)

    def work(item):
        begun.append(item)
        if item == 0:
            raise OSError("first")
        assert stopped.wait(30)
        worked.append(item)

    monkeypatch.setattr(pipeline, "wait", waited)
    with pytest.raises(OSError, match="first"):
        list(ordered(work, range(10_000), threads=2, budget=10**9, weight=lambda _: 1))
    assert sorted(worked) == sorted(begun)[1:] and max(begun) <= 2
    assert threads_alive() <= before


@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt, StopIteration])
def test_unusual_errors_of_the_work(error):
    def work(item):
        if item == 2:
            raise error("mine")
        return item

    with pytest.raises((error, RuntimeError)):
        list(ordered(work, range(5), threads=2, budget=100, weight=lambda _: 1))


def test_an_error_of_the_items():
    before = threads_alive()

    def items():
        yield from range(3)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ordered(lambda item: item, items(), threads=2, budget=100, weight=lambda _: 1))
    assert threads_alive() <= before


def test_check_is_called_for_every_item():
    calls = []

    def items():
        for number in range(20):
            calls.append(number)
            yield number

    list(ordered(lambda item: item, items(), threads=2, budget=100, weight=lambda _: 1, check=lambda: calls.append("")))
    assert [calls[calls.index(number) + 1] for number in range(20)] == [""] * 20


def test_check_ends_a_wait():
    """A signal must be handled even if the current item never ends by itself."""
    release, asked = threading.Event(), []

    def check():
        asked.append(1)
        if len(asked) > 2:
            release.set()
            raise InterruptedError("stop")

    with pytest.raises(InterruptedError):
        list(ordered(lambda _: release.wait(30), [1], threads=1, budget=0, weight=lambda _: 1, check=check))


def test_a_consumer_that_stops_early_leaves_no_thread():
    before = threads_alive()
    results = ordered(lambda item: item, range(1000), threads=3, budget=50, weight=lambda _: 1)
    assert next(results) == 0
    results.close()
    assert threads_alive() <= before


# -- threads that stay ------------------------------------------------------------------------------------------------


def test_threads_stay_for_the_next_items_and_end_with_the_object():
    before, names = threads_alive(), set()

    def work(item):
        names.add(threading.current_thread().name)
        return item

    threads = pipeline.Threads(2)
    for _ in range(20):
        assert list(threads.ordered(work, range(5), budget=100, weight=lambda _: 1)) == list(range(5))
    kept = threads_alive() - before
    assert names <= {thread.name for thread in kept} and len(kept) <= 2  # one may have been faster each time
    del threads
    for thread in kept:
        thread.join(30)
    assert threads_alive() <= before


def test_after_an_error_nothing_is_under_way_in_threads_that_stay():
    ended, slow = [], threading.Event()

    def work(item):
        if item == 0:
            slow.set()
            raise OSError("first")
        assert slow.wait(30)
        ended.append(item)

    with pipeline.Threads(2) as threads:
        with pytest.raises(OSError, match="first"):
            list(threads.ordered(work, range(1000), budget=10**9, weight=lambda _: 1))
        seen = list(ended)
        assert list(threads.ordered(lambda item: item, range(3), budget=0, weight=lambda _: 1)) == [0, 1, 2]
        assert ended == seen


# -- drawn ahead, in a thread ------------------------------------------------------------------------------------------


def test_ahead_gives_the_same_items():
    assert list(pipeline.ahead(iter(range(100)), 3)) == list(range(100))


def test_ahead_draws_no_more_than_asked():
    drawn = []

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    taken = pipeline.ahead(items(), 3)
    assert next(taken) == 0
    at_most = 1 + 3 + 1  # taken, waiting, and on its way into the queue
    deadline = time.monotonic() + 10
    while len(drawn) < at_most and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.1)  # in which no more comes
    assert drawn == list(range(at_most))
    taken.close()
    assert len(drawn) < 100


def test_ahead_raises_where_the_item_would_be():
    def items():
        yield 1
        raise errors.SourceError("lost")

    taken = pipeline.ahead(items(), 3)
    assert next(taken) == 1
    with pytest.raises(errors.SourceError, match="lost"):
        next(taken)


# -- meanwhile ---------------------------------------------------------------------------------------------------------


def test_meanwhile_returns_the_result_of_work_that_goes_on_beside_the_block():
    reached = threading.Event()
    with pipeline.meanwhile(lambda: reached.wait(30)) as result:
        reached.set()
        assert result()


def test_meanwhile_raises_where_the_result_is_wanted():
    def work():
        raise errors.OutputFull("full")

    with pipeline.meanwhile(work) as result, pytest.raises(errors.OutputFull, match="full"):
        result()


def test_meanwhile_the_work_has_ended_when_the_block_fails():
    left, ended = threading.Event(), []

    def work():
        assert left.wait(30)
        ended.append(True)

    with pytest.raises(OSError, match="first"), pipeline.meanwhile(work):
        left.set()
        raise OSError("first")
    assert ended
