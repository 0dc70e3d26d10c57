"""Proving: what a proof reads is kept only after it succeeds, and read again if it was wrong."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from nbdpull.core import errors
from nbdpull.storage.cache import Cache
from nbdpull.storage.proving import Proving


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "cache"), 64 << 20, pytest.fail)


class Server:
    """A server of one piece; asked: how often it was requested."""

    def __init__(self, cache, data=b"right"):
        self.proving, self.data, self.asked = Proving(cache), data, 0

    def read(self):
        found = self.proving.get("piece")
        if found is None:
            self.asked += 1
            found = self.data
            self.proving.fetched(found, "piece")
        return found

    def proved(self):
        data = self.read()
        if data != b"right":
            raise errors.Damaged("wrong")
        return data

    def run(self):
        return self.proving.run(self.proved)


def test_data_is_cached_after_its_proof(cache):
    server = Server(cache)
    assert [server.run(), server.run(), server.asked] == [b"right", b"right", 1]


def test_what_is_wrong_is_not_kept_and_not_asked_for_twice_at_once(cache):
    server = Server(cache, b"wrong")
    with pytest.raises(errors.Damaged):
        server.run()
    assert (server.asked, cache.get("piece")) == (1, None)


def test_what_is_wrong_in_the_cache_is_fetched_once(cache):
    cache.put(b"wrong", "piece")
    server = Server(cache, b"wrong, too")
    with pytest.raises(errors.Damaged):
        server.run()
    assert server.asked == 1
    server.data = b"right"
    assert [server.run(), server.asked, cache.get("piece")] == [b"right", 2, b"right"]


def test_what_is_wrong_in_memory_is_fetched(cache):
    server, memory = Server(cache), b"wrong"

    def read():
        found = server.proving.old(memory)
        return server.proved() if found is None else Server(None, found).run()

    assert server.proving.run(read) == b"right"


def test_without_a_proof_there_is_no_cache(cache):
    cache.put(b"wrong", "piece")
    server = Server(cache)
    assert (server.read(), cache.get("piece")) == (b"right", b"wrong")
    assert server.proving.old(b"memory") == b"memory"


def test_a_proof_in_a_proof_is_a_part_of_it(cache):
    """Otherwise the outer one would put back what the inner one found to be wrong."""
    cache.put(b"wrong", "piece")
    server = Server(cache)

    def outer():
        server.read()
        return server.run()

    assert (server.proving.run(outer), server.asked, cache.get("piece")) == (b"right", 2, b"right")


def test_another_thread_has_its_own(cache):
    server = Server(cache)
    with ThreadPoolExecutor(1) as pool:
        assert server.proving.run(lambda: pool.submit(lambda: server.proving.is_on).result()) is False


def test_without_a_cache():
    server = Server(None)
    assert [server.run(), server.run(), server.asked] == [b"right", b"right", 2]
