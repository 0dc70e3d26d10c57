"""All interleavings of actors that meet in a store without locks (docs/design.md), on a small model: no point that is
there to stay lacks a file, and no number is used twice.

As in test_who_meets_whom.py: each step is what others can see of one request, all orders are tried, and without any one
of RULES the model finds a loss. Time passes between any two steps, as if a machine were suspended and continued days
later; so an actor that dies is one that never continues. What is done besides, for readers or to save work, has no rule
here.

Pure: the package is not used. tests/test_lock_free.py tests the real steps.
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
    "base",  # when a pull has made its manifest, its base is there, or was removed just now
    "number",  # after its manifest is there, a point looks for another one of its number
    "doomed at the end",  # when a copy has made its manifest, its directory was set apart just now, and no sweep began
    "counted on",  # what a copied point counts on was not removed long before it commits
    "as listed",  # a sweep removes only what was there when it decided
    "mark",  # before it removes a file it leaves a mark, which outlives the files; no copy brings any of them meanwhile
    "sure",  # when the mark is there, the sweep looks whether a copy has set the directory apart meanwhile
    "in time",  # it stops before the mark is old
    "half points",  # of others stay for a while
    "alive",  # a pull that stood still gives up
    "first",  # a moved table is made once, and never written over
    "covers",  # a sweep removes the old file only if the table leads to all that points show of it
    "settled",  # and was there for a while
    "looked again",  # after its mark, it looks again for points that were not there
    "there still",  # and the file that it counted on is there, be there a table or not
    "not endangered",  # a copy whose manifest is there does not count on a file that such a sweep may be removing
})  # fmt: skip


class Bucket(NamedTuple):
    """points: {(id, number, files, whether it stays)}; removed: {(id, files, when)}; half: {(id, when its last file was
    made)}; files: those that are there, each of the point that it begins with; marks: {(id, when it was swept)};
    tables: {(file, frames that were moved, to which file, when)}. What a point refers to are files, or frames of one:
    1xa is in 1x, or where the table of 1x leads."""

    points: frozenset
    removed: frozenset
    half: frozenset
    files: frozenset
    now: int = 0
    marks: frozenset = frozenset()
    tables: frozenset = frozenset()

    def loss(self):
        staying = [point for point in self.points if point[3]]
        numbers = [point[1] for point in staying]
        lacks = not all(self.has(files) for _, _, files, _ in staying)
        return lacks or len(numbers) > len({*numbers})

    def has(self, needed):
        return all(each[:2] in self.files or self.is_moved(each) for each in needed)

    def seems_to_have(self, needed):
        """Return the same according to a listing."""
        led = {file for file, _, new, _ in self.tables if new in self.files}
        return {each[:2] for each in needed} <= self.files | led

    def is_moved(self, frame):
        """Return whether its table leads somewhere."""
        return any(file == frame[:2] and frame in moved and new in self.files for file, moved, new, _ in self.tables)


FIRST = frozenset({"1d", "1xa", "1xb"})


def begun():
    points = frozenset({("1", 1, FIRST, True), ("2", 2, frozenset({"2d", "1xa"}), True)})
    return Bucket(points, frozenset(), frozenset(), frozenset({"1d", "1x", "2d"}))


COPIED = "1"


def ids(bucket):
    return {point[0] for point in bucket.points}


def files_of(name, bucket):
    return frozenset(file for file in bucket.files if file[0] == name)


def is_marked(bucket, name):
    """Return whether somebody may be removing files of a directory."""
    return any(marked == name and bucket.now - when < COUNTED_ON for marked, when in bucket.marks)


def made(bucket, name, *files):
    half = frozenset(each for each in bucket.half if each[0] != name)
    return bucket._replace(files=bucket.files | {*files}, half=half | {(name, bucket.now)})


def pull(bucket, at, rules, name):
    """Lay a point over the newest one."""
    if at is None:
        base = max(bucket.points, key=lambda point: point[1:2], default=("", 0, frozenset(), True))
        below = frozenset(file for file in base[2] if file[1] == "x")
        return bucket, ("announce", base[0], below, base[1] + 1, False)
    elif at[0] == "prove":
        _, base, stood = at
        is_over = ("base" in rules and base and base not in ids(bucket) and is_doomed(bucket, base)) or (
            "alive" in rules and stood
        )
        return proved(bucket, name, rules, is_over)
    elif at[0] == "withdraw":
        return withdrawn(bucket, name)
    place, base, below, number, stood = at
    stood = stood or any(half == name and bucket.now - made_at >= COUNTED_ON for half, made_at in bucket.half)
    if place == "announce":
        return bucket._replace(half=bucket.half | {(name, bucket.now)}), ("write", base, below, number, stood)
    elif place == "write":
        return made(bucket, name, f"{name}d", f"{name}x"), ("commit", base, below, number, stood)
    half = frozenset(each for each in bucket.half if each[0] != name)
    point = name, number, below | {f"{name}d", f"{name}x"}, False
    return bucket._replace(points=bucket.points | {point}, half=half), ("prove", base, stood)


def is_doomed(bucket, name):
    """Return whether files of a directory may be about to go: it was not removed just now, or somebody has begun."""
    young = any(each[0] == name and bucket.now - each[2] < COUNTED_ON for each in bucket.removed)
    return not young or is_marked(bucket, name)


def is_going(bucket, name):
    """Return the same for a point that another one relies on."""
    return is_doomed(bucket, name) and (name not in ids(bucket) or is_marked(bucket, name))


def proved(bucket, name, rules, is_over):
    """Do the last step but one of an actor that makes a point: it stays, or is about to be withdrawn."""
    mine = [point for point in bucket.points if point[0] == name and not point[3]]
    if not mine:
        return bucket, END
    [(_, number, files, _)] = mine
    alone = not any(point[1] == number for point in bucket.points if point[0] != name)
    if bucket.seems_to_have(files) and (alone or "number" not in rules) and not is_over:
        return bucket._replace(points=bucket.points - {*mine} | {(name, number, files, True)}), END
    return bucket, ("withdraw",)


def withdrawn(bucket, name):
    mine = [point for point in bucket.points if point[0] == name and not point[3]]
    gone = frozenset((each[0], each[2], bucket.now) for each in mine)
    return bucket._replace(points=bucket.points - {*mine}, removed=bucket.removed | gone), END


def copy(bucket, at, rules, name):
    """Bring back the first point, from what is left of it."""
    point = "1", 1, FIRST
    removed = [each for each in bucket.removed if each[0] == "1"]
    if at is None:
        return bucket, END if "1" in ids(bucket) else ("renew",)
    elif at[0] == "renew":
        renewed = bucket.removed - {*removed} | {("1", frozenset(), bucket.now)}
        return bucket._replace(removed=renewed), ("write",)
    elif at[0] == "write":
        return bucket._replace(files=bucket.files | {"1d", "1x"}), ("commit",)
    elif at[0] == "commit":
        points = bucket.points | {(*point, False)} if "1" not in ids(bucket) else bucket.points
        return bucket._replace(points=points), ("prove",)
    elif at[0] == "prove":
        return proved(bucket, COPIED, rules, is_doomed(bucket, "1") and "doomed at the end" in rules)
    return withdrawn(bucket, COPIED)


def copy_long(bucket, at, rules, name):
    """The same, for longer than a directory stays that was set apart once: it is set apart again after the first file,
    unless it is doomed, which is no rule: what was lost by then is noticed at the end."""
    if at == ("write",):
        return bucket._replace(files=bucket.files | {"1d"}), ("look",)
    elif at == ("look",):
        return bucket, END if is_doomed(bucket, "1") else ("renew again",)
    elif at == ("renew again",):
        return copy(bucket, ("renew",), rules, name)[0], ("write the rest",)
    elif at == ("write the rest",):
        return bucket._replace(files=bucket.files | {"1x"}), ("commit",)
    return copy(bucket, at, rules, name)


def copy_on(bucket, at, rules, name):
    """Bring a point that refers to a file of the first one, which existed when its turn came."""
    if at is None:
        return bucket, ("write",) if "1" in ids(bucket) else END
    elif at[0] == "write":
        mark = name, frozenset(), bucket.now
        return bucket._replace(removed=bucket.removed | {mark}, files=bucket.files | {f"{name}d"}), ("commit",)
    elif at[0] == "commit":
        point = name, int(name) / 10, frozenset({f"{name}d", "1xa"}), False
        return bucket._replace(points=bucket.points | {point}), ("prove",)
    elif at[0] == "prove":
        doomed = is_going(bucket, "1") and "counted on" in rules
        return proved(bucket, name, rules, doomed or (is_doomed(bucket, name) and "doomed at the end" in rules))
    return withdrawn(bucket, name)


def copy_old(bucket, at, rules, name):
    """Bring one that shows a part of a file that the others hide. The second point answers for the file."""
    if at is None:
        return bucket, ("write", "1x" in bucket.files) if "2" in ids(bucket) and bucket.has({"1xb"}) else END
    elif at[0] == "write":
        mark = name, frozenset(), bucket.now
        return bucket._replace(removed=bucket.removed | {mark}, files=bucket.files | {f"{name}d"}), ("commit", *at[1:])
    elif at[0] == "commit":
        point = name, int(name) / 10, frozenset({f"{name}d", "1xb"}), False
        return bucket._replace(points=bucket.points | {point}), ("prove", *at[1:])
    elif at[0] == "prove":
        going = is_doomed(bucket, name) or is_going(bucket, "2") and "2" not in ids(bucket)
        going = going or (at[1] and "1x" not in bucket.files and "there still" in rules)
        return proved(bucket, name, rules, going or ("not endangered" in rules and is_endangered(bucket, "1x")))
    return withdrawn(bucket, name)


def is_endangered(bucket, file):
    """Return whether a sweep that continues may remove a file although points refer to it."""
    begun = [when for marked, when in bucket.marks if marked == file[0] and is_marked(bucket, marked)]
    old = [when for each, _, _, when in bucket.tables if each == file]
    return file in bucket.files and any(made + GRACE <= when for made in old for when in begun)


def repack(bucket, at, rules, name):
    """Move what points show of the first point's file to another one, to which a table leads."""
    new = chr(ord("A") + int(name))
    if at is None:
        shown = frozenset(each for each in needed(bucket, rules) if each[:2] == "1x")
        is_due = "1x" in bucket.files and "1" not in ids(bucket) and not any(bucket.tables)
        return bucket, ("folder", shown) if is_due else END
    elif at[0] == "folder":
        return bucket._replace(removed=bucket.removed | {(new, frozenset(), bucket.now)}), ("write", *at[1:])
    elif at[0] == "write":
        return bucket._replace(files=bucket.files | {f"{new}x"}), ("lead", *at[1:])
    if bucket.tables and "first" in rules:
        return bucket, END
    return bucket._replace(tables=frozenset({("1x", at[1], f"{new}x", bucket.now)})), END


