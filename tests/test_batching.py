"""What is read together, and how much of the map is asked for: figures alone."""

import pytest

from nbdpull.nbd import batching


@pytest.mark.parametrize("gap, reads", [(0, 1), (batching.BRIDGE, 1), (batching.BRIDGE + 512, 2)])
def test_ranges_close_together_share_a_read(gap, reads):
    joined = batching.bridged([(4096, 512), (4608 + gap, 1024)])
    assert len(joined) == reads
    assert sum(length for _, length, _ in joined) == 1536 + (gap if reads == 1 else 0)


def test_next_window_follows_the_time_that_one_took():
    window = batching.FIRST_STATUS
    assert batching.next_window(window, batching.SLOW_STATUS * 2) == window // 2
    assert batching.next_window(window, batching.QUICK_STATUS / 2) == window * 2
    assert batching.next_window(batching.MIN_STATUS, 10) == batching.MIN_STATUS
    assert batching.next_window(batching.MAX_STATUS, 0) == batching.MAX_STATUS
