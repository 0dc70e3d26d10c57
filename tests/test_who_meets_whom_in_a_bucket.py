"""All interleavings of those that meet in a store without locks (docs/design.md), on a small model: no point that is
there to stay lacks a file, and no number is there twice.

As in test_who_meets_whom.py: each step is what others can see of one request, all orders are tried, with time passing
and one death anywhere, and without any one of RULES the model finds a loss. A step takes no time where it says so: a
request that takes hours is what MARGIN is for.

Pure: the package is not used. What the steps really are tests/test_lock_free.py looks at.
"""

import sys
from functools import cache
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

import interleavings
import pytest
from interleavings import END

COUNTED_ON, GRACE, TICKS = 1, 2, 3  # ticks
RULES = frozenset({
    "grace",  # files stay for a while after the last point that referred to them
    "base",  # a pull that leans on a removed base has begun just now
    "number",  # after its manifest is there, a point looks for another one of its number
    "doomed",  # a copy counts on nothing that may be about to be swept
    "doomed at the end",  # nor when it commits
    "counted on",  # of points that are there as each of a copy's begins, which is to end soon
    "as listed",  # a sweep removes only what was there when it decided
    "by two",  # a removal takes away no name that another one may have given
    "mark",  # before it removes a file it leaves a mark, which outlives the files; no copy brings any of them meanwhile
    "in time",  # it stops before the mark is old
    "one sweep",  # a second one leaves alone what has a young mark
    "as it was",  # who heals a file of a removed point does not make its removal young
    "half points",  # of others stay for a while
    "alive",  # a pull that stood still gives up
})  # fmt: skip


class Bucket(NamedTuple):
    """points: {(id, number, files, whether it stays)}; removed: {(id, files, when)}; half: {(id, when its last file was
    made)}; files: those that are there, each of the point that it begins with; marks: {(id, when it was swept)}."""

    points: frozenset
    removed: frozenset
    half: frozenset
    files: frozenset
    now: int = 0
    marks: frozenset = frozenset()

    def loss(self):
        staying = [point for point in self.points if point[3]]
        numbers = [point[1] for point in staying]
        lacks = frozenset().union(*(files for _, _, files, _ in staying)) - self.files
        return bool(lacks) or len(numbers) > len({*numbers})


def begun():
    one, two = frozenset({"1d", "1x"}), frozenset({"2d", "1x"})
    return Bucket(frozenset({("1", 1, one, True), ("2", 2, two, True)}), frozenset(), frozenset(), one | two)


COPIED = "1"
AT_ONCE = {"commit", "prove", "withdraw", "unname"}  # places that no time passes in


def ids(bucket):
    return {point[0] for point in bucket.points}


def files_of(name, bucket):
    return frozenset(file for file in bucket.files if file[0] == name)


def is_marked(bucket, name):
    """Whether somebody may be removing files of a directory."""
    return any(marked == name and bucket.now - when < COUNTED_ON for marked, when in bucket.marks)


def made(bucket, name, *files):
    half = frozenset(each for each in bucket.half if each[0] != name)
    return bucket._replace(files=bucket.files | {*files}, half=half | {(name, bucket.now)})


def pull(bucket, at, rules, name):
    """Lay a point over the newest one."""
    if at is None:
        base = max(bucket.points, key=lambda point: point[1:2], default=("", 0, frozenset(), True))
        below = frozenset(file for file in base[2] if file[1] == "x")
        return bucket, ("announce", base[0], below, bucket.now, base[1] + 1, False)
    place, *told = at
    base, below, when, number, stood = told
    stood = stood or any(half == name and bucket.now - made_at >= COUNTED_ON for half, made_at in bucket.half)
    told[-1] = stood
    if place == "announce":
        return bucket._replace(half=bucket.half | {(name, bucket.now)}), ("write", *told)
    elif place == "write":
        return made(bucket, name, f"{name}d", f"{name}x"), ("check", *told)
    elif place == "check":
        late = base and base not in ids(bucket) and bucket.now - when >= COUNTED_ON
        is_over = (late and "base" in rules) or (stood and "alive" in rules)
        return bucket, END if is_over else ("commit", *told)
    elif place == "commit":
        half = frozenset(each for each in bucket.half if each[0] != name)
        point = name, number, below | {f"{name}d", f"{name}x"}
        return bucket._replace(points=bucket.points | {(*point, False)}, half=half), ("prove", *told)
    return proved(bucket, name, rules, at)


def proved(bucket, name, rules, at):
    """The last two steps of who makes a point: it stays, or goes again."""
    mine = [point for point in bucket.points if point[0] == name and not point[3]]
    if at[0] == "withdraw" or not mine:
        gone = frozenset((each[0], each[2], bucket.now) for each in mine)
        return bucket._replace(points=bucket.points - {*mine}, removed=bucket.removed | gone), END
    [(_, number, files, _)] = mine
    alone = not any(point[1] == number for point in bucket.points if point[0] != name)
    if files <= bucket.files and (alone or "number" not in rules):
        return bucket._replace(points=bucket.points - {*mine} | {(name, number, files, True)}), END
    return bucket, ("withdraw", *at[1:])