def needed(bucket, rules):
    """Return what points refer to, including those that were removed just now."""
    late = [each for each in bucket.removed if bucket.now - each[2] < GRACE and "grace" in rules]
    return frozenset().union(*(point[2] for point in bucket.points), *(each[1] for each in late))


def emptied(bucket, rules):
    """Return the files of which everything that points show is elsewhere by now."""
    found = set()
    for file, moved, new, when in bucket.tables:
        shown = frozenset(each for each in needed(bucket, rules) if each[:2] == file)
        is_settled = bucket.now - when >= GRACE or "settled" not in rules
        if is_settled and new in bucket.files and (shown <= moved or "covers" not in rules):
            found.add(file)
    return found


def heal(bucket, at, rules, name):
    """Make a damaged file of the second point again, which is in the directory of the first one."""
    needed = any(file.startswith("1x") for point in bucket.points for file in point[2])
    if at is None:
        return bucket, ("write",) if needed else END
    return bucket._replace(files=bucket.files | {"1x"}), END


def remove(target):
    """Give the manifest of a point another name, in two steps, and sweep."""

    def step(bucket, at, rules, name):
        known = [point for point in bucket.points if point[0] == target and point[3]]
        if at is None:
            gone = frozenset((point[0], point[2], bucket.now) for point in known)
            return bucket._replace(removed=bucket.removed | gone), ("unname",)
        elif at[0] == "unname":
            return bucket._replace(points=bucket.points - {*known}), ("plan",)
        return swept(bucket, at, rules)

    return step


