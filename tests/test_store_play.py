"""Some seconds of play with a store. NBDPULL_SEED=n plays another one, NBDPULL_SECONDS=n plays as long, seed after
seed."""

import os
import time

import pytest
from store_play import Play
from stores import MIB

from nbdpull.format import layout

SECONDS = float(os.environ.get("NBDPULL_SECONDS", "0"))


@pytest.mark.timeout_seconds(int(SECONDS) + 120)
def test_any_sequence_of_operations_and_deaths(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "WINDOW", MIB)
    until, seed = time.monotonic() + SECONDS, int(os.environ.get("NBDPULL_SEED", "1"))
    while True:
        print(f"NBDPULL_SEED={seed}")
        play = Play(tmp_path / str(seed), seed)
        for _ in range(60):
            play.step()
        play.end()
        print(" ".join(play.told))
        seed += 1
        if time.monotonic() > until:
            break
