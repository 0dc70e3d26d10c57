"""Waiting for a server's answer, for no longer than anybody wants it.

A server may take a request and never answer, and nothing ends a thread that reads from a socket. So requests are made
in threads of their own, which are left where the process is to end (core/ending.py): they end with it. Owns: those
threads, and how long is waited for an answer. Must not know: what is requested, which failures there are.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Optional, TypeVar

from ..core import ending, errors

_T = TypeVar("_T")
_STEP = 0.1  # seconds between two looks at whether to end
LAST = 3.0  # seconds for an answer, of a process that was to end before it asked: it has only to clean up


class Unanswered(Exception):
    """There is no answer yet, and no time."""


class _Asked(threading.Thread):
    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.answer: Any = None
        self.error: Optional[BaseException] = None

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except BaseException as error:
            self.error = error


def answer(ask: Callable[[], _T]) -> _T:
    """What ask() returns, or raises; what ending.check raises, as soon as it does. Where it does from the start:
    Unanswered after some seconds."""
    if not ending.may_be_asked():
        return ask()
    asked = _Asked(ask)
    asked.start()
    left = LAST if _is_to_end() else None
    while True:
        asked.join(_STEP)
        if not asked.is_alive():
            break
        if left is None:
            ending.check()
        else:
            left -= _STEP
            if left <= 0:
                raise Unanswered(f"no answer in {LAST:g} s, and the process is to end")
    if asked.error is not None:
        raise asked.error
    found: _T = asked.answer
    return found


def _is_to_end() -> bool:
    try:
        ending.check()
    except errors.NbdpullError:
        return True
    return False
