"""Which reads serve the ranges that are wanted, and how much of the map is asked for next: figures alone.

Owns: what is read with its neighbours, what is looked at in pieces, the window of a block status request. Must not
know: connections.
"""

from __future__ import annotations

# QEMU answers a block status request in the guest's I/O thread, so that its length follows the time that one took.
MIN_STATUS, FIRST_STATUS, MAX_STATUS = 16 << 20, 256 << 20, 2 << 30  # bytes asked for in one request
SLOW_STATUS, QUICK_STATUS = 0.02, 0.005  # seconds
BRIDGE = 16 << 10  # bytes: what lies between two ranges is read with them, and dropped, where it is no more than this


def next_window(window, seconds):
    if seconds > SLOW_STATUS:
        return max(window // 2, MIN_STATUS)
    return min(window * 2, MAX_STATUS) if seconds < QUICK_STATUS else window


def bridged(ranges):
    """Join ascending ranges that are at most BRIDGE bytes apart: [(offset, length, ranges within), …]."""
    reads = []
    for offset, length in ranges:
        if reads and offset - (reads[-1][0] + reads[-1][1]) <= BRIDGE:
            reads[-1][1] = offset + length - reads[-1][0]
            reads[-1][2].append((offset, length))
        else:
            reads.append([offset, length, [(offset, length)]])
    return reads


def joined(ranges):
    """Ascending [start, stop) ranges, neighbours made one."""
    joined = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined
