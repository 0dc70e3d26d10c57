"""Range algebra against a model that considers every single byte."""

import random

import numpy
import pytest

from nbdpull.core import extents
from nbdpull.core.extents import DATA, ZERO

SIZE = 120
SEEDS = range(150)
CLEAN = -1


def random_extents(rng, size=SIZE, gap=True, touching=True):
    """Return sorted, disjoint extents within [0, size); some are adjacent."""
    found, at = [], 0
    while at < size:
        length = min(rng.randint(1, rng.choice([2, 10, 40])), size - at)
        if not gap or rng.random() < 0.6:
            found.append((at, length, rng.choice([DATA, ZERO])))
        at += length + (0 if touching else 1)
    return extents.of(found)


def kinds(found, size=SIZE):
    """Return the kind of each byte, CLEAN outside of all extents."""
    model = [CLEAN] * size
    for offset, length, kind in found.tolist():
        assert set(model[offset : offset + length]) == {CLEAN}, "extents overlap"
        model[offset : offset + length] = [kind] * length
    return model


def pairs(found):
    return [(offset, length) for offset, length, *_ in found.tolist()]


def is_sorted(found):
    return all(a + n <= b for (a, n), (b, _) in zip(pairs(found), pairs(found)[1:]))


# -- combine_status ---------------------------------------------------------------------------------------------------


def random_status(rng, at_most):
    """Return a reply as from a server: neighbours may have the same flags, and its end may be before or after the
    limit."""
    lengths = [rng.randint(1, rng.choice([2, 30])) for _ in range(rng.randint(1, 8))]
    return numpy.array(lengths, "u8"), numpy.array([rng.randrange(at_most) for _ in lengths], "u8")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_combine_status(count):
    for seed in SEEDS:
        rng = random.Random(seed)
        start = rng.choice([0, 7, 1 << 40])
        replies = [random_status(rng, 4) for _ in range(count)]
        limit = start + rng.randint(1, 100)
        offsets, lengths, flags, end = extents.combine_status(start, limit, *replies)

        known = [numpy.repeat(f, n.astype(int)).tolist() for n, f in replies]
        covered = min([limit - start, *map(len, known)])
        cuts = {0} | {int(c) for n, _ in replies for c in numpy.cumsum(n) if c < covered}
        assert end == start + covered
        assert [int(o) - start for o in offsets] == sorted(cuts)
        assert (offsets + lengths).tolist() == [*offsets[1:].tolist(), end]
        for mine, theirs in zip(flags, known):
            assert numpy.repeat(mine, lengths.astype(int)).tolist() == theirs[:covered]


def test_combine_status_skips_empty_runs():
    reply = numpy.array([0, 4, 0, 3, 0], "u8"), numpy.array([9, 1, 9, 2, 9], "u8")
    offsets, lengths, (flags,), end = extents.combine_status(10, 50, reply)
    assert (offsets.tolist(), lengths.tolist(), flags.tolist(), end) == ([10, 14], [4, 3], [1, 2], 17)


@pytest.mark.parametrize("nothing", [([], []), ([0], [1])], ids=["no entry", "an empty entry"])
def test_an_empty_reply_ends_where_it_starts(nothing):
    reply = tuple(numpy.array(part, "u8") for part in nothing)
    other = numpy.array([10], "u8"), numpy.array([0], "u8")
    offsets, lengths, flags, end = extents.combine_status(5, 50, other, reply)
    assert end == 5
    assert lengths.sum() == 0
    assert len(offsets) == len(lengths) == len(flags[0]) == len(flags[1])


# -- merged, merged_stream --------------------------------------------------------------------------------------------


def assert_merged(result, found):
    assert kinds(result) == kinds(found)
    assert is_sorted(result)
    for (offset, length, kind), (following, _, next_kind) in zip(result.tolist(), result.tolist()[1:]):
        assert (offset + length, kind) != (following, next_kind), "neighbours that should be one"


def test_merged():
    for seed in SEEDS:
        found = random_extents(random.Random(seed))
        assert_merged(extents.merged(found), found)


def test_merged_leaves_its_argument_alone():
    found = extents.of([(0, 1, DATA), (1, 1, DATA)])
    assert pairs(extents.merged(found)) == [(0, 2)]
    assert pairs(found) == [(0, 1), (1, 1)]


def test_merged_stream():
    for seed in SEEDS:
        rng = random.Random(seed)
        found = random_extents(rng)
        cuts = sorted(rng.choices(range(len(found) + 1), k=rng.randint(0, 6)))
        stream = list(extents.merged_stream(iter(numpy.split(found, cuts))))
        assert all(len(batch) for batch in stream)
        assert_merged(numpy.concatenate([extents.of([]), *stream]), found)


def test_merged_stream_is_lazy():
    def batches():
        yield extents.of([(0, 1, DATA), (5, 1, DATA)])
        raise AssertionError("drawn too early")

    assert pairs(next(extents.merged_stream(batches()))) == [(0, 1)]


