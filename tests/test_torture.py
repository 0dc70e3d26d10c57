"""Some seconds of scripts/torture, with the seed of the day: a failure names it. TORTURE_MINUTES=n plays longer."""

import os
import time

import pytest

pytest.importorskip("libvirt")


@pytest.mark.timeout_seconds(300)
def test_torture(private_libvirt):
    import torture

    seed = int(os.environ.get("TORTURE_SEED") or time.time() // 86400)
    print(f"seed {seed}")
    minutes = float(os.environ.get("TORTURE_MINUTES") or 0.3)
    counts, points = torture.torture(private_libvirt, seed, minutes, points=3)
    assert points >= 3, counts
