"""Retention: a naive model by definition, the laws that hold for any series, and the words in the table."""

import random
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from nbdpull.cli import types
from nbdpull.repository.retention import Candidate, Policy, decided

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)
NOW = datetime(2027, 6, 1, tzinfo=timezone.utc)
COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Kiritimati")


def at(*points, **how):
    """Return candidates with these times in ISO 8601, UTC, in the order of commits."""
    times = [datetime.fromisoformat(f"{text}+00:00") for text in points]
    return [Candidate(f"p{n}", n, when, **how) for n, when in enumerate(times, 1)]


def kept(points, now=NOW, **policy):
    """Return {id: {rule: its period}} of those that are kept."""
    return {each.id: each.kept_by for each in decided(points, Policy(**policy), now).decisions if each.stays}


def rules(points, **policy):
    """Return [(id, rule: its period), …], without what is not due to the policy."""
    own = {name: dict(by) for name, by in kept(points, **policy).items()}
    return {name: {r: t for r, t in by.items() if r in (*COUNTS, "within")} for name, by in own.items()}


# -- by examples ------------------------------------------------------------------------------------------------------


def test_the_newest_of_each_day_that_has_points():
    """Days without a point are not counted."""
    points = at("2026-03-01T01:00", "2026-03-01T23:00", "2026-03-09T01:00", "2026-03-20T01:00", "2026-03-20T05:00")
    assert kept(points, keep_daily=3) == {
        "p2": {"daily": "2026-03-01"},
        "p3": {"daily": "2026-03-09"},
        "p5": {"newest": "", "newest-sound": "", "daily": "2026-03-20"},
    }
    assert list(kept(points, keep_daily=2)) == ["p3", "p5"]


def test_a_rule_counts_for_itself():
    """As with restic; Proxmox Backup Server would go back further, because a day that is kept does not count for a
    week."""
    points = at("2026-03-02T00:00", "2026-03-09T00:00", "2026-03-10T00:00", "2026-03-11T00:00")
    assert rules(points, keep_daily=2, keep_weekly=2) == {
        "p1": {"weekly": "2026-W10"},
        "p3": {"daily": "2026-03-10"},
        "p4": {"daily": "2026-03-11", "weekly": "2026-W11"},
    }


def test_iso_weeks_belong_to_the_year_of_their_thursday():
    points = at("2026-12-27T23:59", "2026-12-28T00:00", "2027-01-03T23:59", "2027-01-04T00:00")
    assert rules(points, keep_weekly=9) == {
        "p1": {"weekly": "2026-W52"}, "p3": {"weekly": "2026-W53"}, "p4": {"weekly": "2027-W01"},
    }  # fmt: skip


def test_days_are_those_of_the_time_zone():
    points = at("2026-06-30T21:59", "2026-06-30T22:01")
    assert rules(points, keep_daily=9) == {"p2": {"daily": "2026-06-30"}}
    berlin = rules(points, keep_daily=9, keep_monthly=9, time_zone="Europe/Berlin")
    assert berlin["p1"] == {"daily": "2026-06-30", "monthly": "2026-06"}
    assert berlin["p2"] == {"daily": "2026-07-01", "monthly": "2026-07"}


def test_the_repeated_hour_counts_once():
    points = at("2026-10-24T23:30", "2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T02:30")
    assert rules(points, keep_hourly=9, time_zone="Europe/Berlin") == {
        "p1": {"hourly": "2026-10-25 01h"}, "p3": {"hourly": "2026-10-25 02h"}, "p4": {"hourly": "2026-10-25 03h"},
    }  # fmt: skip


def test_within_is_counted_from_the_newest_point():
    """Points of a domain without new points are not removed as time passes."""
    points = at("2026-03-01T00:00", "2026-03-02T00:00", "2026-03-09T00:00", "2026-03-16T00:00")
    week = {"keep_within": 14 * 86400.0}
    assert rules(points, **week) == {"p2": {"within": "14d"}, "p3": {"within": "14d"}, "p4": {"within": "14d"}}
    early = replace(points[3], created=NOW + timedelta(days=900))
    assert set(kept([*points[:3], early], **week)) == {"p1", "p2", "p3", "p4"}, "one of the future is not the newest"


