"""Which ranges are read together, and how much of the map is requested: pure functions, compared with a naive
reader."""

import random

import pytest

from nbdpull.nbd import batching

UNIT = 4096
DISK = 64  # units


@pytest.mark.parametrize("gap, reads", [(0, 1), (batching.BRIDGE, 1), (batching.BRIDGE + 512, 2)])
def test_ranges_close_together_share_a_read(gap, reads):
    joined = batching.bridged([(4096, 512), (4608 + gap, 1024)])
    assert len(joined) == reads
    assert sum(length for _, length, _ in joined) == 1536 + (gap if reads == 1 else 0)


def some_ranges(rng):
    """Return ascending, disjoint ranges, some of them adjacent."""
    edges = sorted(rng.sample(range(DISK), 2 * rng.randint(0, DISK // 4)))
    found = [(start * UNIT, (stop - start) * UNIT) for start, stop in zip(edges[::2], edges[1::2])]
    return [piece for each in found for piece in (cut_once(rng, *each) if rng.random() < 0.3 else [each])]


def cut_once(rng, offset, length):
    at = rng.randrange(0, length, UNIT)
    return [(offset, at), (offset + at, length - at)] if at else [(offset, length)]


def naive_reads(ranges):
    """Read unit by unit: what is wanted, and a gap of no more than BRIDGE between two such units."""
    wanted = sorted({at for offset, length in ranges for at in range(offset, offset + length, UNIT)})
    filled = set(wanted)
    for one, next_one in zip(wanted, wanted[1:]):
        if next_one - (one + UNIT) <= batching.BRIDGE:
            filled |= set(range(one, next_one, UNIT))
    return filled


@pytest.mark.parametrize("seed", range(100))
def test_reads_are_those_of_a_naive_reader(seed):
    ranges = some_ranges(random.Random(seed))
    reads = batching.bridged(ranges)
    units = [at for offset, length, _ in reads for at in range(offset, offset + length, UNIT)]
    assert units == sorted(naive_reads(ranges))  # ascending, none twice
    assert [each for _, _, within in reads for each in within] == ranges
    for offset, length, within in reads:
        assert all(offset <= start and start + size <= offset + length for start, size in within)
        assert (offset, offset + length) == (within[0][0], sum(within[-1]))


@pytest.mark.parametrize("seed", range(30))
def test_steps_are_all_of_it(seed):
    rng = random.Random(seed)
    length, most = rng.randrange(50), rng.randint(1, 20)
    pieces = list(batching.steps(length, most))
    assert [at + byte for at, size in pieces for byte in range(size)] == list(range(length))
    assert all(size == most for _, size in pieces[:-1]) and all(0 < size <= most for _, size in pieces)


@pytest.mark.parametrize("seed", range(30))
def test_loads_are_all_pieces(seed):
    """In order, and as few as possible: the next piece would have been one too many, or too large."""
    rng = random.Random(seed)
    most_bytes, most = rng.randint(1, 30), rng.randint(1, 5)
    pieces = [(at, memoryview(bytes(rng.randint(1, 20)))) for at in range(rng.randrange(40))]
    loads = list(batching.loads(pieces, most_bytes, most))
    assert [piece for load in loads for piece in load] == pieces and all(loads)
    for load, following in zip(loads, [*loads[1:], None]):
        size = sum(len(view) for _, view in load)
        assert len(load) <= most and (size <= most_bytes or len(load) == 1)
        assert not following or len(load) == most or size + len(following[0][1]) > most_bytes


@pytest.mark.parametrize("seed", range(50))
def test_neighbours_are_made_one(seed):
    ranges = [(offset, offset + length) for offset, length in some_ranges(random.Random(seed))]
    joined = batching.joined(ranges)
    assert [at for start, stop in joined for at in range(start, stop, UNIT)] == [
        at for start, stop in ranges for at in range(start, stop, UNIT)
    ]
    assert all(stop < start for (_, stop), (start, _) in zip(joined, joined[1:]))


def test_next_window_follows_the_time_that_one_took():
    window = 4 * batching.MIN_STATUS
    assert batching.next_window(window, batching.SLOW_STATUS * 2) == window // 2
    assert batching.next_window(window, batching.QUICK_STATUS / 2) == window * 2
    assert batching.next_window(window, (batching.SLOW_STATUS + batching.QUICK_STATUS) / 2) == window
    assert batching.next_window(batching.MIN_STATUS, 10) == batching.MIN_STATUS
    assert batching.next_window(batching.MAX_STATUS, 0) == batching.MAX_STATUS
