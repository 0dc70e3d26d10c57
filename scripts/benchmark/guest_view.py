"""What a writer inside the VM would feel: the time of each write, through the disk's own backend in QEMU.

The writer is QEMU's own qemu-io on the live disk, in the thread that serves the guest's requests: no system is in
between, whose noise under emulation is larger than what is measured. Must not know: the tools.
"""

import random
import time
from dataclasses import dataclass

BLOCK = 4096


@dataclass(frozen=True)
class View:
    """Milliseconds of one write at the median and in the tail, and writes a second."""

    p50: float
    p99: float
    p999: float
    rate: float


def writers_view(vm, seconds=None, running=None, seed=1):
    """Write until the time is up or `running()` is false, and tell how long the writes took."""
    chooser, taken = random.Random(seed), []
    domain, write = vm.domain, vm.quick_writer("vda")
    size, began = domain.blockInfo("vda")[0], time.monotonic()
    while running() if running else time.monotonic() - began < seconds:
        offset = chooser.randrange(size // BLOCK) * BLOCK
        start = time.perf_counter()
        write(f"write -q -P 7 {offset} {BLOCK}")
        taken.append(time.perf_counter() - start)
    taken.sort()
    at = [1000 * taken[min(int(len(taken) * part), len(taken) - 1)] for part in (0.5, 0.99, 0.999)]
    return View(*at, rate=len(taken) / (time.monotonic() - began))