def sweep(bucket, at, rules, name):
    return swept(bucket, at or ("plan",), rules)


def swept(bucket, at, rules):
    place, *state = at
    if place == "plan":
        late = [each for each in bucket.removed if bucket.now - each[2] < GRACE and "grace" in rules]
        kept = {each[:2] for each in needed(bucket, rules)}
        kept = kept - emptied(bucket, rules) | {new for file, _, new, _ in bucket.tables if file in kept}
        due = {each[0] for each in bucket.removed} - {each[0] for each in late} - ids(bucket)
        due -= {each for each in due if is_marked(bucket, each)}
        files = frozenset(file for file in bucket.files if file[0] in due and file not in kept)
        known = ids(bucket)
        left = bucket.files - files if "mark" not in rules else bucket.files
        empty = frozenset(each for each in due if not any(file[0] == each for file in left))
        return bucket, ("mark" if files and "mark" in rules else "delete", files, empty, bucket.now, frozenset(known))
    files, empty, began, known = state
    if not files and not empty or (bucket.now - began >= COUNTED_ON and "in time" in rules):
        return bucket, END
    elif place == "mark":
        begun = {file[0] for file in files}
        others = frozenset(each for each in bucket.marks if each[0] not in begun and is_marked(bucket, each[0]))
        return bucket._replace(marks=others | {(each, bucket.now) for each in begun}), ("sure", *state)
    elif place == "sure":
        young = {each[0] for each in bucket.removed if bucket.now - each[2] < GRACE} | ids(bucket)
        left = frozenset(file for file in files if file[0] not in young) if "sure" in rules else files
        if "looked again" in rules and not ids(bucket) <= known:
            left -= {file for file, *_ in bucket.tables}
        return bucket, ("delete", left, empty, began, frozenset()) if left or empty else END
    elif place == "delete" and not files:
        more = frozenset().union(*(files_of(each, bucket) for each in empty)) if "as listed" not in rules else ()
        return bucket, ("unmark", frozenset(more), empty, began, frozenset())
    elif place == "unmark" and not files:
        return bucket._replace(removed=frozenset(each for each in bucket.removed if each[0] not in empty)), END
    return deleted(bucket, at)


