"""The identity of a process, for others that run later or elsewhere: which process it is, and whether it is alive.

Owns: what distinguishes a process or a machine from all others, and the one rule for both. Must not know: what it did.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import Optional

_ENDED = "ZXx"  # includes zombies: not yet reaped, but ended, and holding nothing any more


@dataclass(frozen=True)
class Process:
    """started: clock ticks since boot, as pids are reused; boot: the kernel's id; machine: from /etc/machine-id; host:
    its name, for people."""

    pid: int = 0
    started: int = 0
    boot: str = ""
    machine: str = ""
    host: str = ""

    @property
    def is_alive(self) -> Optional[bool]:
        """Whether it is running; None if that cannot be known from here."""
        if self.machine != _machine():
            return None
        return self.boot == _boot() and self.started == _start_time(self.pid)

    @property
    def is_dead(self) -> bool:
        """Whether it has ended; False if that cannot be known."""
        return self.is_alive is False


def of(pid: Optional[int] = None) -> Process:
    """Return a process of this machine, None = this one."""
    pid = os.getpid() if pid is None else pid
    return Process(pid, _start_time(pid) or 0, _boot(), _machine(), platform.node())


def _start_time(pid: int) -> Optional[int]:
    """Return the start time, None if there is no such process, or it has ended."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat") as file:
        state, *fields = file.read().rpartition(")")[2].split()
        return None if state in _ENDED else int(fields[18])
    return None


def _boot() -> str:
    return _line("/proc/sys/kernel/random/boot_id")


def _machine() -> str:
    return _line("/etc/machine-id") or platform.node()


def _line(path: str) -> str:
    with suppress(OSError), open(path) as file:
        return file.read().strip()
    return ""
