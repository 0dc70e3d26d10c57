"""All interleavings of actors that meet in a store (docs/design.md), on a small model: none loses a file that is
needed.

For each actor in a store, the model has the steps that others can see, one call of the store each. All orders of them
are tried, with time passing and one death anywhere. Each protection is one of RULES; without any one of them the model
finds a loss, which shows that it searches.

Pure: the package is not used. tests/store_play.py plays with the real steps.
"""

from itertools import combinations_with_replacement
from typing import NamedTuple

import interleavings
import pytest
from interleavings import END, LOST

GRACE = 1  # ticks
TICKS = 2  # as much time may pass
RULES = frozenset({
    "lock",  # one writer of a series at a time
    "grace",  # files stay for a while
    "grace of every point",  # counted from the removal of the last point that referred to them
    "references",  # files go, and not directories of removed points
    "half points are empty for others",  # what has no manifest and is no run's goes only if nothing refers to it
    "manifest first",  # a point is removed before its files are, and committed after them
    "looked at when held",  # references are reported after the lock was taken
})  # fmt: skip


class Store(NamedTuple):
    """The state. points: {(id, files that it refers to)}; removed: {(id, files, when)}; files: the existing ones, each
    of the point that its name begins with; holder: of the lock."""

    points: frozenset
    removed: frozenset
    files: frozenset
    holder: object = None
    now: int = 0

    def lacks(self):
        """Return the files that are needed and gone."""
        late = [files for _, files, when in self.removed if self.now - when < GRACE]
        return frozenset().union(*(files for _, files in self.points), *late) - self.files


def begun():
    """Return two points, the second one laid over the first: each has a directory and data of its own."""
    one, two = frozenset({"1d", "1x", "1y"}), frozenset({"2d", "2x", "1x"})
    return Store(frozenset({("1", one), ("2", two)}), frozenset(), one | two)


# Each is a step as interleavings has it.


def pull(store, at, rules, name):
    """Lay a point over the newest one: half of that one's files, and two of its own."""
    if at is None:
        return locked(store, rules, name, ("look",))
    elif at[0] == "look":
        newest = max(store.points, default=("0", frozenset()))
        below = frozenset(file for file in newest[1] if file[1] == "x")
        return store, ("write" if "manifest first" in rules else "commit", below)
    elif at[0] == "write":
        return store._replace(files=store.files | {f"{name}x"}), ("write on", at[1])
    elif at[0] == "write on":
        return store._replace(files=store.files | {f"{name}d"}), ("commit" if "manifest first" in rules else END, at[1])
    elif at[0] == "commit":
        point = (name, at[1] | {f"{name}x", f"{name}d"})
        after = store._replace(points=store.points | {point})
        return (unlocked(after), END) if "manifest first" in rules else (after, ("write", at[1]))


def remove(target):
    """Give the manifest of a point another name, and sweep."""

    def step(store, at, rules, name):
        if at is None and "looked at when held" not in rules:
            return store, ("lock", referred(store))
        elif at is None or at[0] == "lock":
            return locked(store, rules, name, ("rename", at and at[1]))
        elif at[0] == "rename":
            known = [point for point in store.points if point[0] == target]
            if "manifest first" not in rules:
                return store, ("plan first",)
            gone = frozenset((*point, store.now) for point in known)
            return store._replace(points=store.points - {*known}, removed=store.removed | gone), ("plan", at[1])
        else:
            return swept(store, at, rules, target)

    return step


def swept(store, at, rules, target):
    if at[0] in ("plan", "plan first"):
        kept = at[1] if at[0] == "plan" and at[1] is not None else referred(store)
        if at[0] == "plan first":  # as if the point were gone, which it is not yet
            kept = frozenset().union(*(files for point, files in store.points if point != target))
        late = [files for _, files, when in store.removed if store.now - when < GRACE]
        if {"grace", "grace of every point"} <= rules:
            kept = kept.union(*late)
        going = frozenset(file for file in store.files if is_due(store, file, rules, target) and file not in kept)
        if "references" not in rules:
            going = frozenset(file for file in store.files if is_due(store, file, rules, target))
        return store, ("delete", going)
    elif at[1]:
        return store._replace(files=store.files - {min(at[1])}), ("delete", at[1] - {min(at[1])})
    else:
        return unlocked(store), END