@pytest.mark.parametrize("waiting", [3, 1 << 16])
def test_with_edge(monkeypatch, waiting):
    """If more waits than is allowed, other clean data may be reported as well, and everything necessary is."""
    monkeypatch.setattr(extents, "MAX_WAITING", waiting)
    for seed in SEEDS:
        rng = random.Random(seed)
        found = random_extents(rng, gap=rng.random() < 0.5)
        found["kind"] = [rng.choice([DATA, ZERO, extents.CLEAN, extents.CLEAN]) for _ in found]
        found, length = extents.merged(found), rng.choice([1, 5, 40, 1000])
        stream = numpy.split(found, sorted(rng.choices(range(len(found) + 1), k=rng.randint(0, 6))))
        noted = []
        known = numpy.concatenate([extents.of([]), *extents.with_edge(iter(stream), length, noted.append)])
        clean = [sum(pair) for pair in pairs(found[found["kind"] == extents.CLEAN])]
        first = max(clean[-1] - length, 0) if clean else 0
        expected = [(DATA if at >= first else CLEAN) if kind == extents.CLEAN else kind
                    for at, kind in enumerate(kinds(found))]  # fmt: skip
        assert is_sorted(known)
        presumed = sum(a == DATA and b == extents.CLEAN for a, b in zip(kinds(known), kinds(found)))
        assert sum(map(extents.total, noted)) == presumed
        if waiting > SIZE:
            assert kinds(known) == expected
        else:
            more = [a for a, b, kind in zip(kinds(known), expected, kinds(found)) if a != b and kind != extents.CLEAN]
            assert more == [] and all(a == b for a, b in zip(kinds(known), expected) if b != CLEAN)


def test_with_edge_is_lazy():
    """Nothing waits unless clean data comes before it."""

    def batches():
        yield extents.of([(0, 1, DATA), (5, 1, ZERO)])
        raise AssertionError("drawn too early")

    assert pairs(next(extents.with_edge(batches(), 5))) == [(0, 1), (5, 1)]


# -- cut, batches, clip -----------------------------------------------------------------------------------------------


