"""Signals: INT, TERM and HUP become a flag that the work looks at.

Must not know: what the work is, or what is said about its end.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ..core import errors
from ..core.errors import Check

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopping() -> Iterator[Check]:
    """Yield the function that raises Interrupted once a signal has arrived."""
    got: list[int] = []

    def check() -> None:
        if got:
            raise errors.Interrupted(got[0], f"stopped by {signal.Signals(got[0]).name}")

    # One that is ignored stays so: that is how nohup works.
    heard = [number for number in HEARD if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: got.append(n)) for number in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