def deleted(bucket, at):
    """Remove the next file."""
    place, files, *state = at
    left = files - {min(files)} if files else files
    after = bucket._replace(files=bucket.files - (files - left))
    return after, (place, left, *state) if left or any(state[:1]) else END


def clean_up(bucket, at, rules, name):
    """Remove what another machine's run left."""
    if at is None:
        dead = {half for half, when in bucket.half if bucket.now - when >= GRACE or "half points" not in rules}
        return bucket, ("delete", frozenset(file for file in bucket.files if file[0] in dead))
    return deleted(bucket, at)


@cache
def loss(words, rules, bucket):
    """Return the order in which something is lost, and the number of states; see interleavings."""
    who = [(str(3 + number), ALL[word]) for number, word in enumerate(words)]
    return interleavings.loss(who, rules, bucket, Bucket.loss, TICKS)


WHO = {"pull": pull, "copy": copy, "copy long": copy_long, "copy on": copy_on, "remove 1": remove("1"),
       "remove 2": remove("2"), "sweep": sweep, "clean up": clean_up, "heal": heal}  # fmt: skip
ALL = {**WHO, "repack": repack, "copy old": copy_old}


@pytest.fixture
def fine_ticks(monkeypatch):
    """Use two ticks instead of one: a sweep may continue while another one begins."""
    for name, ticks in (("COUNTED_ON", 2), ("GRACE", 3), ("TICKS", 5)):
        monkeypatch.setattr(sys.modules[__name__], name, ticks)
    loss.cache_clear()
    yield
    loss.cache_clear()


@pytest.fixture
def many_ticks(monkeypatch):
    """Use enough ticks for a file to be moved, and then to be removed by a sweep that was suspended."""
    monkeypatch.setattr(sys.modules[__name__], "TICKS", 5)
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
    """The first point was removed, and its sweep has not begun."""
    bucket = begun()
    points = frozenset(point for point in bucket.points if point[0] == "2")
    return bucket._replace(points=points, removed=frozenset({("1", FIRST, 0)}), now=GRACE)