def test_cut():
    for seed in SEEDS:
        rng = random.Random(seed)
        found, size = random_extents(rng), rng.randint(1, 50)
        result = extents.cut(found, size)
        assert kinds(result) == kinds(found)
        assert is_sorted(result)
        assert all(offset // size == (offset + length - 1) // size for offset, length in pairs(result))
        uncut = [e for e in found.tolist() if e[0] // size == (e[0] + e[1] - 1) // size]
        assert set(uncut) <= set(result.tolist())
        needed = sum((o + n - 1) // size - o // size + 1 for o, n in pairs(found))
        assert len(result) == needed


def test_cut_only_some():
    for seed in SEEDS:
        rng = random.Random(seed)
        found, size = random_extents(rng), rng.randint(1, 20)
        result = extents.cut(found, size, only=found["kind"] == DATA)
        assert kinds(result) == kinds(found)
        assert [e for e in result.tolist() if e[2] == ZERO] == [e for e in found.tolist() if e[2] == ZERO]
        assert all(o // size == (o + n - 1) // size for o, n, kind in result.tolist() if kind == DATA)


def test_cut_far_out():
    """A disk may have 2^63 bytes; nothing may be computed in floating point or with a sign."""
    start = (1 << 63) - (1 << 20) - 5
    result = extents.cut(extents.of([(start, 1 << 20, DATA)]), 1 << 20)
    assert pairs(result) == [(start, 5), (start + 5, (1 << 20) - 5)]


def test_cut_keeps_other_fields():
    segments = numpy.array([(3, 9, 4, 5)], extents.SEGMENT)
    assert extents.cut(segments, 8).tolist() == [(3, 5, 4, 5), (8, 4, 4, 5)]


def test_batches():
    for seed in SEEDS:
        rng = random.Random(seed)
        found, data_bytes, count = random_extents(rng), rng.randint(1, 60), rng.randint(1, 6)
        parts = extents.batches(found, data_bytes, count)
        assert [e for part in parts for e in part.tolist()] == found.tolist()
        longest = int(found["length"].max()) if len(found) else 0
        for part in parts:
            assert 1 <= len(part) <= count
            assert extents.total(part, DATA) < data_bytes + longest


def test_batches_are_not_too_small():
    found = extents.of([(i * 10, 10, DATA) for i in range(12)])
    assert [len(part) for part in extents.batches(found, 40, 100)] == [4, 4, 4]
    assert [len(part) for part in extents.batches(found, 1000, 5)] == [5, 5, 2]


def test_clip():
    for seed in SEEDS:
        rng = random.Random(seed)
        found = random_extents(rng)
        start, stop = sorted(rng.choices(range(SIZE + 1), k=2))
        result = extents.clip(found, start, stop)
        expected = [kind if start <= at < stop else CLEAN for at, kind in enumerate(kinds(found))]
        assert kinds(result) == expected
        assert (result["length"] > 0).all()


def test_clip_to_nothing():
    assert len(extents.clip(extents.of([(0, 10, DATA)]), 5, 5)) == 0


# -- flaw, gaps -------------------------------------------------------------------------------------------------------


def test_sound_lists_have_no_flaw():
    for seed in SEEDS:
        assert extents.flaw(random_extents(random.Random(seed)), SIZE) is None


@pytest.mark.parametrize(
    "ranges, message",
    [
        ([(0, 5), (7, 0)], "empty"),
        ([(0, 5), (90, 11)], "past the end of 100"),
        ([(100, 1)], "past the end"),
        ([(5, (1 << 64) - 2)], "past the end"),
        ([((1 << 64) - 1, 1)], "past the end"),
        ([(0, 5), (4, 2)], "overlap or are out of order"),
        ([(10, 5), (0, 5)], "overlap or are out of order"),
        ([(10, 5), (10, 5)], "overlap or are out of order"),
    ],
)
def test_flaws(ranges, message):
    assert message in extents.flaw(extents.of([(*each, DATA) for each in ranges]), 100)


def test_no_overlap_escapes():
    """Move one range of a sound list: it is found whenever a byte is reported twice or the order is broken."""
    for seed in SEEDS:
        rng = random.Random(seed)
        found = random_extents(rng)
        if len(found) < 2:
            continue
        moved = found.copy()
        moved["offset"][rng.randrange(len(moved))] = rng.randrange(SIZE)
        fits = all(o + n <= SIZE for o, n in pairs(moved))
        assert (extents.flaw(moved, SIZE) is None) == (is_sorted(moved) and fits)


def test_gaps():
    for seed in SEEDS:
        rng = random.Random(seed)
        start, stop = sorted(rng.choices(range(SIZE + 1), k=2))
        found = extents.clip(random_extents(rng), start, stop)
        missing = {at for at, kind in enumerate(kinds(found)) if kind == CLEAN and start <= at < stop}
        known = extents.gaps(found, start, stop)
        assert {at for offset, length in known for at in range(offset, offset + length)} == missing
        assert all(a + n < b for (a, n), (b, _) in zip(known, known[1:])), "gaps that should be one"


def test_totals():
    found = extents.of([(0, 3, DATA), (3, 4, ZERO), (9, 5, DATA)])
    assert (extents.total(found), extents.total(found, DATA), extents.total(found, ZERO)) == (12, 8, 4)
    assert extents.total(extents.of([(0, 1 << 62, DATA), (1 << 62, 1 << 62, DATA)])) == 1 << 63


# -- overlay ----------------------------------------------------------------------------------------------------------


def random_segments(rng, layer):
    ranges = pairs(random_extents(rng))
    return numpy.array([(o, n, layer, i) for i, (o, n) in enumerate(ranges)], extents.SEGMENT)


def owners(segments):
    model = [None] * SIZE
    for offset, length, layer, record in segments.tolist():
        assert set(model[offset : offset + length]) == {None}, "segments overlap"
        model[offset : offset + length] = [(layer, record)] * length
    return model


def test_overlay():
    for seed in SEEDS:
        rng = random.Random(seed)
        model, result = [None] * SIZE, numpy.empty(0, extents.SEGMENT)
        for layer in range(rng.randint(1, 6)):
            upper = random_segments(rng, layer)
            model = [above or below for above, below in zip(owners(upper), model)]
            result = extents.overlay(result, upper)
            assert owners(result) == model
            assert is_sorted(result)


def test_covered():
    for seed in SEEDS:
        rng = random.Random(seed)
        found, others = random_extents(rng), [random_extents(rng) for _ in range(rng.randint(1, 4))]
        if any(map(len, others)):
            held = {byte for each in others for at, length in pairs(each) for byte in range(at, at + length)}
            inside = [held.issuperset(range(at, at + length)) for at, length in pairs(found)]
            assert extents.covered(found, others).tolist() == inside


def test_overlay_does_not_cut_what_it_need_not():
    """A record that nothing covers remains one segment; a million of them must not become two million."""
    lower = numpy.array([(0, 100, 0, 0)], extents.SEGMENT)
    upper = numpy.array([(40, 10, 1, 0), (90, 10, 1, 1)], extents.SEGMENT)
    both = extents.overlay(lower, upper)
    assert both.tolist() == [(0, 40, 0, 0), (40, 10, 1, 0), (50, 40, 0, 0), (90, 10, 1, 1)]
    assert extents.overlay(upper, lower).tolist() == [(0, 100, 0, 0)]


def test_parts_of_ranges_that_are_not_in_others():
    for seed in range(200):
        rng = random.Random(seed)
        ranges, others = random_extents(rng), random_extents(rng)
        inside = {at for offset, length, _ in others.tolist() for at in range(offset, offset + length)}
        expected = {
            (at, kind)
            for offset, length, kind in ranges.tolist()
            for at in range(offset, offset + length)
            if at not in inside
        }
        found = extents.without(ranges, others)
        assert extents.flaw(found, SIZE) is None
        known = {(at, kind) for offset, length, kind in found.tolist() for at in range(offset, offset + length)}
        assert known == expected
        start, stop = sorted(rng.sample(range(SIZE + 1), 2))
        met = [each for each in ranges.tolist() if each[0] < stop and each[0] + each[1] > start]
        assert extents.meeting(ranges, start, stop).tolist() == met
