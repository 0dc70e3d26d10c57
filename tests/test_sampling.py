"""The sample by which a plan estimates: how much of a disk it takes, and what it measures."""

import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("nbd")

from nbdpull.core import extents  # noqa: E402
from nbdpull.pulling import sampling  # noqa: E402
from nbdpull.pulling.sampling import Sample  # noqa: E402

MIB = 1 << 20


class Source:
    """A disk whose content is made by a function of (offset, length); `read`: the ranges that were read."""

    def __init__(self, content):
        self._content, self.read = content, []

    @contextmanager
    def reading(self):
        yield self

    def read_batch(self, ranges):
        self.read += ranges
        return [self._content(offset, length) for offset, length in ranges]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Each look at the clock takes `clock.step` seconds."""
    clock = SimpleNamespace(now=0.0, step=0.0)

    def monotonic():
        clock.now += clock.step
        return clock.now

    monkeypatch.setattr(sampling, "time", SimpleNamespace(monotonic=monotonic))
    return clock


def noise(_offset, length):
    return random.Random(3).randbytes(length)


def test_a_sample_is_of_data_only_and_ends(clock):
    source = Source(noise)
    sample = Sample(source)
    sample.add(
        extents.of([(0, 3 * MIB, extents.DATA), (3 * MIB, 50 * MIB, extents.ZERO), (53 * MIB, 512, extents.DATA)])
    )
    assert sum(length for _, length in source.read) == 3 * MIB + 512
    assert all(offset < 3 * MIB or offset >= 53 * MIB for offset, _ in source.read)
    assert 0.99 < sample.ratio < 1.1  # noise is not compressed


def test_what_is_alike_is_stored_once_compressed():
    sample = Sample(Source(lambda _offset, length: bytes([7]) * length))
    sample.add(extents.of([(0, 2 * MIB, extents.DATA)]))
    assert 0 < sample.ratio < 0.01


def test_a_sample_takes_so_many_bytes(monkeypatch):
    monkeypatch.setattr(sampling, "MAX_BYTES", 2 * MIB)
    source = Source(noise)
    sample = Sample(source)
    for start in range(0, 10 * MIB, MIB):
        sample.add(extents.of([(start, MIB, extents.DATA)]))
    assert sum(length for _, length in source.read) == 2 * MIB


def test_a_sample_takes_so_many_seconds(clock):
    clock.step = 0.4  # each piece takes that long
    source = Source(noise)
    sample = Sample(source)
    sample.add(extents.of([(0, 10 * MIB, extents.DATA)]))
    assert sum(length for _, length in source.read) == 3 * MIB and sample.seconds == pytest.approx(1.2)
    assert sample.seconds_a_byte == pytest.approx(1.2 / (3 * MIB))


def test_a_disk_without_data():
    sample = Sample(Source(noise))
    sample.add(extents.of([(0, MIB, extents.ZERO)]))
    assert (sample.seconds, sample.seconds_a_byte, sample.ratio) == (0.0, 0.0, 1.0)
