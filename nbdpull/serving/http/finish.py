"""POST /finish: the client's verdict on a backup, for the thread that opened it.

Owns: the body of the request, that it is answered once, and that a second request is refused. Must not know: what is
done at a finish.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Optional

from ...core.members import each_once
from .app import Route
from .message import Refused, Request, Response, json_response


class Finish:
    """ok: the client's verdict, None: none yet.

    The first request is answered with the arguments of `answer`, and its client waits until then.
    """

    def __init__(self) -> None:
        self.ok: Optional[bool] = None
        self._lock = threading.Lock()
        self._asked, self._answered = threading.Event(), threading.Event()
        self._ready = False
        self._status, self._answer = 500, {}  # type: tuple[int, Mapping[str, Any]]

    def routes(self) -> list[Route]:
        return [Route(("finish",), ("POST",), self._post)]

    def begin(self) -> None:
        """Accept a request from now on."""
        self._ready = True

    def wait(self, seconds: float) -> bool:
        """Wait at most this long; return whether a client has sent the request."""
        return self._asked.wait(seconds)

    def answer(self, status: int, members: Mapping[str, Any]) -> None:
        """Set the response, once: later calls have no effect. Later requests are refused."""
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
        answer = json.loads(body, object_pairs_hook=each_once)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or set(answer) != {"ok"} or not isinstance(answer["ok"], bool):
        raise Refused(400, "usage", 'send {"ok": true} if all that you need is durable, else {"ok": false}')
    return answer["ok"]
