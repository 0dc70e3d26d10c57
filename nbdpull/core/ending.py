"""Whether this process was asked to end, for code that waits deep down and receives no check: requests to a server.

Owns: the check that applies in the process, and waits that it can end. Must not know: who requests the end, what waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import Check

_STEP = 0.2  # seconds
_checks: list[Check] = []


@contextmanager
def asked_by(check: Check) -> Iterator[None]:
    """Inside the block, end waits with the exception from check(), in any thread."""
    _checks.append(check)
    try:
        yield
    finally:
        _checks.remove(check)


def may_be_asked() -> bool:
    """Return whether any check applies."""
    return bool(_checks)


def check() -> None:
    for each in _checks[-1:]:
        each()


def wait(seconds: float) -> None:
    """Sleep, unless check() raises."""
    until = time.monotonic() + seconds
    check()
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _STEP))
        check()
