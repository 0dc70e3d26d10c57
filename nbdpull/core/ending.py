"""Whether this process is asked to end, for what waits far below where nobody hands it a check: requests to a server.

Owns: the check that counts in the process, and waits that it ends. Must not know: what asks for the end, who waits.
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
    """Meanwhile waits end with what check() raises, in any thread."""
    _checks.append(check)
    try:
        yield
    finally:
        _checks.remove(check)


def may_be_asked() -> bool:
    """Whether there is a check at all."""
    return bool(_checks)


def check() -> None:
    for each in _checks[-1:]:
        each()


def wait(seconds: float) -> None:
    """Or less, where check() raises something."""
    until = time.monotonic() + seconds
    check()
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _STEP))
        check()