def test_the_last_are_those_committed_last():
    assert rules(at("2026-03-01T00:00", "2026-03-01T00:00", "2026-03-01T00:01"), keep_last=2) == {
        "p2": {"last": "2 of 2"}, "p3": {"last": "1 of 2"},
    }  # fmt: skip


def test_points_that_no_policy_removes():
    points = at(*(f"2026-03-01T{hour:02}:00" for hour in range(10)))
    for number, how in ((1, "pinned"), (2, "partial"), (3, "verified"), (4, "verified"), (5, "drilled")):
        points[number] = replace(points[number], **{how: True})
    points[9] = replace(points[9], damaged=True)
    assert kept(points, keep_yearly=1) == {
        "p2": {"pinned": ""}, "p3": {"partial": ""}, "p5": {"newest-verified": ""}, "p6": {"newest-drilled": ""},
        "p9": {"newest-sound": "", "yearly": "2026"}, "p10": {"newest": "", "yearly": "2026"},
    }  # fmt: skip


def test_a_damaged_point_does_not_count():
    points = at("2026-03-01T01:00", "2026-03-01T02:00", "2026-03-02T01:00", "2026-03-02T02:00")
    points[3] = replace(points[3], damaged=True)
    assert list(kept(points, keep_last=1)) == ["p3", "p4"] == list(kept(points, keep_daily=1))
    assert list(kept(points, keep_daily=2)) == ["p2", "p3", "p4"]


def test_a_partial_point_does_not_count():
    points = at("2026-03-01T01:00", "2026-03-02T01:00", "2026-03-03T01:00")
    points[2] = replace(points[2], partial=True)
    assert kept(points, keep_last=1) == {
        "p2": {"newest": "", "newest-sound": "", "last": "1 of 1"}, "p3": {"partial": ""},
    }  # fmt: skip


def test_a_clock_that_went_backwards_keeps():
    """p2 is of a day that never was, or p3 and p4 are: it is unknown which. p1 and p5 are in order."""
    points = at("2026-03-01T01:00", "2026-03-09T02:00", "2026-03-02T01:00", "2026-03-02T02:00", "2026-03-10T00:00",
                "2026-03-11T00:00")  # fmt: skip
    assert kept(points, keep_daily=1) == {
        "p2": {"clock": "its time is after that of p3"},
        "p3": {"clock": "its time is before that of p2"},
        "p4": {"clock": "its time is before that of p2"},
        "p6": {"newest": "", "newest-sound": "", "daily": "2026-03-11"},
    }


def test_more_than_half_needs_force():
    points = at(*(f"2026-03-0{day}T00:00" for day in range(1, 9)))
    assert [decided(points, Policy(keep_last=count), NOW).needs_force for count in (3, 4, 5)] == [True, False, False]
    partial = at(*["2026-02-01T00:00"] * 50, partial=True)
    ordered = [replace(point, id=f"x{n}", sequence=n) for n, point in enumerate([*partial, *points])]
    assert decided(ordered, Policy(keep_last=3), NOW).needs_force, "what is never removed does not count"
    assert decided([], Policy(keep_last=1), NOW).removed == [] and not decided([], Policy(keep_last=1), NOW).needs_force


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
@pytest.mark.parametrize("name", ZONES)
def test_a_time_at_the_end_of_all_time(text, name):
    """Anyone who can write to a store can write any time."""
    strange = Candidate("strange", 3, datetime.fromisoformat(text))
    policy = {"keep_last": 1, "keep_weekly": 1, "keep_within": 1e12, "time_zone": name}
    assert "strange" in kept([*at("2026-03-01T00:00", "2026-03-02T00:00"), strange], **policy)


# -- any series -------------------------------------------------------------------------------------------------------


