"""The WSGI application: a table of routes, and who may use them.

Owns: turning a WSGI environment into a Request, the check of the token before anything else, methods, and the response
to an error of a route. Another shape of the same volumes is another list of routes. Must not know: the server, volumes.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Callable, Optional, Union
from urllib.parse import parse_qsl

from ...core import errors
from . import message
from .auth import Token
from .message import Refused, Request, Response

log = logging.getLogger("nbdpull.http")

MAX_PARAMETERS = 16

StartResponse = Callable[..., Any]
Piece = Union[bytes, memoryview]
Call = Callable[..., Response]


@dataclass(frozen=True)
class Route:
    """A route.

    call(request, *names): answers requests whose path has these parts; None stands for any part, which becomes one of
    the names. HEAD is answered like GET, without the body. is_open: needs no token.
    """

    path: tuple[Optional[str], ...]
    methods: tuple[str, ...]
    call: Call
    is_open: bool = False

    def names(self, path: Sequence[str]) -> Optional[list[str]]:
        """Return what a path has in the places of None; None if the path does not match."""
        if len(path) != len(self.path) or any(mine not in (None, part) for mine, part in zip(self.path, path)):
            return None
        return [part for mine, part in zip(self.path, path) if mine is None]

    @property
    def allowed(self) -> tuple[str, ...]:
        return (*self.methods, "HEAD") if "GET" in self.methods else self.methods


class App:
    """The callable of a WSGI server. The pieces of a body may be memoryviews."""

    def __init__(self, routes: Sequence[Route], token: Token) -> None:
        self._routes, self._token = routes, token

    def __call__(self, environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[Piece]:
        method, path = environ["REQUEST_METHOD"], message.loggable(environ["PATH_INFO"])
        try:
            response = self._answer(_request(environ))
            body = _begun(response.body) if method != "HEAD" else []
        except Refused as error:
            response, body = _failed(error)
        except errors.NbdpullError as error:
            log.warning("%s %s: %s", method, path, error)
            response, body = _failed(Refused(500, error.code, str(error)))
        except Exception:
            log.exception("%s %s", method, path)  # without the query: it may contain the token
            response, body = _failed(Refused(500, "internal", "internal error"))
        phrase = HTTPStatus(response.status).phrase
        start_response(f"{response.status} {phrase}", [("Cache-Control", "no-store"), *response.headers.items()])
        return body if method != "HEAD" else []

    def _answer(self, request: Request) -> Response:
        found = [(route, names) for route in self._routes if (names := route.names(request.path)) is not None]
        if not (found and found[0][0].is_open) and not self._token.is_shown(request.headers, request.query):
            raise Refused(401, "access-denied", "wrong or missing token", {"WWW-Authenticate": "Bearer"})
        if not found:
            raise Refused(404, "no-such-path", "there is nothing at this path")
        allowed = [method for route, _ in found for method in route.allowed]
        for route, names in found:
            if request.method in route.allowed:
                return route.call(request, *names)
        raise Refused(405, "usage", f"use {' or '.join(allowed)}", {"Allow": ", ".join(allowed)})


def _request(environ: Mapping[str, Any]) -> Request:
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
    body = environ["wsgi.input"].read() if environ.get("wsgi.input") else b""
    return Request(
        environ["REQUEST_METHOD"], tuple(path.split("/")[1:]), _query(environ["QUERY_STRING"]), headers, body
    )


def _query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise Refused(400, "usage", f"more than {MAX_PARAMETERS} parameters") from None
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused(400, "usage", "a parameter is given twice")
    return found


def _failed(error: Refused) -> tuple[Response, Iterable[Piece]]:
    response = message.error_response(error)
    return response, response.body


def _begun(body: Iterable[Piece]) -> Iterator[Piece]:
    """Return the same pieces, with the first one already fetched, so that its failure is still an error response."""
    pieces = iter(body)
    first = next(pieces, None)
    return _rest(first, pieces)


def _rest(first: Optional[Piece], pieces: Iterator[Piece]) -> Iterator[Piece]:
    try:
        if first is not None:
            yield first
            yield from pieces
    finally:
        if isinstance(pieces, Generator):  # it may read ahead
            pieces.close()
