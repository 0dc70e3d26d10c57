"""The time that a run may take, as set by the operator.

Owns: when it has elapsed. Must not know: what is running.
"""

from __future__ import annotations

import time
from typing import Callable, Optional

from . import errors
from .errors import Check


def after(seconds: Optional[float]) -> Callable[[], bool]:
    """Return a function that reports whether this many seconds have passed since now; None: never."""
    end = None if seconds is None else time.monotonic() + seconds
    return lambda: end is not None and time.monotonic() > end


def bounded(check: Check, seconds: Optional[float], what: str) -> Check:
    """Return a check that also ends the run when its time is up. what: the thing that is running, for the message."""
    is_over = after(seconds)

    def check_both() -> None:
        check()
        if is_over():
            raise errors.LimitReached(f"{what} took longer than --max-duration ({seconds:g} s): it was ended")

    return check_both
