"""Runs one command and tells what it cost. Must not know: which tool it is, or what is compared."""

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A measured command failed: its output is the message."""


@dataclass(frozen=True)
class Cost:
    """Seconds of wall clock and of CPU (the command's and QEMU's), MiB of peak memory, bytes of what it left.

    data: bytes of guest data that it went through, 0 where that is not what is measured.
    """

    wall: float
    cpu: float
    qemu_cpu: float
    peak_mib: float
    size: int
    data: int = 0


def run(command, qemu_pid=None, output=None, log=None, env=None):
    """Run a command to its end; output: a folder or file whose size is its result. Failed unless it exits with 0."""
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
    """Wait for a process's end; its status, its rusage, and the peak memory in MiB of it and what it started.

    ru_maxrss is of no use: the memory of whoever forked the process counts into it. VmHWM begins anew at exec.
    """
    peak = 0
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, usage, peak / 1024
        peak = max(peak, sum(map(_peak_kib, _tree(pid))))
        time.sleep(0.005)


def _tree(pid):
    """A process and all that descend from it."""
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
    """Seconds of CPU that a process has used, all of its threads."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def cpu_of_all(pid):
    """The same of it and of what it started that still runs."""
    return sum(map(cpu_of, _tree(pid)))


def size_of(path):
    """Bytes allocated on disk by a file or by all files of a folder."""
    files = [path] if Path(path).is_file() else [file for file in Path(path).rglob("*") if file.is_file()]
    return sum(os.stat(file).st_blocks * 512 for file in files)
