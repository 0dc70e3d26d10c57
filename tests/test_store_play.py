"""Some seconds of play with a store. NBDPULL_SEED=n plays another sequence, NBDPULL_SECONDS=n plays that long, seed
after seed."""

import os
import time

import pytest
import sealed
from store_play import Play
from stores import MIB

from nbdpull.format import layout

SECONDS = float(os.environ.get("NBDPULL_SECONDS", "0"))


@pytest.mark.timeout_seconds(int(SECONDS) + 120)
@pytest.mark.parametrize("keys, steps", [(None, 60), (sealed.KEYS, 20)], ids=["plain", "sealed"])
def test_any_sequence_of_operations_and_deaths(tmp_path, monkeypatch, keys, steps):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    with sealed.opening(monkeypatch):
        _played(tmp_path, keys, steps)


def _played(folder, keys, steps):
    until, seed = time.monotonic() + SECONDS, int(os.environ.get("NBDPULL_SEED", "1"))
    while True:
        print(f"NBDPULL_SEED={seed}")
        play = Play(folder / str(seed), seed, keys=keys)
        for _ in range(steps):
            play.step()
        play.end()
        print(" ".join(play.deeds))
        seed += 1
        if time.monotonic() > until:
            break
