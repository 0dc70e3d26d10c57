"""What a verification checks of a store: all shards together are everything, once; a sample is its share."""

import random

import numpy
import pytest

from nbdpull.format import layout
from nbdpull.format.manifest import FileEntry
from nbdpull.repository.part import Part

POINT = "20261122T194500Z-7f3a9c04"
FILES = [FileEntry(f"{POINT}/vda.{number:04d}.zst", 1, "0" * 64) for number in range(7)]
OTHERS = [f"{POINT}/{name}" for name in ("manifest.json", "vda.index", "vda.directory", "domain.xml")]


def records(chance, count):
    """Of frames, some of which are there several times."""
    found = numpy.zeros(count, layout.RECORD)
    found["chunk"] = [chance.randrange(len(FILES)) for _ in range(count)]
    digests = [chance.randbytes(32) for _ in range(count // 2 + 1)]
    found["digest"] = numpy.frombuffer(b"".join(chance.choice(digests) for _ in range(count)), found["digest"].dtype)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_shards_cover_everything_exactly_once(count):
    """The same in each run: what none of them has is never looked at."""
    chance = random.Random(count)
    shards = [Part(shard=(number, count)) for number in range(1, count + 1)]
    many = [f"{POINT}/vda.{number:04d}.zst" for number in range(200)]
    assert [sum(part.file(path) for part in shards) for path in many] == [1] * 200
    assert all(part.file(path) for part in shards for path in OTHERS)
    found = records(chance, 500)
    assert sum(part.frames(found, FILES).astype(int) for part in shards).tolist() == [1] * 500
    assert sorted(n for part in shards for n in part.numbers(numpy.arange(100)).tolist()) == [*range(100)]
    again = Part(shard=(1, count))
    assert again.salt != shards[0].salt and (again.frames(found, FILES) == shards[0].frames(found, FILES)).all()
    assert [part.is_everything for part in shards] == [count == 1] * count


@pytest.mark.parametrize("seed", range(2))
def test_samples_have_their_share_and_cover_everything_in_time(seed):
    chance = random.Random(seed)
    parts = [Part(sample=0.2, salt=chance.getrandbits(32)) for _ in range(60)]
    found = records(chance, 5_000)
    seen = [part.frames(found, FILES) for part in parts]
    assert all(0.15 < each.mean() < 0.25 for each in seen) and numpy.logical_or.reduce(seen).all()
    same = {}
    for digest, is_seen in zip(found["digest"].tolist(), seen[0].tolist()):
        assert same.setdefault(digest, is_seen) == is_seen, "whichever point refers to it"
    many = [f"{POINT}/vda.{number:04d}.zst" for number in range(1000)]
    assert 150 < sum(map(parts[0].file, many)) < 250 and all(map(parts[0].file, OTHERS))
    assert all(any(part.file(path) for part in parts) for path in many)
    rest = Part(sample=1.0, salt=chance.getrandbits(32))
    assert rest.frames(found, FILES).all() and all(map(rest.file, many)) and rest.is_everything


def test_only_named_files_are_checked():
    part = Part(paths=frozenset([FILES[2].path, OTHERS[1]]), sample=0.0001)
    found = records(random.Random(1), 300)
    assert (part.frames(found, FILES) == (found["chunk"] == 2)).all()
    assert [path for path in [*(each.path for each in FILES), *OTHERS] if part.file(path)] == [FILES[2].path, OTHERS[1]]
    assert not part.is_everything
