"""The time that a run may take, as the operator told it.

Owns: when it is up. Must not know: what is running.
"""

from __future__ import annotations

import time
from typing import Optional

from . import errors
from .errors import Check


def bounded(check: Check, seconds: Optional[float], what: str) -> Check:
    """The same check, which also ends the run when its time is up. what: is running, for the message."""
    if seconds is None:
        return check
    deadline = time.monotonic() + seconds

    def check_both() -> None:
        check()
        if time.monotonic() > deadline:
            raise errors.LimitReached(f"{what} took longer than --max-duration ({seconds:g} s): it was ended")

    return check_both
