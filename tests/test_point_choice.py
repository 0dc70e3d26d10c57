"""Prefixes of ids and times, against a naive model; and a store that is asked for them."""

import random
from datetime import datetime, timedelta, timezone

import pytest
import stores

from nbdpull.core import errors
from nbdpull.operations import store_choice
from nbdpull.repository import marker, point_choice, series_choice

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=timezone.utc)
EAST = timezone(timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("2026-11-22", "2026-11-22T23:59:59.999999+00:00"),
        ("2026-11-22 18:00", "2026-11-22T18:00:59.999999+00:00"),
        ("2026-11-22T18:00", "2026-11-22T18:00:59.999999+00:00"),
        ("2026-11-22 8:05:07", "2026-11-22T08:05:07.999999+00:00"),
        ("2026-11-22T19:45:00+00:00", "2026-11-22T19:45:00.999999+00:00"),
        ("2026-11-22T19:45:00.250000+00:00", "2026-11-22T19:45:00.999999+00:00"),
        ("2026-11-22 18:00Z", "2026-11-22T18:00:59.999999+00:00"),
        ("2026-11-22 18:00+02:00", "2026-11-22T18:00:59.999999+02:00"),
        ("2026-11-22 18:00-03:30", "2026-11-22T18:00:59.999999-03:30"),
        ("today", "2026-11-24T23:59:59.999999+00:00"),
        ("yesterday", "2026-11-23T23:59:59.999999+00:00"),
        ("yesterday 18:00", "2026-11-23T18:00:59.999999+00:00"),
    ],
)
def test_a_time_is_its_last_instant(text, last):
    found = point_choice.moment(text, NOW, timezone.utc)
    assert found.isoformat() == last


def test_a_day_is_that_of_the_zone():
    late = datetime(2026, 11, 23, 20, 0, tzinfo=timezone.utc)  # the 24th in the east
    assert point_choice.moment("today", late, EAST) == datetime(2026, 11, 25, tzinfo=EAST) - timedelta(microseconds=1)
    assert point_choice.moment("yesterday 18:00Z", late, EAST).isoformat() == "2026-11-22T18:00:59.999999+00:00"


@pytest.mark.parametrize("text", ["", "latest", "20261122", "20261122T194500Z-7f3a9c04", "18:00", "2026-11", "all",
                                  "2026-11-22 ", "2026-11-22\n", "tomorrow", "yesterday18:00"])  # fmt: skip
def test_what_is_not_a_time(text):
    assert point_choice.moment(text, NOW) is None


@pytest.mark.parametrize("text", ["2026-02-30", "2026-13-01", "2026-11-22 24:00", "yesterday 12:60", "0000-01-01",
                                  "2026-11-22 12:00:61"])  # fmt: skip
def test_a_time_that_does_not_exist(text):
    with pytest.raises(ValueError, match="is not a time that exists"):
        point_choice.moment(text, NOW)


def test_short_ids_against_a_naive_model():
    chance = random.Random(11)
    for _ in range(200):
        ids = ["".join(chance.choices("ab", k=8)) for _ in range(chance.randrange(12))]
        least = chance.randrange(1, 8)
        shown = point_choice.short(ids, least)
        assert set(shown) == set(ids)
        for each, text in shown.items():
            fit = [n for n in range(least, 9) if not any(o != each and o.startswith(each[:n]) for o in ids)]
            assert text == each[: min(fit)]
            assert point_choice.beginning_with(text, sorted(set(ids))) == [each]


def test_prefixes_of_ids():
    ids = ["aa", "aab", "b"]
    assert point_choice.beginning_with("a", ids) == ["aa", "aab"]
    assert point_choice.beginning_with("aa", ids) == ["aa"], "a whole one is not the beginning of another"
    assert point_choice.beginning_with("", ids) == point_choice.beginning_with("c", ids) == []
    assert point_choice.listed([]) == "none"
    assert point_choice.listed(list("abcdef")) == "c, d, e, f and 2 more"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("chosen") / "store", points=3)


def _series(vm):
    return series_choice.only_series(marker.open_store(str(vm.root)))


def test_a_store_finds_a_point_by_prefix(store):
    ids = [point.id for point in store.points]
    for each, text in point_choice.short(ids).items():
        assert _series(store).point(text).id == store_choice.find_point(str(store.root), text)[1].id == each
    common = ids[0][:2]
    with pytest.raises(errors.NoSuchPoint, match=f"{common} fits 3 points: ") as caught:
        _series(store).point(common)
    assert all(each in str(caught.value) for each in ids)
    with pytest.raises(errors.NoSuchPoint, match="no point x"):
        _series(store).point("x")


def test_a_store_finds_a_point_by_time(store):
    """Against the plain rule: the newest of all that are not later."""
    target = _series(store)
    times = sorted({point.when for point in target.points()})
    for when in [*times, times[-1] + timedelta(days=1)]:
        text = when.isoformat()
        until = point_choice.moment(text, NOW)
        model = max((point for point in target.points() if point.when <= until),
                    key=lambda point: (point.when, point.manifest.sequence))  # fmt: skip
        assert target.point(text).id == store_choice.find_point(str(store.root), text)[1].id == model.id
    with pytest.raises(errors.NoSuchPoint, match="at or before 1999-12-31"):
        target.point("1999-12-31")
    with pytest.raises(errors.NoSuchPoint, match="is not a time that exists"):
        target.point("2026-02-30")
