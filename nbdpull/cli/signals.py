"""Signals: INT, TERM, HUP and QUIT set a flag that the work checks.

Must not know: what the work is, or what is printed at its end.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ..core import errors
from ..core.errors import Check

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def stopping() -> Iterator[Check]:
    """Yield the function that raises Interrupted once a signal has arrived."""
    got: list[int] = []

    def check() -> None:
        if got:
            raise errors.Interrupted(got[0], f"stopped by {signal.Signals(got[0]).name}")

    # An ignored signal remains ignored: nohup relies on that.
    heard = [number for number in HEARD if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: got.append(n)) for number in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