def copy(bucket, at, rules, name):
    """Bring back the first point, by what is left of it."""
    point = "1", 1, frozenset({"1d", "1x"})
    removed = [each for each in bucket.removed if each[0] == "1"]
    if at is None:
        return (bucket, END) if "1" in ids(bucket) else (bucket, ("set apart",))
    elif at[0] == "set apart":
        if removed and bucket.now - removed[0][2] >= COUNTED_ON and files_of("1", bucket) and "doomed" in rules:
            return bucket, END
        if is_marked(bucket, "1") and "mark" in rules:
            return bucket, END
        renewed = bucket.removed - {*removed} | {("1", frozenset(), bucket.now)}
        return bucket._replace(removed=renewed), ("write",)
    elif at[0] == "write":
        return bucket._replace(files=bucket.files | point[2]), ("check",)
    elif at[0] == "check":
        old = not removed or bucket.now - removed[0][2] >= COUNTED_ON
        return (bucket, END) if old and "doomed at the end" in rules else (bucket, ("commit",))
    elif at[0] == "commit":
        points = bucket.points | {(*point, False)} if "1" not in ids(bucket) else bucket.points
        return bucket._replace(points=points), ("prove",)
    return proved(bucket, COPIED, rules, at)


def copy_on(bucket, at, rules, name):
    """Bring a point that refers to a file of the first one, late in a run that saw that one when it began."""
    if at is None:
        return bucket, ("look",) if "1" in ids(bucket) else END
    elif at[0] == "look":
        return bucket, ("write", bucket.now) if "1" in ids(bucket) or "counted on" not in rules else END
    elif at[0] == "write":
        mark = name, frozenset(), bucket.now
        return bucket._replace(removed=bucket.removed | {mark}, files=bucket.files | {f"{name}d"}), ("check", at[1])
    elif at[0] == "check":
        late = bucket.now - at[1] >= COUNTED_ON and "counted on" in rules
        mine = [each for each in bucket.removed if each[0] == name and bucket.now - each[2] < COUNTED_ON]
        return bucket, ("commit",) if mine and not late else END
    elif at[0] == "commit":
        point = name, int(name) / 10, frozenset({f"{name}d", "1x"}), False
        return bucket._replace(points=bucket.points | {point}), ("prove",)
    return proved(bucket, name, rules, at)


def heal(bucket, at, rules, name):
    """Make a damaged file of the second point again, which is in the directory of the first one."""
    needed = any("1x" in point[2] for point in bucket.points)
    if at is None:
        return bucket, ("mark" if "as it was" not in rules else "write",) if needed else END
    elif at[0] == "mark":
        others = frozenset(each for each in bucket.removed if each[0] != "1")
        old = [("1", each[1], bucket.now) for each in bucket.removed if each[0] == "1"]
        return bucket._replace(removed=others | {*old}), ("write",)
    return bucket._replace(files=bucket.files | {"1x"}), END


def remove(target):
    """Give the manifest of a point another name, in two steps, and sweep."""

    def step(bucket, at, rules, name):
        known = [point for point in bucket.points if point[0] == target and point[3]]
        if at is None and "by two" not in rules:
            return bucket._replace(removed=frozenset(each for each in bucket.removed if each[0] != target)), ("name",)
        elif at is None or at[0] == "name":
            gone = frozenset((point[0], point[2], bucket.now) for point in known)
            return bucket._replace(removed=bucket.removed | gone), ("unname",)
        elif at[0] == "unname":
            return bucket._replace(points=bucket.points - {*known}), ("plan",)
        return swept(bucket, at, rules)

    return step


def sweep(bucket, at, rules, name):
    return swept(bucket, at or ("plan",), rules)


def swept(bucket, at, rules):
    place, *told = at
    if place == "plan":
        late = [each for each in bucket.removed if bucket.now - each[2] < GRACE and "grace" in rules]
        kept = frozenset().union(*(point[2] for point in bucket.points), *(each[1] for each in late))
        due = {each[0] for each in bucket.removed} - {each[0] for each in late} - ids(bucket)
        due -= {each for each in due if "one sweep" in rules and is_marked(bucket, each)}
        files = frozenset(file for file in bucket.files if file[0] in due and file not in kept)
        left = bucket.files - files if "mark" not in rules else bucket.files
        empty = frozenset(each for each in due if not any(file[0] == each for file in left))
        return bucket, ("mark" if files and "mark" in rules else "delete", files, empty, bucket.now)
    files, empty, began = told
    if bucket.now - began >= COUNTED_ON and "in time" in rules:
        return bucket, END
    elif place == "mark":
        begun = {file[0] for file in files}
        others = frozenset(each for each in bucket.marks if each[0] not in begun and is_marked(bucket, each[0]))
        return bucket._replace(marks=others | {(each, bucket.now) for each in begun}), ("delete", *told)
    elif place == "delete" and not files and empty:
        more = frozenset().union(*(files_of(each, bucket) for each in empty)) if "as listed" not in rules else ()
        return bucket, ("unmark", frozenset(more), empty, began)
    elif place == "unmark" and not files:
        return bucket._replace(removed=frozenset(each for each in bucket.removed if each[0] not in empty)), END
    return deleted(bucket, at)