def series(rng):
    """Return points of some months: regular or in bursts, sometimes with damage, pins and wrong clocks."""
    points, when = [], BEGIN + timedelta(hours=rng.randrange(10_000))
    step, faults = rng.choice([900, 3600, 40_000, 86_400, 900_000]), rng.choice([0, 0, 0.1])
    for sequence in range(rng.randrange(40)):
        when += timedelta(seconds=rng.choice([step, step, rng.randrange(step * 3), 0]))
        wrong = timedelta(days=rng.choice([-400, -1, 1, 400])) if rng.random() < faults else timedelta(0)
        often = {"pinned": 0.05, "partial": 0.1, "damaged": 0.1, "verified": 0.3, "drilled": 0.05}
        flags = {name: rng.random() < share for name, share in often.items()}
        points.append(Candidate(f"p{sequence}", sequence * 2, when + wrong, **flags))
    return points


def policy(rng):
    rules = {f"keep_{name}": rng.choice([0, 0, 1, 2, 3, 7]) for name in COUNTS}
    rules["keep_within"] = rng.choice([0.0, 0.0, 3600.0, 86400.0 * 3, 86400.0 * 60])
    if not any(rules.values()):
        rules[rng.choice(list(rules))] = 1
    return Policy(**rules, time_zone=rng.choice(ZONES))


def cases(count, seed=1):
    rng = random.Random(seed)
    return [(rng, series(rng), policy(rng)) for _ in range(count)]


def names(points, policy, now=NOW):
    return {each.id for each in decided(points, policy, now).decisions if each.stays}


# The naive model: each sentence of the documentation as a condition on one point, in time that nobody counts.


def period(point, rule, zone):
    local = point.created.astimezone(ZoneInfo(zone))
    return {
        "hourly": (local.year, local.month, local.day, local.hour),
        "daily": local.date(),
        "weekly": tuple(local.isocalendar())[:2],
        "monthly": (local.year, local.month),
        "yearly": local.year,
    }[rule]


def is_kept_by(rule, count, point, among, zone):
    """Return whether it is one of the last `count`, or the newest of its period, which is one of the newest `count`."""
    later = [other for other in among if other.sequence > point.sequence]
    if rule == "last":
        return len(later) < count
    newer = {period(other, rule, zone) for other in later}
    return period(point, rule, zone) not in newer and len(newer) < count


def stays(point, points, policy, now):
    whole = [other for other in points if not other.partial]
    behind = {b.id for b in whole for a in whole if a.sequence < b.sequence and a.created > b.created}
    in_order = [other for other in whole if other.id not in behind]
    return (
        point.partial
        or point.pinned
        or any(is_newest(point, whole, kind) for kind in KINDS)
        or point.id in behind
        or any(is_compared(point, other, whole) for other in whole if other.id in behind)
        or any(
            is_kept_by(rule, getattr(policy, f"keep_{rule}"), point, among, policy.time_zone)
            for those in (in_order, whole)
            for among in ([other for other in those if not other.damaged], those)
            for rule in COUNTS
            if (rule == "last") == (those is whole) and point in among
        )
        or is_within(point, whole, policy.keep_within, now)
    )


KINDS = (lambda _: True, lambda point: not point.damaged, lambda point: point.verified, lambda point: point.drilled)


def is_newest(point, whole, is_such):
    return is_such(point) and point.sequence == max(other.sequence for other in whole if is_such(other))


def is_compared(point, behind, whole):
    """Return whether it is the one that a point out of order was compared with."""
    before = [other for other in whole if other.sequence < behind.sequence]
    return max(before, key=lambda other: (other.created, other.sequence)) == point


def is_within(point, whole, seconds, now):
    newest = max([other.created for other in whole if other.created <= now] or [now])
    return bool(seconds) and newest <= point.created + timedelta(seconds=seconds)


def test_as_the_model_has_it():
    for rng, points, chosen in cases(60):
        now = rng.choice([NOW, BEGIN + timedelta(hours=rng.randrange(12_000))])
        expected = {point.id for point in points if stays(point, points, chosen, now)}
        assert names(rng.sample(points, len(points)), chosen, now) == expected, (points, chosen, now)


