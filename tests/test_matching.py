"""Points of one domain in two stores: which ones both have, and whether the order of all of them is known."""

import random
from dataclasses import replace

import pytest

from nbdpull.format.manifest import Manifest
from nbdpull.repository.matching import matched
from nbdpull.repository.series import Point

ANY = {
    "parent": None, "domain": "vm1", "uuid": "u", "since": None, "checkpoint": None, "consistency": "frozen",
    "disks": [], "files": [], "versions": {}, "seconds": {},
}  # fmt: skip


def point(number, day, store="one", sha256="0"):
    """Return a point with that number, made on that day of a month."""
    created = f"2026-11-{day:02}T19:45:00+00:00"
    return Point(Manifest(f"p{number}-{store}-{day}", number, created, store, **ANY), sha256)


def clash(here, there):
    found = matched(here, there)
    return [(mine.id, other.id) for mine, other in found.strangers(found.here)]


def test_common_points_and_points_of_only_one():
    one, two, three, four = (point(number, number) for number in (1, 2, 3, 4))
    other = replace(three, sha256="1")
    found = matched([one, two, three, four], [two, other])
    assert (found.same, found.different, found.here, found.there) == ([two], [three], [one, four], [])
    assert (found.older, found.newer, found.newest) == ([one], [four], 3)
    found = matched([one, two], [], unreadable={two.id})
    assert (found.different, found.here, found.newer) == ([two], [one], [one]), "of an unreadable one nothing is known"
    found = matched([], [one])
    assert (found.same, found.here, found.there) == ([], [], [one])
    assert matched([point(0, 1)], []).newer, "zero is a number, too"


@pytest.mark.parametrize("seed", range(3))
def test_random_points_are_each_somewhere_once(seed):
    rng = random.Random(seed)
    every = [point(number, 1 + number % 28) for number in range(40)]
    here = [each for each in every if rng.random() < 0.6]
    there = [replace(each, sha256=rng.choice("01")) for each in every if rng.random() < 0.6]
    found = matched(here, there)
    ids = {each.id: each.sha256 for each in there}
    for each in here:
        where = ids.get(each.id)
        assert (each in found.same, each in found.different, each in found.here) == (
            where == "0", where == "1", where is None
        )  # fmt: skip
    assert sorted(found.older + found.unordered + found.newer, key=here.index) == found.here
    assert {each.id for each in found.there} == set(ids) - {each.id for each in here}


def test_one_history_in_two_stores():
    """One is pulled into after the points of the other were copied to it, and vice versa; points were removed from
    both."""
    first = [point(1, 1), point(2, 2), point(3, 3)]
    second = [point(4, 4, "two"), point(5, 5, "two")]
    assert clash(first, second) == [], "older ones to where the pulls go now"
    assert clash(second, first[:1]) == [], "and newer ones back"
    assert clash([*first, *second, point(6, 6)], [first[1], second[0]]) == []
    assert clash([point(2, 1)], [point(1, 9)]) == [], "a clock that was set back, in one store"


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (point(2, 2), point(2, 2, "two")),  # both were first in their stores
        (point(2, 9), point(3, 3, "two")),  # there came more of them in the same time
        (point(7, 1), point(3, 3, "two")),
        (point(2, 2), point(2, 3)),  # two copies of one store
    ],
)
def test_two_stores_that_were_pulled_into_side_by_side(here, there):
    assert clash([here], [there]) == [(here.id, there.id)] and clash([there], [here]) == [(there.id, here.id)]
    assert clash([here, there], [there]) == [], "where the first store has both, it knows their order"


def test_a_reused_number_does_not_count_as_older():
    """The numbers of two points that were removed here, but exist there, were used again."""
    first, again, last = point(1, 1), point(2, 8), point(3, 4)
    found = matched([first, again], [last])
    assert (found.older, found.unordered, found.newer) == ([first], [again], [])
    found = matched([first, again, last], [last])
    assert (found.older, found.unordered) == ([first, again], []), "here the order is known; the clock was set back"