def deleted(bucket, at):
    """Remove the next file."""
    place, files, *told = at
    if not files:
        return bucket, END
    return bucket._replace(files=bucket.files - {min(files)}), (place, files - {min(files)}, *told)


def clean_up(bucket, at, rules, name):
    """What another machine's run left."""
    if at is None:
        dead = {half for half, when in bucket.half if bucket.now - when >= GRACE or "half points" not in rules}
        return bucket, ("delete", frozenset(file for file in bucket.files if file[0] in dead))
    return deleted(bucket, at)


@cache
def loss(words, rules, bucket):
    """By which order something is lost, and in how many states; see interleavings."""
    who = [(str(3 + number), WHO[word]) for number, word in enumerate(words)]
    return interleavings.loss(who, rules, bucket, lambda bucket, places: bucket.loss(), TICKS, at_once=AT_ONCE)


WHO = {"pull": pull, "copy": copy, "copy on": copy_on, "remove 1": remove("1"), "remove 2": remove("2"),
       "sweep": sweep, "clean up": clean_up, "heal": heal}  # fmt: skip


@pytest.fixture
def fine_ticks(monkeypatch):
    """Two where there is one else: a sweep may go on while another one begins."""
    for name, ticks in (("COUNTED_ON", 2), ("GRACE", 3), ("TICKS", 5)):
        monkeypatch.setattr(sys.modules[__name__], name, ticks)
    loss.cache_clear()
    yield
    loss.cache_clear()


PAIRS = [*combinations_with_replacement(WHO, 2)]
OTHERS = [word for word in WHO if word not in ("pull", "heal")]
MORE = [("pull", *pair) for pair in combinations(OTHERS, 2)]


@pytest.mark.parametrize("words", [*PAIRS, *MORE], ids=" + ".join)
def test_no_interleaving_loses_a_file_or_a_number(words):
    lost, states = loss(words, RULES, begun())
    assert not lost
    assert states > 5


def removed_long_ago():
    """The first point, and the sweep of it has not begun."""
    bucket = begun()
    points = frozenset(point for point in bucket.points if point[0] == "2")
    return bucket._replace(points=points, removed=frozenset({("1", frozenset({"1d", "1x"}), 0)}), now=GRACE)


def all_removed_long_ago():
    """The same, and no other point needs a file of it."""
    return removed_long_ago()._replace(
        points=frozenset({("2", 2, frozenset({"2d"}), True)}), files=frozenset({"1d", "1x", "2d"})
    )


def emptied_long_ago():
    """What a copy left that died before it made a file, or a sweep of a point that none came after."""
    points = frozenset({("2", 2, frozenset({"2d"}), True)})
    return Bucket(points, frozenset({("1", frozenset(), 0)}), frozenset(), frozenset({"2d"}), GRACE)


@pytest.mark.parametrize(
    "rule, words, bucket",
    [
        ("grace", ("pull", "remove 2", "remove 1"), begun()),
        ("base", ("pull", "remove 2", "remove 1"), begun()),
        ("number", ("pull", "pull"), begun()),
        ("doomed", ("copy", "sweep"), removed_long_ago()),
        ("doomed at the end", ("copy", "remove 1", "sweep"), begun()),
        ("counted on", ("copy on", "remove 2", "remove 1"), begun()),
        ("as listed", ("copy", "sweep"), emptied_long_ago()),
        ("by two", ("pull", "remove 2", "remove 2"), removed_long_ago()),
        ("mark", ("copy", "sweep", "sweep"), all_removed_long_ago()),
        ("in time", ("copy", "sweep", "sweep"), all_removed_long_ago()),
        ("as it was", ("copy", "heal", "sweep"), removed_long_ago()),
        ("half points", ("pull", "clean up"), begun()),
        ("alive", ("pull", "clean up"), begun()),
    ],
)
def test_without_any_rule_something_is_lost(rule, words, bucket):
    assert loss(words, RULES - {rule}, bucket)[0]
    assert not loss(words, RULES, bucket)[0]


@pytest.mark.parametrize("third", [word for word in WHO if word not in ("pull", "clean up")])
@pytest.mark.parametrize("start", [removed_long_ago, all_removed_long_ago])
def test_no_two_sweeps_lose_a_file(third, start, fine_ticks):
    assert not loss(("sweep", "sweep", third), RULES, start())[0]


def test_a_second_sweep_that_waits_for_nobody(fine_ticks):
    """It begins as the first one goes on, and ends after that one's mark is old. Only where a sweep has more than a
    tick."""
    words = ("copy", "sweep", "sweep")
    assert loss(words, RULES - {"one sweep"}, all_removed_long_ago())[0]


def test_every_rule_is_left_out_once():
    [mark] = test_without_any_rule_something_is_lost.pytestmark
    assert {rule for rule, *_ in mark.args[1]} == RULES - {"one sweep"}
