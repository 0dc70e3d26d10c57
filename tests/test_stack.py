"""Pages laid over each other: against a model that knows for each byte which frame decides it, and which part of it."""

import random

import numpy
import pytest

from nbdpull.core import extents
from nbdpull.format import layout, stack

SIZE = 300  # bytes of the window


def random_records(rng, size=SIZE, old=()):
    """Return sorted and disjoint records, some of them old ones."""
    found, at = [], 0
    again = {int(each["offset"]): each for each in old}
    while at < size:
        if at in again and rng.random() < 0.5:
            found.append(again[at])
            at = int(again[at]["offset"] + again[at]["length"])
            continue
        length = min(rng.choice([1, 2, 10, 50]), size - at)
        what = rng.randrange(4)
        if what < 3:
            record = numpy.zeros(1, layout.RECORD)[0]
            record["offset"], record["length"] = at, length
            record["kind"] = extents.ZERO if what == 2 else extents.DATA
            if what < 2:
                frame = rng.randrange(3)  # few, so that the same one is met again, also at another place
                record["skip"] = rng.randrange(3)
                record["position"], record["stored"], record["raw"] = 1000 * frame, 7, record["skip"] + length
                record["digest"] = numpy.void(bytes([frame] * 32))
            found.append(record)
        at += length
    return numpy.array(found, layout.RECORD)


def model(layers, size=SIZE):
    """Return for each byte: None if no record has it, 0, or (which frame, where in it)."""
    shown = [None] * size
    for records in layers:
        for record in records:
            start, skip = int(record["offset"]), int(record["skip"])
            for at in range(int(record["length"])):
                frame = (int(record["position"]), skip + at)
                shown[start + at] = frame if record["kind"] == extents.DATA else 0
    return shown


def as_image(shown, whole):
    return [byte or 0 for byte in shown] if whole else shown


@pytest.mark.parametrize("seed", range(20))
def test_visible_records(seed):
    rng = random.Random(seed)
    layers = [random_records(rng) for _ in range(rng.randint(0, 6))]
    start, stop = sorted(rng.sample(range(SIZE + 1), 2))
    expected = [byte if start <= at < stop else None for at, byte in enumerate(model(layers))]
    segments = stack.segments(layers, start, stop)
    for segment in segments:
        record = layers[segment["layer"]][segment["record"]]
        assert record["offset"] <= segment["offset"]
        assert segment["offset"] + segment["length"] <= record["offset"] + record["length"]
    found = stack.flat(layers, start, stop)
    assert extents.flaw(found, SIZE) is None and len(found) == len(segments)
    assert model([found]) == expected
    assert model([stack.data_of(found)]) == [byte or None for byte in expected]
    assert stack.flat([found], start, stop).tobytes() == found.tobytes()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_changed_ranges(seed, whole):
    rng = random.Random(seed)
    for _ in range(10):
        below = stack.flat([random_records(rng) for _ in range(rng.randint(0, 2))], 0, SIZE)
        new = random_records(rng, old=below)
        found = stack.changes(new, below, whole)
        assert extents.flaw(found, SIZE) is None
        assert as_image(model([below, found]), whole) == as_image(model([below, new]), whole)
        data, known = stack.data_of(found), {each.tobytes() for each in below}
        assert not any(each.tobytes() in known for each in data)
        assert len(data) == sum(each.tobytes() not in known for each in stack.data_of(new))
        hidden = model([stack.data_of(below)])
        for zero in new[new["kind"] == extents.ZERO]:  # where it changes nothing, it is not reported
            is_zeroed = any(hidden[int(zero["offset"]) : int(zero["offset"] + zero["length"])]) or not whole
            assert (zero.tobytes() in {each.tobytes() for each in found}) == is_zeroed


def test_a_discard_is_one_record_however_much_it_hides():
    """Otherwise a page would have a record for each frame of a disk that was emptied."""
    below = numpy.zeros(100, layout.RECORD)
    below["offset"], below["length"], below["raw"] = numpy.arange(100) * 10, 10, 10
    below["length"][50:] = 5  # and gaps between them
    zero = layout.zero_records(extents.of([(0, 5000, extents.ZERO)]))
    assert stack.changes(zero, below, whole=True).tobytes() == zero.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_a_stack_stays_low_and_is_seldom_written_again(seed):
    rng, counts, new, again = random.Random(seed), [], 0, 0
    for _ in range(3000):
        counts.append(rng.choice([1, 10, rng.randrange(1, 1000)]))
        new += counts[-1]
        while len(counts) > 1 and stack.merges(counts[-2], counts[-1], len(counts)):
            top = counts.pop()
            counts[-1] += top  # as if nothing hid anything
            again += counts[-1]
        assert len(counts) <= stack.DEPTH
        assert all(below > stack.GROWTH * top for below, top in zip(counts, counts[1:]))
    assert again < 12 * new