def all_removed_long_ago():
    """The same, and no other point needs a file of it."""
    return removed_long_ago()._replace(
        points=frozenset({("2", 2, frozenset({"2d"}), True)}), files=frozenset({"1d", "1x", "2d"})
    )


def emptied_long_ago():
    """What is left by a copy that died before it made a file, or by a sweep of a point after which none came."""
    points = frozenset({("2", 2, frozenset({"2d"}), True)})
    return Bucket(points, frozenset({("1", frozenset(), 0)}), frozenset(), frozenset({"2d"}), GRACE)


def moved_long_ago():
    """Everything that the second point shows of the first point's file, which still exists, was moved."""
    bucket = removed_long_ago()
    return bucket._replace(
        removed=bucket.removed | {("A", frozenset(), 0)},
        files=bucket.files | {"Ax"},
        tables=frozenset({("1x", frozenset({"1xa"}), "Ax", 0)}),
    )


@pytest.mark.parametrize(
    "rule, words, bucket",
    [
        ("grace", ("pull", "remove 1", "remove 2"), begun()),
        ("base", ("pull", "remove 1", "remove 2"), begun()),
        ("number", ("pull", "pull"), begun()),
        ("doomed at the end", ("copy", "remove 1", "sweep"), begun()),
        ("counted on", ("copy", "copy on", "sweep"), all_removed_long_ago()),
        ("sure", ("copy", "sweep"), removed_long_ago()),
        ("as listed", ("copy", "sweep"), emptied_long_ago()),
        ("mark", ("copy", "sweep", "sweep"), all_removed_long_ago()),
        ("in time", ("copy", "sweep", "sweep"), all_removed_long_ago()),
        ("half points", ("pull", "clean up"), begun()),
        ("alive", ("pull", "clean up"), begun()),
        ("covers", ("sweep", "copy old"), moved_long_ago()),
        ("looked again", ("sweep", "copy old"), moved_long_ago()),
        ("there still", ("sweep", "copy old"), moved_long_ago()),
        ("not endangered", ("sweep", "copy old"), moved_long_ago()),
    ],
)
def test_without_any_rule_something_is_lost(rule, words, bucket):
    assert loss(words, RULES - {rule}, bucket)[0]
    assert not loss(words, RULES, bucket)[0]


@pytest.mark.parametrize("third", [word for word in WHO if word not in ("pull", "clean up")])
@pytest.mark.parametrize("start", [removed_long_ago, all_removed_long_ago])
def test_no_two_sweeps_lose_a_file(third, start, fine_ticks):
    assert not loss(("sweep", "sweep", third), RULES, start())[0]


@pytest.mark.parametrize(
    "rule, words", [("first", ("repack", "repack", "sweep")), ("settled", ("repack", "sweep", "sweep"))]
)
def test_without_a_rule_of_repacks_something_is_lost(rule, words, many_ticks):
    assert loss(words, RULES - {rule}, removed_long_ago())[0]
    assert not loss(words, RULES, removed_long_ago())[0]


@pytest.mark.parametrize("third", [word for word in ALL if word != "clean up"])
def test_no_repack_loses_what_a_point_shows(third, many_ticks):
    assert not loss(("repack", "sweep", third), RULES, removed_long_ago())[0]


@pytest.mark.parametrize("third", [word for word in ALL if word != "clean up"])
def test_no_sweep_of_what_was_moved_loses_what_a_point_shows(third):
    assert not loss(("sweep", "copy old", third), RULES, moved_long_ago())[0]


def test_moved_files_are_removed_in_the_end(many_ticks):
    """Otherwise the rules would be easy to keep."""
    gone = []

    def look(bucket):
        gone.append("1x" not in bucket.files)
        return bucket.loss()

    assert not interleavings.loss([("3", repack), ("4", sweep)], RULES, removed_long_ago(), look, TICKS)[0]
    assert any(gone)


def test_every_rule_is_left_out_once():
    marks = [
        test_without_any_rule_something_is_lost.pytestmark[0],
        *[each for each in test_without_a_rule_of_repacks_something_is_lost.pytestmark if each.name == "parametrize"],
    ]
    assert {rule for mark in marks for rule, *_ in mark.args[1]} == RULES
