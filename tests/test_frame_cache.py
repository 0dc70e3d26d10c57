"""Frames in memory: the budget holds, none is read twice at once, and reading ahead does no harm."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest

from nbdpull.core import errors
from nbdpull.repository.frame_cache import FrameCache

SIZE = 100  # bytes of each frame here


class Frames:
    """Frames that are identified by their number. reads: those that were read; bad: the damaged ones; gate: a read
    waits for it."""

    def __init__(self, bad=()):
        self.reads, self.bad, self.gate = [], set(bad), threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)

    def read(self, place):
        self.reads.append(place["chunk"])
        self.begun.release()
        assert self.gate.wait(20)
        if place["chunk"] in self.bad:
            raise errors.Damaged(f"frame {place['chunk']}")
        return content(place["chunk"])


def content(number):
    return bytes([number]) * SIZE


def place(number):
    return {"chunk": number, "position": 0, "digest": numpy.bytes_(bytes([number]) * 32)}


def held(cache):
    return sum(map(len, cache._held.values()))


@pytest.mark.parametrize("seed", range(3))
def test_any_reads_by_any_threads(seed):
    frames, budget = Frames(bad={7}), 4 * SIZE
    cache = FrameCache(frames.read, budget, ahead=seed)

    def work(own):
        chance, wrong = random.Random(own), 0
        for _ in range(300):
            number = chance.randrange(12)
            if chance.random() < 0.5:
                cache.begin(place(number))
            try:
                wrong += cache.get(place(number)) != content(number) or number == 7
            except errors.Damaged:
                wrong += number != 7
        return wrong

    with ThreadPoolExecutor(3) as threads:
        assert [*threads.map(work, range(10 * seed, 10 * seed + 3))] == [0] * 3
    cache.close()
    assert held(cache) <= budget and not cache._under_way


def test_a_request_for_a_frame_being_read_ahead_waits_for_it():
    frames = Frames()
    frames.gate.clear()
    cache = FrameCache(frames.read, 10 * SIZE, ahead=1)
    assert cache.begin(place(1)) and frames.begun.acquire(timeout=20)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(cache.get, place(1))
        frames.gate.set()
        assert asked.result(20) == content(1)
    cache.close()
    assert frames.reads == [1]


def test_read_ahead_is_bounded():
    frames = Frames()
    frames.gate.clear()
    cache = FrameCache(frames.read, 10 * SIZE, ahead=1)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(cache.get, place(1))
        assert frames.begun.acquire(timeout=20)
        assert not cache.begin(place(2)) and cache.begin(place(1))
        frames.gate.set()
        assert asked.result(20) == content(1)
    assert cache.begin(place(1))  # it is there
    cache.close()
    assert frames.reads == [1]


def test_damage_is_reported_to_the_reader():
    frames = Frames(bad={1})
    cache = FrameCache(frames.read, 10 * SIZE, ahead=1)
    cache.begin(place(1))
    for _ in range(2):
        with pytest.raises(errors.Damaged, match="frame 1"):
            cache.get(place(1))
    cache.begin(place(2))
    assert cache.get(place(2)) == content(2)
    cache.close()


def test_without_room_for_a_thread_nothing_is_read_ahead(monkeypatch):
    def refused(self):
        raise RuntimeError("can't start new thread")

    cache = FrameCache(Frames().read, 10 * SIZE, ahead=1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        assert not cache.begin(place(1))
    assert cache.get(place(1)) == content(1)
    cache.close()
