"""Runs one command and measures its cost. Must not know: which tool it is, or what is compared."""

import os
import select
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
MEMORY = "/dev/shm"  # a file system without a disk
LOOK = 20  # milliseconds between two looks at the memory of a command


class Failed(Exception):
    """A measured command failed: its output is the message."""


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock and of CPU (the command's and QEMU's), MiB of peak memory, bytes of the result. data: bytes
    of guest data that were processed, 0 if that is not measured."""

    wall: float
    cpu: float
    qemu_cpu: float
    peak_mib: float
    size: int
    data: int = 0


def run(command, qemu_pid=None, output=None, log=None, env=None):
    """Run a command to its end; output: a directory or file whose size is its result. Failed unless it exits with 0."""
    before, start = cpu_of(qemu_pid), time.monotonic()
    with open(log, "wb") as sink:
        process = subprocess.Popen(list(map(str, command)), stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=env)
        status, usage, peak_mib = _watch(process.pid)
    wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(
            f"{' '.join(map(str, command))}: exit {process.returncode}\n{Path(log).read_text(errors='replace')}"
        )
    return Cost(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        qemu_cpu=cpu_of(qemu_pid) - before,
        peak_mib=peak_mib,
        size=size_of(output) if output else 0,
    )


def _watch(pid):
    """Wait for the end of a process; return its status, its rusage, and the peak memory in MiB of it and its children.

    ru_maxrss is of no use: it includes the memory of the process that forked. VmHWM starts again at exec.
    """
    peak, end = 0, select.poll()
    with open(os.pidfd_open(pid)) as process:
        end.register(process, select.POLLIN)
        while not end.poll(LOOK):
            peak = max(peak, sum(map(_peak_kib, _tree(pid))))
    _, status, usage = os.wait4(pid, 0)
    return status, usage, peak / 1024


def _tree(pid):
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:
        with suppress(OSError):  # it ended meanwhile
            for thread in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{thread}/children").read_text().split())
    return found


def _peak_kib(pid):
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    return 0


def cpu_of(pid):
    """Return the seconds of CPU that a process has used, with all of its threads."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def cpu_of_all(pid):
    """Return the same for it and its children that still run."""
    return sum(map(cpu_of, _tree(pid)))


def size_of(path):
    """Return the bytes allocated on disk by a file or by all files of a directory."""
    files = [path] if Path(path).is_file() else [file for file in Path(path).rglob("*") if file.is_file()]
    return sum(os.stat(file).st_blocks * 512 for file in files)