def test_what_was_kept_is_kept_again():
    for _, points, chosen in cases(80, seed=2):
        left = [point for point in points if point.id in names(points, chosen)]
        again = decided(left, chosen, NOW)
        assert again.removed == [] and not again.needs_force


def test_to_keep_more_never_removes():
    for rng, points, chosen in cases(80, seed=3):
        rule = rng.choice([f"keep_{name}" for name in (*COUNTS, "within")])
        more = replace(chosen, **{rule: getattr(chosen, rule) + rng.choice([1, 2, 5])})
        assert names(points, chosen) <= names(points, more)


def test_each_rule_keeps_as_many_as_it_says():
    """Of sound points in order, as far as there are enough hours, days … that have some."""
    for _, points, chosen in cases(60, seed=4):
        points = [replace(each, partial=False, damaged=False) for each in sorted(points, key=lambda each: each.created)]
        points = [replace(each, sequence=number) for number, each in enumerate(points)]
        decisions = decided(points, chosen, NOW).decisions
        for rule in COUNTS[1:]:
            there = {period(point, rule, chosen.time_zone) for point in points}
            named = [each.kept_by[rule] for each in decisions if rule in each.kept_by]
            assert len(named) == len(set(named)) == min(len(there), getattr(chosen, f"keep_{rule}"))


def test_the_newest_of_each_kind_stays():
    for _, points, chosen in cases(60, seed=5):
        stay = names(points, chosen)
        whole = [point for point in points if not point.partial]
        for those in (whole, [p for p in whole if not p.damaged], [p for p in whole if p.verified],
                      [p for p in whole if p.drilled]):  # fmt: skip
            assert not those or those[-1].id in stay
        assert {point.id for point in points if point.partial or point.pinned} <= stay


# -- policies ---------------------------------------------------------------------------------------------------------


def test_a_policy_is_written_and_read():
    for _, _, chosen in cases(30, seed=6):
        assert Policy.of(chosen.members) == chosen
        words = str(chosen).split()
        options = dict(zip(words[::2], words[1::2]))
        assert set(options) == {
            f"--{name.replace('_', '-')}" for name in chosen.members if chosen.members[name] != "UTC"
        }
        assert types.duration(options.get("--keep-within", "1s")) == (chosen.keep_within or 1)
    assert str(Policy(keep_daily=1_000_000, keep_within=90.0)) == "--keep-daily 1000000 --keep-within 90s"
    for seconds in (0.5, 1_000_001.0, 86_400 * 1000.0, 1e12, 12_345_678.25):
        assert types.duration(str(Policy(keep_within=seconds)).split()[1]) == seconds


@pytest.mark.parametrize(
    "document, why",
    [
        ({}, "keeps nothing"),
        ({"keep_daily": 0}, "keeps nothing"),
        ({"time_zone": "Europe/Berlin"}, "keeps nothing"),
        ({"keep_daily": 7, "keep_tagged": 1}, "keep_tagged"),
        ({"keep_daily": -1}, "keep_daily"),
        ({"keep_daily": True}, "keep_daily"),
        ({"keep_daily": 7.0}, "keep_daily"),
        ({"keep_within": -1.0}, "keep_within"),
        ({"keep_within": 1e13}, "keep_within"),
        ({"keep_daily": 10**13}, "keep_daily"),
        ({"keep_within": float("nan")}, "keep_within"),
        ({"keep_within": float("inf")}, "keep_within"),
        ({"keep_daily": 7, "time_zone": "Europe/Nowhere"}, "Europe/Nowhere"),
        ({"keep_daily": 7, "time_zone": "../../etc/passwd"}, "passwd"),
        ({"keep_daily": 7, "time_zone": "Europe"}, "Europe"),
        ({"keep_daily": 7, "time_zone": ""}, "time zone"),
    ],
)
def test_invalid_policies(document, why):
    with pytest.raises(ValueError, match=why):
        Policy.of(document)
