"""A volume of a KubeVirt backup as the source of a disk, against a naive model. test_extent_map.py has the map."""

import random
from types import SimpleNamespace

import pytest

from nbdpull.core import errors, extents
from nbdpull.core.choices import BackupType
from nbdpull.kubevirt import volume
from nbdpull.kubevirt.extent_map import DIRTY, ZERO
from nbdpull.kubevirt.volume import Volume

FULL, INCREMENTAL = BackupType.FULL, BackupType.INCREMENTAL
WORDS = {FULL: ["data", "hole", "zero", "hole,zero"], INCREMENTAL: ["clean", "dirty", "zero,clean", "dirty,zero"]}
UNIT = 4096


class Endpoint:
    """A disk of units, as KubeVirt shows it; `reads`: the ranges that were requested."""

    def __init__(self, kinds, backup_type, content=b""):
        self.kinds, self._words, self.content, self.reads = kinds, WORDS[backup_type], content, []

    def map_page(self, name, offset, length):
        assert name == "vda" and offset % UNIT == 0 and offset // UNIT < len(self.kinds)
        units = range(offset // UNIT, min(-(-(offset + length) // UNIT), len(self.kinds)))
        return {"extents": [{"offset": unit * UNIT, "length": UNIT, "type": self.kinds[unit],
                             "description": self._words[self.kinds[unit]]} for unit in units]}  # fmt: skip

    def map_behind(self, _name, _offset):
        return None

    def read_into(self, _name, offset, buffer):
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.content[offset : offset + len(buffer)]


def some(chance, backup_type, count=60):
    kinds = []
    while len(kinds) < count:
        kinds += [chance.randrange(4)] * chance.choice([1, 1, 2, 9])
    return Volume(Endpoint(kinds[:count], backup_type), "vda", backup_type), kinds[:count]


def units(found):
    """Return {unit: kind} of extents; no unit is twice among them."""
    kinds = {}
    for batch in found:
        for offset, length, kind in batch.tolist():
            for unit in range(offset // UNIT, (offset + length) // UNIT):
                assert unit not in kinds and (not kinds or unit > max(kinds))
                kinds[unit] = kind
    return kinds


def as_ranges(chosen):
    return extents.merged(extents.of((unit * UNIT, UNIT, extents.DATA) for unit in sorted(chosen)))


def kind_of(number):
    return extents.ZERO if number & ZERO else extents.DATA


@pytest.mark.parametrize("seed", range(12))
def test_what_is_laid_over_an_older_image(seed):
    chance = random.Random(seed)
    made, kinds = some(chance, INCREMENTAL)
    everything = range(len(kinds))
    held = {unit for unit in everything if chance.randrange(2)}
    again = {unit for unit in everything if chance.randrange(5) == 0}
    grown_at = chance.randrange(len(kinds) + 1)
    expected = {
        unit: kind_of(kinds[unit]) for unit in everything
        if kinds[unit] & DIRTY or unit >= grown_at or (kinds[unit] & ZERO and unit in held)
    }  # fmt: skip
    presumed = again - set(expected)
    made.changed(grown_at * UNIT, lambda _start, _stop: as_ranges(held), as_ranges(again))
    assert units(made.extents()) == {**expected, **{unit: kind_of(kinds[unit]) for unit in presumed}}
    assert made.presumed == len(presumed) * UNIT
    start = chance.randrange(len(kinds))
    assert set(units(made.extents(start * UNIT))) == {unit for unit in {*expected, *presumed} if unit >= start}


@pytest.mark.parametrize("backup_type", [FULL, INCREMENTAL])
def test_without_an_older_image(backup_type):
    """All of a full map is stored; and all that is dirty of the other, with everything behind byte 0."""
    made, kinds = some(random.Random(1), backup_type)
    assert units(made.extents()) == {unit: kind_of(kind) for unit, kind in enumerate(kinds)}
    assert (made.size, made.presumed) == (len(kinds) * UNIT, 0)
    assert made.allocated == UNIT * sum(not kind & ZERO for kind in kinds) and made.reports_zeros


@pytest.mark.parametrize("seed", range(4))
def test_reads_are_few_and_right(seed, monkeypatch):
    monkeypatch.setattr(volume, "MAX_REQUEST", 50_000)
    chance = random.Random(seed)
    content = chance.randbytes(600 * UNIT)
    endpoint = Endpoint([0] * 600, FULL, content)
    made = Volume(endpoint, "vda", FULL)
    ranges, at = [], 0
    while at < len(content) - 90_000:
        at += chance.choice([0, 512, 20_000, 100_000])
        length = min(chance.choice([512, 4096, 70_000]), len(content) - at)
        if length > 0:
            ranges.append((at, length))
        at += length
    with made.reading() as reader:
        found = reader.read_batch(ranges)
    assert [bytes(view) for view in found] == [content[offset : offset + length] for offset, length in ranges]
    longest = max(length for _, length in ranges)
    assert all(length <= max(50_000, longest) for _, length in endpoint.reads)
    assert len(endpoint.reads) < len(ranges)  # small gaps are read and discarded


@pytest.mark.parametrize("change", [
    lambda kinds: kinds[:-1], lambda kinds: [*kinds, 0], lambda kinds: [*kinds[:-1], 3 - kinds[-1]],
])  # fmt: skip
def test_a_backup_that_is_another_one_at_the_end(change):
    made, kinds = some(random.Random(2), INCREMENTAL)
    made.require_same()
    made._endpoint.kinds = change(kinds)
    with pytest.raises(errors.JobLost, match="volume vda: the backup is no longer the one that was read"):
        made.require_same()


def test_a_map_that_is_none_at_the_end():
    made, _ = some(random.Random(2), INCREMENTAL)
    made._endpoint = SimpleNamespace(map_page=lambda *_args: {"extents": "none"})
    with pytest.raises(errors.JobLost):
        made.require_same()
