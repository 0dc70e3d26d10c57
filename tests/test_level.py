"""The compression level of zstd: a chosen one, or one that adapts to how busy the compressing threads are."""

import json
import random

import pytest
from bed.machine import MIB
from command import nbdpull

from nbdpull.pulling.level import BUSY, IDLE, LEVELS, WINDOW, Level


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def after(chosen, at_once, spells, of_a_processor=1.0):
    """Return the level after [(seconds of computing, seconds of waiting), …] of one thread that got that share of a
    processor."""
    clock, cpu = Clock(), Clock()
    level = Level(chosen, lambda: at_once, clock, cpu)
    for busy, idle in spells:
        clock.now += idle
        with level.computing():
            clock.now += busy
            cpu.now += busy * of_a_processor
    return level.now


@pytest.mark.parametrize("chosen", [1, 3, 19])
def test_a_chosen_level_stays(chosen):
    assert after(chosen, 1, [(10, 0)] * 5) == after(chosen, 1, [(0.1, 10)] * 5) == chosen


@pytest.mark.parametrize(
    "busy, idle, at_once, expected",
    [
        (WINDOW, 0, 1, -1),  # what was read waits: as fast as there is
        (WINDOW / 10, WINDOW, 1, 3),  # something else is waited for: as good as there is
        (WINDOW, WINDOW * 0.4, 1, 1),  # neither
        (WINDOW, 0, 2, 1),  # one of two is busy all the time
        (WINDOW, 0, 3, 3),
    ],
)
def test_it_follows_who_waits_for_whom(busy, idle, at_once, expected):
    assert after(None, at_once, [(busy, idle)] * 10) == expected


def test_no_better_level_where_others_want_the_processors():
    assert after(None, 1, [(WINDOW / 10, WINDOW)] * 10, of_a_processor=0.5) == 1
    assert after(None, 1, [(WINDOW, 0)] * 10, of_a_processor=0.5) == -1


def test_one_step_in_each_window():
    assert [after(None, 1, [(WINDOW, 0)] * count) for count in range(3)] == [1, -1, -1]
    assert [after(None, 1, [(WINDOW / 100, WINDOW)] * count) for count in range(4)] == [1, 2, 3, 3]
    assert after(None, 1, [(WINDOW / 10, 0)] * 9) == 1, "too short a time shows nothing"


def test_it_comes_to_rest():
    """A level whose share is between the two thresholds stays, and none takes so much longer that it would be left at
    once."""
    costs = dict(zip(LEVELS, (2.4, 2.9, 3.6, 4.9)))  # ms for a MiB, docs/performance.md
    assert all(costs[better] / costs[worse] * IDLE < BUSY for worse, better in zip(LEVELS, LEVELS[1:]))


def test_a_pull_records_at_which_level(machine, tmp_path):
    vm = machine({"vda": 4 * MIB})
    vm.stop()
    (tmp_path / "raw").write_bytes(bytes(random.Random(1).choices(range(16), k=2 * MIB)))
    vm.write_offline("vda", [f"write -q -s {tmp_path / 'raw'} 0 {2 * MIB}"])
    vm.start()
    recorded = []
    for number, option in enumerate(["auto", "3", "1"]):
        store = tmp_path / f"store{number}"
        done = nbdpull("pull", vm.name, "-c", vm.bed.uri, "-o", store, "--level", option, "--no-checkpoint")
        assert done.returncode == 0, done.stderr
        assert nbdpull("verify", store).returncode == 0
        [disk] = json.loads(next(store.rglob("manifest.json")).read_bytes())["disks"]
        recorded.append(disk["levels"])
    followed, *chosen = recorded
    assert chosen == [{"3": 2 * MIB}, {"1": 2 * MIB}]
    assert sum(followed.values()) == 2 * MIB and set(followed) <= set(map(str, LEVELS))
