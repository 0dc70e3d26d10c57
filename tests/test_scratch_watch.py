"""How scratch grew, in few samples however long the job is. faults/test_space.py tests what the watch does to jobs."""

import random

import pytest

from nbdpull.pulling.scratch_watch import GROWTH_SAMPLES, Growth


@pytest.mark.parametrize("looks", [0, 1, GROWTH_SAMPLES - 1, GROWTH_SAMPLES, GROWTH_SAMPLES + 1, 1000, 12345])
def test_samples_are_looks_and_evenly_spread(looks):
    rng = random.Random(looks)
    sizes = [rng.randrange(1 << 40) for _ in range(looks)]
    growth = Growth()
    for at, size in enumerate(sizes):
        growth.note(1000.0 + 0.5 * at, size)
    every = 1
    while -(-looks // every) >= GROWTH_SAMPLES:
        every *= 2
    assert growth.samples == [[0.5 * at, sizes[at]] for at in range(0, looks, every)]
