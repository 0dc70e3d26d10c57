"""POST /finish: the client's word on a backup, for the thread that opened it.

Owns: the body of the request, that there is one answer to it, and that a second request is told so. Must not know: what
is done at a finish.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Optional

from .app import Route
from .message import Refused, Request, Response, json_response


class Finish:
    """ok: what the client said, None: nothing yet. Of the requests the first is answered with what `answer` is given;
    until then its client waits."""

    def __init__(self) -> None:
        self.ok: Optional[bool] = None
        self._lock = threading.Lock()
        self._asked, self._answered = threading.Event(), threading.Event()
        self._ready = False
        self._status, self._answer = 500, {}  # type: tuple[int, Mapping[str, Any]]

    def routes(self) -> list[Route]:
        return [Route(("finish",), ("POST",), self._post)]

    def begin(self) -> None:
        """From now on it can be asked for."""
        self._ready = True

    def wait(self, seconds: float) -> bool:
        """Whether a client has asked, after so long at most."""
        return self._asked.wait(seconds)

    def answer(self, status: int, members: Mapping[str, Any]) -> None:
        """Say what became of it, once: what is said later is not heard. Who asks later is told that he is too late."""
        with self._lock:
            if not self._answered.is_set():
                self._ready = False
                self._status, self._answer = status, members
                self._answered.set()

    def _post(self, request: Request) -> Response:
        ok = _said(request.body)
        with self._lock:
            if not self._ready or self._asked.is_set():
                raise Refused(409, "busy", "the backup has ended, is being ended, or has not begun")
            self.ok = ok
            self._asked.set()
        self._answered.wait()
        return json_response(self._answer, self._status)


def _said(body: bytes) -> bool:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or set(told) != {"ok"} or not isinstance(told["ok"], bool):
        raise Refused(400, "usage", 'send {"ok": true} where all that you need is durable, else {"ok": false}')
    return told["ok"]
