"""The torture of scripts/torture for a minute, with the seed of the day: a failure names it."""

import os
import time

import pytest

pytest.importorskip("libvirt")


@pytest.mark.timeout_seconds(300)
def test_torture(private_libvirt):
    import torture

    seed = int(os.environ.get("TORTURE_SEED") or time.time() // 86400)
    print(f"seed {seed}")
    minutes = 1.0 if os.environ.get("CI") else 0.3
    counts, points = torture.torture(private_libvirt, seed, minutes, points=3)
    assert points >= 3, counts
