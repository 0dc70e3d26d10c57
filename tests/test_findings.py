"""Findings beside points: the newest one of a kind counts, and whatever somebody has written breaks no reader."""

import itertools
import json
import random
from types import SimpleNamespace

import pytest
from memory_store import MemoryStore

from nbdpull.core import errors
from nbdpull.format import findings, layout

POINTS = [SimpleNamespace(id=f"20261122T19450{number}Z-7f3a9c04", sha256=str(number) * 64) for number in range(4)]
KINDS = [findings.VERIFY, findings.DRILL, findings.DIGEST]


@pytest.fixture
def series():
    found = SimpleNamespace(store=MemoryStore(), folder="vm1")
    found.store.make_folder("vm1")
    return found


def put(series, kind, when, points, name=None, **about):
    """A finding of that time; its id."""
    document = {"format": layout.FORMAT, "requires": [], "kind": kind, "when": when, "who": "root@host", **about}
    name = name or layout.new_point_id()
    series.store.publish(f"vm1/{name}.{kind}.json", layout.seal({**document, "points": points}))
    return name


def entry(point, number):
    return {**findings.entry(point), "verdict": str(number), "damages": 0}


def day(number):
    return f"2026-11-{number + 1:02}T00:00:00.000+00:00"


@pytest.mark.parametrize("seed", range(5))
def test_the_newest_of_a_kind_counts_for_each_point(series, seed):
    """Of this very point: not one of its name that was there before."""
    chance, reported = random.Random(seed), {}
    days = chance.sample(range(20), 12)
    for number in days:
        kind, points = chance.choice(KINDS), chance.sample(POINTS, chance.randrange(1, 4))
        entries = [entry(point, number) for point in points]
        if chance.random() < 0.3:
            entries[0]["manifest_sha256"] = "f" * 64
        put(series, kind, day(number), entries, level="frames")
        for each in entries:
            if each["manifest_sha256"] != "f" * 64:
                reported.setdefault((kind, each["point"]), []).append(number)
    found = findings.load(series)
    assert [each["when"] for each in found] == sorted(map(day, days)) and findings.left_out(series, found) == []
    chance.shuffle(found)
    for kind, point in itertools.product(KINDS, POINTS):
        numbers = reported.get((kind, point.id), [])
        newest = findings.newest(sorted(found, key=lambda each: each["when"]), POINTS, kind)[point.id]
        assert newest.get("verdict") == (str(max(numbers)) if numbers else None)


def test_a_finding_of_the_future_does_not_count(series):
    """A clock was wrong. Only a digest is right at any time."""
    future = "2999-01-01T00:00:00.000+00:00"
    for kind in KINDS:
        put(series, kind, day(1), [entry(POINTS[0], 1)], level="frames")
        put(series, kind, future, [entry(POINTS[0], 2)], level="frames")
    newest = [findings.newest(findings.load(series), POINTS, kind)[POINTS[0].id]["verdict"] for kind in KINDS]
    assert newest == ["1", "1", "2"]


GOOD = {"format": layout.FORMAT, "requires": [], "kind": "verify", "when": day(1), "who": "a@b", "level": "frames",
        "points": [entry(POINTS[0], 1)]}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "drill"},
        {"when": "yesterday"},
        {"when": None},
        {"points": {}},
        {"points": [{"point": POINTS[0].id}]},
        {"points": [{**entry(POINTS[0], 1), "damages": None}]},
        {"points": [{**entry(POINTS[0], 1), "places": [5]}]},
        {"points": [{**entry(POINTS[0], 1), "settles": "all"}]},
        {"level": None},
        {"shard": [1]},
        {"sample": "much"},
    ],
    ids=range(11),
)
def test_invalid_findings_are_left_out_and_named(series, wrong):
    series.store.publish("vm1/20261122T194500Z-aaaaaa.verify.json", layout.seal({**GOOD, **wrong}))
    series.store.publish("vm1/20261122T194500Z-bbbbbb.verify.json", layout.seal(GOOD))
    found = findings.load(series)
    assert [each["id"] for each in found] == ["20261122T194500Z-bbbbbb"]
    [message] = findings.left_out(series, found)
    path = series.store.path("vm1", "20261122T194500Z-aaaaaa.verify.json")
    assert message == (
        f"{path} cannot be read, and may record that a point is damaged or failed a drill: it lacks a member, or one "
        f"has a wrong type; run nbdpull verify {series.store.root}, then remove that file"
    )


@pytest.mark.parametrize(
    "data, reason, advice",
    [
        (b"{}", "not a document of an nbdpull store", "then remove that file"),
        (layout.seal(GOOD).replace(b"frames", b"flames"), "does not match", "then remove that file"),
        (layout.seal({**GOOD, "requires": ["moon"]}), "needs moon, this nbdpull reads", "use a newer nbdpull"),
    ],
    ids=range(3),
)
def test_a_finding_that_is_left_out_has_a_reason(series, data, reason, advice):
    """Nobody is to remove what a newer nbdpull has found."""
    series.store.publish("vm1/20261122T194500Z-aaaaaa.verify.json", data)
    [message] = findings.left_out(series, [])
    assert reason in message and message.endswith(advice)


def test_one_that_another_run_has_stored_meanwhile_is_not_left_out(series):
    """A verification at the same time, say: a message would advise the user to remove what it has just found."""
    found = findings.load(series)
    put(series, findings.VERIFY, day(1), [entry(POINTS[0], 1)], level="frames")
    assert findings.left_out(series, found) == []


def test_a_digest_that_is_left_out_hides_no_damage(series):
    series.store.publish("vm1/20261122T194500Z-aaaaaa.digest.json", b"")
    assert findings.left_out(series, findings.load(series)) == []


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, json.dumps(GOOD).encode()])
def test_unsealed_findings_are_left_out(series, data):
    series.store.publish("vm1/20261122T194500Z-aaaaaa.verify.json", data)
    assert findings.load(series) == []


def test_stored_findings_are_found_again_and_a_failure_is_a_warning(series, monkeypatch):
    assert findings.kept(series, findings.VERIFY, level="frames", points=[entry(POINTS[0], 5)]) == []
    [found] = findings.load(series)
    assert (found["points"], found["kind"]) == ([entry(POINTS[0], 5)], "verify") and "@" in found["who"]

    def full(*_):
        raise errors.OutputFull("no space left")

    monkeypatch.setattr(series.store, "publish", full)
    [warning] = findings.kept(series, findings.VERIFY, level="frames", points=[])
    assert warning == "the result is not kept: no space left"
