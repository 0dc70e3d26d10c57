"""A program that we start, and that must not outlive us, even if we end by SIGKILL.

Owns: how to ask the kernel for that, how a program of ours finds the package, and reading a program's log. Must not
know: which program it is.
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
    """Return a `preexec_fn` for Popen: the child gets this signal when the thread that starts it ends.

    So that thread has to live as long as the child is needed. setpriv could do the same for any command, but not the
    one of util-linux before 2.33.
    """
    us = os.getpid()

    def prepare() -> None:  # in the child, after the fork: nothing here may wait for a lock
        _PRCTL(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != us:  # we ended before the kernel knew
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def finding_us(*folders: str) -> dict[str, str]:
    """Return the environment of a Python that imports this package, and modules in these folders, from any
    directory."""
    paths = [str(Path(__file__).parents[2]), *folders, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def said(log: IO[bytes], most: int = 1000) -> str:
    """Return the last `most` characters of a program's log, on one line."""
    log.seek(0)
    return " ".join(log.read().decode(errors="replace").split())[-most:]