def is_due(store, file, rules, target):
    """Return whether it belongs to a point that was removed so long ago, or only has to be removed."""
    for point, _, when in store.removed:
        if file[0] == point:
            return store.now - when >= GRACE or "grace" not in rules
    return file[0] == target and "manifest first" not in rules


def clean_up(store, at, rules, name):
    """Remove what has no manifest: half a point, or the rest of one whose other name got lost; with all its files."""
    if at is None:
        return locked(store, rules, name, ("look",))
    elif at[0] == "look":
        known = {point for point, _ in store.points} | {point for point, *_ in store.removed}
        half = frozenset(file for file in store.files if file[0] not in known)
        stays = referred(store) if "half points are empty for others" in rules else frozenset()
        return store, ("delete", half if not half & stays else frozenset())
    elif at[1]:
        return store._replace(files=store.files - {min(at[1])}), ("delete", at[1] - {min(at[1])})
    else:
        return unlocked(store), END


def read(store, at, rules, name):
    """Restore, serve, verify, diff: open the newest point, and read every file of it; LOST if one does not exist."""
    if at is None:
        if store.points:
            return store, ("read", max(store.points)[1], store.now)
        else:
            return store, END
    elif at[1] and store.now - at[2] < GRACE:
        return (store, ("read", at[1] - {min(at[1])}, at[2])) if min(at[1]) in store.files else (store, LOST)
    else:
        return store, END  # all is read, or it took longer than it may


def referred(store):
    return frozenset().union(*(files for _, files in store.points))


def locked(store, rules, name, then):
    """Take the lock; Busy ends a run."""
    if "lock" in rules and store.holder not in (None, name):
        return store, END
    else:
        return store._replace(holder=name), then


def unlocked(store):
    return store._replace(holder=None)


def loss(who, rules, store):
    """Return the order in which a file is lost, and the number of states; see interleavings."""
    return interleavings.loss(who, rules, store, Store.lacks, TICKS, died)


def died(store, name):
    return unlocked(store) if store.holder == name else store


WHO = {"pull": pull, "remove 1": remove("1"), "remove 2": remove("2"), "clean up": clean_up, "read": read}
ALL = {**WHO, "remove 3": remove("3")}


def named(words):
    """Return the name of an actor: the third point is that of the first pull; others are named by what they do, and a
    number."""
    return [(str(3 + number), ALL[word]) for number, word in enumerate(words)]


@pytest.mark.parametrize("words", [*combinations_with_replacement(WHO, 3)], ids=" + ".join)
def test_no_interleaving_loses_a_file(words):
    lost, states = loss(named(words), RULES, begun())
    assert not lost
    assert states > 20


def lost_manifest():
    """The record that the first point was removed is lost from its directory; the second refers to a file in it."""
    store = begun()
    return store._replace(points=frozenset(point for point in store.points if point[0] == "2"))


@pytest.mark.parametrize(
    "rule, words, store",
    [
        ("lock", ["pull", "remove 2"], begun()),
        ("grace", ["read", "remove 2"], begun()),
        ("grace of every point", ["read", "remove 1", "remove 2"], begun()),
        ("references", ["remove 1"], begun()),
        ("half points are empty for others", ["clean up"], lost_manifest()),
        ("manifest first", ["remove 2"], begun()),
        ("looked at when held", ["pull", "pull", "remove 3", "remove 3"], begun()),
    ],
)
def test_without_any_rule_a_file_is_lost(rule, words, store):
    assert loss(named(words), RULES - {rule}, store)[0]
    assert not loss(named(words), RULES, store)[0]


def test_every_rule_is_left_out_once():
    [mark] = test_without_any_rule_a_file_is_lost.pytestmark
    assert {rule for rule, *_ in mark.args[1]} == RULES
