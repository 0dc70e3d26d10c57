"""kubevirt/extent_map: pages become a complete, checked map, against a naive model of a disk; and what of it is stored.
The numbers of `type` collide, so each is tried in both kinds of backup."""

import random

import pytest

from nbdpull.core import errors, extents
from nbdpull.core.choices import BackupType
from nbdpull.kubevirt import extent_map
from nbdpull.kubevirt.extent_map import OVERLAP, WINDOW

FULL, INCREMENTAL = BackupType.FULL, BackupType.INCREMENTAL
WORDS = {FULL: ["data", "hole", "zero", "hole,zero"], INCREMENTAL: ["clean", "dirty", "zero", "dirty,zero"]}
UNIT = 4096


class Server:
    """KubeVirt's behaviour, in units of 4 KiB: ranges are cut to the disk; one that begins at its end is an error."""

    def __init__(self, types, backup_type=FULL, page_size=7):
        self.types, self.backup_type, self.page_size = types, backup_type, page_size
        self.asked = []

    def __call__(self, offset, length):
        self.asked.append((offset, length))
        assert offset % UNIT == 0 and offset // UNIT < len(self.types), "500"
        stop = min(-(-(offset + length) // UNIT), len(self.types))
        runs = []
        for unit in range(offset // UNIT, stop):
            if runs and runs[-1]["type"] == self.types[unit]:
                runs[-1]["length"] += UNIT
            else:
                runs.append({"offset": unit * UNIT, "length": UNIT, "type": self.types[unit],
                             "description": WORDS[self.backup_type][self.types[unit]]})  # fmt: skip
        following = runs[self.page_size]["offset"] if len(runs) > self.page_size else None
        return {"extents": runs[: self.page_size], "next_offset": following}


def units(found, count):
    """Return the kind of each unit, None where no extent has it."""
    kinds = [None] * count
    for offset, length, kind in found.tolist():
        assert offset % UNIT == length % UNIT == 0
        for unit in range(offset // UNIT, (offset + length) // UNIT):
            assert kinds[unit] is None
            kinds[unit] = kind
    return kinds


def runs(rng, count):
    types = []
    while len(types) < count:
        types += [rng.randrange(4)] * rng.choice([1, 1, 2, 5, 40])
    return types[:count]


@pytest.fixture
def small(monkeypatch):
    """Make windows so small that a small disk has many."""
    monkeypatch.setattr(extent_map, "WINDOW", 16 * UNIT)
    monkeypatch.setattr(extent_map, "OVERLAP", 2 * UNIT)


@pytest.mark.parametrize("seed", range(60))
def test_a_map_is_that_of_the_disk(small, seed):
    rng = random.Random(seed)
    types = runs(rng, rng.choice([1, 2, 15, 16, 17, 32, rng.randrange(1, 300)]))
    server = Server(types, rng.choice(BackupType.WORDS), rng.randrange(1, 12))
    found = extent_map.whole(server, server.backup_type, "root")
    assert units(found, len(types)) == types
    assert extent_map.size(found) == len(types) * UNIT
    assert extents.flaw(found, len(types) * UNIT) is None
    assert max(length for _, length in server.asked) <= 18 * UNIT


def test_a_shortened_range_is_continued(small):
    types = runs(random.Random(1), 200)
    server = Server(types)

    def ask(offset, length):
        return server(offset, min(length, 5 * UNIT))

    assert units(extent_map.whole(ask, FULL, "root"), 200) == types


def extent(offset, length, kind=0, word=None):
    return {"offset": offset, "length": length, "type": kind, "description": word}


WRONG = {
    "no map": ["x"],
    "nothing in it": {},
    "a gap": {"extents": [extent(0, 10), extent(20, 10)], "next_offset": None},
    "an overlap": {"extents": [extent(0, 10), extent(5, 10)], "next_offset": None},
    "not what was asked for": {"extents": [extent(512, 512)], "next_offset": None},
    "a page that stands still": {"extents": None, "next_offset": 0},
    "a page that goes back": {"extents": [extent(0, 10)], "next_offset": 0},
    "a page that leaps": {"extents": [extent(0, 10)], "next_offset": 20},
    "a type that nobody knows": {"extents": [extent(0, 10, 4)], "next_offset": None},
    "a negative length": {"extents": [extent(0, -10)], "next_offset": None},
    "a fraction": {"extents": [extent(0, 1.5)], "next_offset": None},
    "true": {"extents": [extent(0, True)], "next_offset": None},
    "a text": {"extents": [extent("0", 10)], "next_offset": None},
    "no offset": {"extents": [{"length": 10, "type": 0}], "next_offset": None},
    "no end": {"extents": [extent(0, 1 << 63)], "next_offset": None},
    "an object for a list": {"extents": {}, "next_offset": None},
    "a next page in words": {"extents": [extent(0, 10)], "next_offset": "10"},
    "the map of another kind": {"extents": [extent(0, 10, 1, "dirty")], "next_offset": None},
    "nothing": {"extents": None, "next_offset": None},
}


@pytest.mark.parametrize("document", WRONG.values(), ids=WRONG)
def test_a_page_that_cannot_be_true_is_refused(document):
    with pytest.raises(errors.SourceError, match="root: the map"):
        extent_map.whole(lambda offset, length: document, FULL, "root")


def test_a_full_map_is_never_taken_for_an_incremental_one():
    """Its data would be clean, and the increment empty."""
    with pytest.raises(errors.SourceError, match="not of an incremental backup"):
        extent_map.whole(Server([0, 0, 3]), INCREMENTAL, "root")
    for word in (None, "", "unknown", "zero"):
        document = {"extents": [extent(0, 512, 1, "dirty"), extent(512, 512, 0, word)], "next_offset": None}
        with pytest.raises(errors.SourceError, match="type 0 is not called clean"):
            extent_map.whole(lambda offset, length, document=document: document, INCREMENTAL, "root")


def test_extents_may_be_null_where_there_are_none(small):
    server = Server([0] * 3)

    def ask(offset, length):
        document = server(offset, length)
        return {**document, "extents": document["extents"] or None}

    assert extent_map.size(extent_map.whole(ask, FULL, "root")) == 3 * UNIT


def test_a_map_that_changes_is_refused(small):
    def ask(offset, length):
        kind = 0 if offset == 0 else 1
        return {"extents": [extent(offset, length, kind)], "next_offset": None}

    with pytest.raises(errors.SourceError, match="has changed"):
        extent_map.whole(ask, FULL, "root")


def test_a_map_that_ends_earlier_than_it_did_is_refused(small):
    def ask(offset, length):
        return {"extents": [extent(offset, length if offset == 0 else UNIT)], "next_offset": None}

    with pytest.raises(errors.SourceError, match="but reached"):
        extent_map.whole(ask, FULL, "root")


@pytest.mark.parametrize("seed", range(20))
def test_a_lost_end_of_a_map_is_requested_again(small, seed):
    """v1.9 merges two contexts, and ends with the shorter one."""
    rng = random.Random(seed)
    types = runs(rng, rng.randrange(20, 200))
    server, lost = Server(types), rng.randrange(1, 18)

    def ask(offset, length):
        limit = (len(types) - lost) * UNIT
        return server(offset, min(length, limit - offset)) if offset < limit else server(offset, length)

    def behind(offset):
        return server(offset, UNIT) if offset < len(types) * UNIT else None

    assert units(extent_map.whole(ask, FULL, "root", behind), len(types)) == types


def test_a_map_that_ends_where_the_disk_does_not_is_refused(small):
    nothing = {"extents": None, "next_offset": None}
    with pytest.raises(errors.SourceError, match="but the disk does not"):
        extent_map.whole(Server([0] * 3), FULL, "root", lambda offset: nothing)


def test_a_map_that_ends_within_a_sector_is_refused():
    document = {"extents": [extent(0, 700)], "next_offset": None}
    with pytest.raises(errors.SourceError, match="ends at byte 700, inside a sector"):
        extent_map.whole(lambda offset, length: document, FULL, "root")


def test_windows_begin_before_the_end_of_what_is_known():
    """A range that begins at the end of the disk is an error of the server, and a disk may be exactly as long as a
    window."""
    assert 0 < OVERLAP < WINDOW
    asked = []

    def ask(offset, length):
        asked.append(offset)
        stop = min(offset + length, WINDOW)
        assert offset < WINDOW
        return {"extents": [extent(offset, stop - offset)], "next_offset": None}

    assert extent_map.size(extent_map.whole(ask, FULL, "root")) == WINDOW
    assert asked == [0, WINDOW - OVERLAP]


def stored_model(types, backup_type, dirty_from, parent):
    """Return, by a naive rule, what has to be stored of each unit. parent: whether the older image has data there."""
    result = []
    for unit, kind in enumerate(types):
        zero = bool(kind & 2)
        changed = backup_type == FULL or kind & 1 or unit * UNIT >= dirty_from or (zero and parent[unit])
        result.append((extents.ZERO if zero else extents.DATA) if changed else None)
    return result


@pytest.mark.parametrize("seed", range(60))
def test_stored_ranges_of_a_map(seed):
    rng = random.Random(seed)
    count = rng.randrange(1, 200)
    types, parent = runs(rng, count), [rng.random() < 0.5 for _ in range(count)]
    found = extent_map.whole(Server(types), FULL, "root")
    backup_type = rng.choice(BackupType.WORDS)
    dirty_from = rng.choice([0, count, rng.randrange(count + 1)]) * UNIT
    data = extents.merged(extents.of((unit * UNIT, UNIT, 0) for unit in range(count) if parent[unit]))
    asked = []

    def held(start, stop):
        asked.append((start, stop))
        return data[(extents.ends(data) > start) & (data["offset"] < stop)]

    result = extent_map.stored(found, backup_type, dirty_from, held)
    assert units(result, count) == stored_model(types, backup_type, dirty_from, parent)
    assert extents.flaw(result, count * UNIT) is None and len(extents.merged(result)) == len(result)
    assert len(asked) <= 1
    assert found["kind"].max() <= 3 and units(found, count) == types  # it is as it was


def test_a_hole_promises_nothing():
    """Only ZERO does: a range of a full backup that is allocated nowhere may read as the data below it."""
    found = extent_map.stored(extent_map.whole(Server([1]), FULL, "root"), FULL, 0, None)
    assert found["kind"].tolist() == [extents.DATA]


@pytest.mark.parametrize("seed", range(40))
def test_requests_have_every_range_once(seed):
    rng, at, ranges = random.Random(seed), 0, []
    for _ in range(rng.randrange(40)):
        at += rng.choice([0, 0, 512, extent_map.MAX_BRIDGED, extent_map.MAX_BRIDGED + 1, 1 << 22])
        length = rng.choice([512, 65536, 1 << 20])
        ranges.append((at, length))
        at += length
    limit = rng.choice([1, 1 << 16, 1 << 20, 8 << 20])
    found = extent_map.requests(ranges, limit)
    assert [number for each in found for number in each.wanted] == list(range(len(ranges)))
    for each in found:
        assert each.length <= limit or len(each.wanted) == 1
        assert (each.offset, each.length) == (
            ranges[each.wanted[0]][0],
            sum(ranges[each.wanted[-1]]) - ranges[each.wanted[0]][0],
        )
    waste = sum(each.length for each in found) - sum(length for _, length in ranges)
    assert 0 <= waste <= len(ranges) * extent_map.MAX_BRIDGED


def test_adjacent_ranges_are_requested_together():
    [request] = extent_map.requests([(0, 512), (512, 512), (1024, 512)], 1 << 20)
    assert request == (0, 1536, [0, 1, 2])
