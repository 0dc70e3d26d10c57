"""A program that we start, and that must not outlive us: not even where we end by SIGKILL.

Owns: how the kernel is asked for that, how a program of ours finds the package, and what one said. Must not know: which
program it is.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import IO, Any, Callable

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_PRCTL: Any = getattr(ctypes.CDLL(None), "prctl", lambda *_: -1)


def ended_with_us(number: int = signal.SIGKILL) -> Callable[[], None]:
    """For `preexec_fn` of Popen: the child gets this signal when the thread that starts it ends, which has to be one
    that lives as long as the child is of use.

    setpriv could do the same for any command, but not that of util-linux before 2.33.
    """
    us = os.getpid()

    def prepare() -> None:  # in the child, after the fork: nothing here may wait for a lock
        _PRCTL(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != us:  # we ended before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def finding_us(*folders: str) -> dict[str, str]:
    """The environment of a Python that imports this package, from whatever folder, and what is in those."""
    paths = [str(Path(__file__).parents[2]), *folders, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def said(log: IO[bytes], most: int = 1000) -> str:
    """What it wrote to its log, on one line; the last so many characters of that."""
    log.seek(0)
    return " ".join(log.read().decode(errors="replace").split())[-most:]
