"""JSON objects as dataclasses: valid values are read back, invalid ones are named in one line, whatever they are."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import pytest

from nbdpull.core import members


@dataclass(frozen=True)
class Inner:
    text: str


@dataclass(frozen=True)
class Outer:
    flag: bool
    count: int
    share: float
    maybe: Optional[Inner]
    several: list[Inner]
    named: dict[str, Optional[int]]
    anything: Any
    late: str = "default"
    later: list[str] = field(default_factory=list)


GOOD = {"flag": True, "count": 5, "share": 0.5, "maybe": {"text": "x"}, "several": [{"text": "y"}, {"text": "z"}],
        "named": {"a": None, "b": 0}, "anything": [{}]}  # fmt: skip


def test_valid_members_survive_a_round_trip():
    built = members.build(Outer, {**GOOD, "unknown": 1})
    assert asdict(built) == {**GOOD, "late": "default", "later": []}
    assert built.several == [Inner("y"), Inner("z")]
    assert members.build(Outer, {**GOOD, "share": 1, "maybe": None, "later": ["x"]}).later == ["x"]


@pytest.mark.parametrize("name", GOOD)
def test_missing_members_are_named(name):
    with pytest.raises(ValueError, match=f"^{name} is missing$"):
        members.build(Outer, {other: value for other, value in GOOD.items() if other != name})


@pytest.mark.parametrize(
    "name, value",
    [
        ("flag", 1),
        ("flag", None),
        ("count", True),
        ("count", 1.0),
        ("count", -1),
        ("count", 1 << 64),
        ("share", "1"),
        ("share", False),
        ("maybe", []),
        ("maybe", "x"),
        ("several", {}),
        ("several", None),
        ("several", [None]),
        ("named", []),
        ("named", {"a": "1"}),
        ("late", None),
        ("late", "x" * 4097),
        ("late", "\0"),
        ("later", "x"),
        ("later", [["x"]]),
    ],
)
def test_members_of_a_wrong_type_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as caught:
        members.build(Outer, {**GOOD, name: value})
    assert len(str(caught.value)) < 120


def test_a_text_that_would_be_written_and_not_read():
    flawed = ["x" * (members.MAX_TEXT + 1), "a\0b", "caf\udce9"]
    for text in ["", "x" * members.MAX_TEXT, "日本\n", *flawed]:
        assert bool(members.flaw_of_text(text)) == (text in flawed)


@pytest.mark.parametrize("document", [None, [], "x", 5, [GOOD]])
def test_values_that_are_not_objects(document):
    with pytest.raises(ValueError, match="instead of an object"):
        members.build(Outer, document)


def test_a_value_is_shown_in_a_line_whatever_it_is():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, {"x" * 10**6: deep}, [list(range(10**5))] * 10**5):
        assert len(members.short(value)) <= members.SHORT


@pytest.mark.parametrize("seed", range(20))
def test_any_value_fits_or_is_refused(seed):
    """In the place of any member: a ValueError, or a value of the type that the class declares."""
    rng = random.Random(seed)

    def anything(depth=3):
        make = [lambda: None, lambda: rng.random() < 0.5, lambda: rng.randrange(-5, 1 << 65), rng.random,
                lambda: "text", lambda: [anything(depth - 1) for _ in range(rng.randrange(3))],
                lambda: {rng.choice(["text", "x"]): anything(depth - 1) for _ in range(rng.randrange(3))}]  # fmt: skip
        return rng.choice(make if depth else make[:5])()

    fitted = 0
    for _ in range(500):
        document = {**GOOD, rng.choice([*GOOD, "late", "later"]): anything()}
        try:
            built = members.build(Outer, document)
        except ValueError:
            continue
        fitted += 1
        assert type(built.flag) is bool and type(built.count) is int and type(built.share) in (int, float)
        assert built.maybe is None or type(built.maybe.text) is str
        assert all(type(each.text) is str for each in built.several) and type(built.late) is str
        assert all(value is None or type(value) is int for value in built.named.values())
    assert fitted
