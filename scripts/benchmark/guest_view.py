"""What a writer inside a Linux guest experiences while something else works on its disk. Must not know: which tool that
is.

The writer is ioping in the guest: 4 KiB past the page cache, one after the other, at random places of a disk that is
not mounted. The guest's own clock measures each write, so the time includes everything: the guest's kernel, its
processor that waits for a core of the host, QEMU, and what a backup job copies to scratch before it lets the write
pass.
"""

import os
import stat
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

LOOK_INTERVAL = 0.1  # seconds between looks at scratch


@dataclass(frozen=True)
class View:
    """Milliseconds of one write at the median and in the tail, writes a second; how long the work took, in seconds.
    growth: [(seconds since the work began, bytes of scratch), …]"""

    p50: float
    p99: float
    p999: float
    rate: float
    count: int
    seconds: float
    growth: list = field(default_factory=list)


def during(vm, disk, work):
    """Let the guest write while work() runs; return the View."""
    vm.start_ioping(disk)
    began = time.monotonic()
    with _scratch_growth(vm.pid) as growth:
        work()
    seconds = time.monotonic() - began
    return of_times(vm.stop_ioping(), seconds, growth)


def of_times(times, seconds, growth=()):
    """Return the View of the seconds that each write took."""
    ordered = sorted(times)
    at = [1000 * ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.99, 0.999)]
    return View(*at, rate=len(times) / sum(times), count=len(times), seconds=seconds, growth=list(growth))


@contextmanager
def _scratch_growth(pid):
    """Give a list that grows while the block runs: the size of the files that QEMU has opened since."""
    before, growth, stopped = set(_files_of(pid)), [], threading.Event()

    def look():
        began = time.monotonic()
        while not stopped.wait(LOOK_INTERVAL):
            used = sum(size for file, size in _files_of(pid).items() if file not in before)
            growth.append((round(time.monotonic() - began, 1), used))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield growth
    finally:
        stopped.set()
        thread.join()


def _files_of(pid):
    """Return {identity of a regular file that a process has open: its size in bytes}."""
    found = {}
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):  # closed meanwhile
            status = os.stat(f"/proc/{pid}/fd/{descriptor}")
            if stat.S_ISREG(status.st_mode):
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found
