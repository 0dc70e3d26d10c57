"""Reading ahead: the bytes are those of the file, whatever was read before, and memory is bounded."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbdpull.storage import read_ahead
from nbdpull.storage.read_ahead import ReadAhead

KIB = 1 << 10


class Far:
    """A remote file. asked: the ranges that were fetched."""

    def __init__(self, size, seed=1):
        self.data, self.asked = random.Random(seed).randbytes(size), []

    def fetch(self, start, stop):
        self.asked.append((start, stop))
        return self.data[start:stop]

    def read(self, ahead, offset, length, name="file"):
        return ahead.read(name, len(self.data), offset, length, self.fetch)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(read_ahead, "BLOCKS", ((256, KIB), (2 * KIB, 4 * KIB)))
    monkeypatch.setattr(read_ahead, "NEAR", 2 * KIB)


def test_sequential_reads_make_larger_and_larger_requests(small):
    far, ahead = Far(64 * KIB - 100), ReadAhead()
    read = [far.read(ahead, offset, min(64, len(far.data) - offset)) for offset in range(0, len(far.data), 64)]
    assert b"".join(read) == far.data
    assert far.asked[:6] == [(0, 64), (64, 128), (128, 192), (192, KIB), (KIB, 2 * KIB), (2 * KIB, 4 * KIB)]
    assert far.asked[6:] == [
        (start, min(start + 4 * KIB, len(far.data))) for start in range(4 * KIB, 64 * KIB, 4 * KIB)
    ]


def test_random_reads_fetch_nothing_more(small):
    far, ahead = Far(64 * KIB), ReadAhead()
    for offset in (0, 8000, 4000, 60000):
        assert far.read(ahead, offset, 64) == far.data[offset : offset + 64]
    assert [stop - start for start, stop in far.asked] == [64] * 4


def test_any_reads_of_any_files(small):
    chance = random.Random(2)
    files, ahead, at = [Far(20 * KIB, seed) for seed in range(3)], ReadAhead(budget=8 * KIB), [0, 0, 0]
    for _ in range(2000):
        number = chance.randrange(3)
        far = files[number]
        offset = at[number] if chance.random() < 0.8 else chance.randrange(20 * KIB)
        length = min(chance.randrange(300), 20 * KIB - offset)
        assert far.read(ahead, offset, length, f"{number}") == far.data[offset : offset + length]
        at[number] = offset + length if offset + length < 20 * KIB else 0
        assert ahead._used <= 8 * KIB + 4 * KIB
        assert ahead._used == sum(piece.stop - start for (_, start), piece in ahead._pieces.items())


def test_several_threads(small):
    far, ahead = Far(64 * KIB), ReadAhead()
    with ThreadPoolExecutor(4) as pool:
        read = [*pool.map(lambda offset: far.read(ahead, offset, 64), range(0, 64 * KIB, 64))]
    assert b"".join(read) == far.data


def test_failed_requests_are_repeated():
    far, ahead = Far(KIB), ReadAhead()

    def broken(start, stop):
        raise KeyError

    with pytest.raises(KeyError):
        ahead.read("file", KIB, 0, 64, broken)
    assert far.read(ahead, 0, 64) == far.data[:64] and ahead._used == 64


def test_recreated_files_are_fetched_again(small):
    old, new, ahead = Far(16 * KIB), Far(16 * KIB, 2), ReadAhead()
    for offset in range(0, 16 * KIB, 512):
        old.read(ahead, offset, 512)
    ahead.forget("file")
    assert ahead._used == 0 and [*ahead._starts] == []
    assert b"".join(new.read(ahead, offset, 512) for offset in range(0, 16 * KIB, 512)) == new.data
    ahead.forget("another")
