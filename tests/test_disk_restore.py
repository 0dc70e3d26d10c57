"""One disk on its way out, as items of work; the bytes are compared in test_restore.py and test_restore_targets.py."""

import tracemalloc
from types import SimpleNamespace

import pytest

from nbdpull.core import extents
from nbdpull.repository.image import Piece
from nbdpull.targets import disk_restore

SIZE = 1 << 50


@pytest.mark.parametrize("partial", [False, True])
def test_the_zeroes_of_the_largest_disk_take_no_memory(partial):
    """An enemy's index of one record tells of a PiB of them: 8 million ranges to be written, one after the other."""
    zero = Piece(extents.of([(0, SIZE, extents.ZERO)]), [])
    image = SimpleNamespace(disk="vda", size=SIZE, partial=partial, pieces=lambda: [zero] if partial else [])
    place = SimpleNamespace(size=SIZE, blank=False, sequential=False)
    tracemalloc.start()
    try:
        first = next(disk_restore.DiskRestore(image, place).batches())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    step = disk_restore.ZERO_STEP
    assert first.zeroes == [(number * step, step) for number in range(disk_restore.BATCH_ZEROES)]
    assert peak < 1 << 20
