"""Frames that a run has checked, against a set of all that was added."""

import random

import numpy
import pytest

from nbdpull.format import layout
from nbdpull.repository.seen_frames import SeenFrames, one_of_each

PATHS = ["a/vda.0000.zst", "a/vda.0001.zst"]


def record(chance):
    """Of few different frames; some differ only in what they are to hold."""
    made = numpy.zeros(1, layout.RECORD)
    made["position"], made["stored"] = chance.randrange(6) * 100, chance.choice([90, 100])
    made["raw"], made["chunk"] = chance.choice([200, 300]), chance.randrange(3)
    made["offset"], made["digest"] = chance.randrange(1 << 40), numpy.void(bytes([chance.randrange(2)]) * 32)
    return made


def some(chance, most):
    return numpy.concatenate([record(chance)[:0], *(record(chance) for _ in range(chance.randrange(most)))])


def frame(record):
    return tuple(record[name].tobytes() for name in ("position", "stored", "raw", "digest"))


@pytest.mark.parametrize("seed", range(20))
def test_what_was_added_is_known_and_nothing_else(seed):
    """Not even what is at the same place and should hold something else: it would count as checked."""
    chance = random.Random(seed)
    seen, first = SeenFrames(), {path: {} for path in PATHS}
    for _ in range(12):
        path, found = chance.choice(PATHS), some(chance, 6)
        known = [first[path].get(frame(each)[0]) == frame(each) for each in found]
        assert seen.known(path, found).tolist() == known
        seen.add(path, found)
        for each in found:
            first[path].setdefault(frame(each)[0], frame(each))


@pytest.mark.parametrize("seed", range(20))
def test_one_record_of_each_frame(seed):
    chance = random.Random(seed)
    found, kept = some(chance, 40), {}
    for each in found:
        kept.setdefault((int(each["chunk"]), frame(each)), each.tobytes())
    left = [each.tobytes() for each in one_of_each(found)]
    assert {(int(each["chunk"]), frame(each)) for each in one_of_each(found)} == {*kept}
    places = {(int(each["chunk"]), int(each["position"])) for each in found}
    if len(places) == len(kept):  # as in a sound store
        assert left == [*kept.values()], "the first of each, in their order"
