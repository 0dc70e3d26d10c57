"""Waiting for a server's answer, for as long as it is wanted.

A server may accept a request and never answer, and a thread that reads from a socket cannot be interrupted. So requests
are made in threads of their own, which are abandoned when the process has to end (core/ending.py), and end with it.
Owns: those threads, and how long to wait for an answer. Must not know: what is requested, which failures exist.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Optional, TypeVar

from ..core import ending, errors

_T = TypeVar("_T")
_STEP = 0.1  # seconds between two checks whether to end
LAST = 3.0  # seconds for an answer if the process already has to end: it only has to clean up


class Unanswered(Exception):
    """No answer has arrived, and there is no time left."""


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
    """Return what ask() returns, or raise what it raises. If ending.check() raises meanwhile, that is raised at once;
    if it does so from the start, Unanswered after LAST seconds."""
    if not ending.may_be_asked():
        return ask()
    left = LAST if _is_to_end() else None  # before the request begins: a signal during it ends the wait at once
    asked = _Asked(ask)
    asked.start()
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
