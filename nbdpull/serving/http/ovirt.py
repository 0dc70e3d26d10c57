"""The volumes in ovirt-imageio's shape, for reading: /images/TICKET, /images/TICKET/extents; /images lists them.

Owns: paths, parameters and the answers' members, as in oVirt's imageio server; what a ticket gives access to. Must not
know: where a volume comes from.

imageio's client cannot send our header or parameter, so the access right is a part of the path: a ticket, derived from
the token and the disk's name. It gives read access to this disk, and reveals nothing of the token.
"""

from __future__ import annotations

import hmac
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any, Callable, Optional

from . import pages, volumes
from .app import Route
from .auth import Token
from .message import Refused, Request, Response, json_list_response, json_response
from .volume import DATA, ZERO, Volume

MAX_READERS = 8  # connections that a client may open for one disk: half of what the server handles at once

Changed = Callable[[Volume], Optional[Volume]]
Flags = dict[str, bool]


def routes(known: Mapping[str, Volume], token: Token, changes: Optional[Mapping[str, Volume]] = None) -> list[Route]:
    """Return the routes.

    known: the volumes by name, read anew for each request; changes: their changed parts; None: the incremental volumes
    themselves.
    """

    def changed(volume: Volume) -> Optional[Volume]:
        if changes is not None:
            return changes.get(volume.name)
        return volume if volume.mode == "incremental" else None

    def opened(request: Request, ticket: str) -> Volume:
        return _opened(known, token, request, ticket)

    def content(request: Request, ticket: str) -> Response:
        volume = opened(request, ticket)
        return volumes.content(volume, request, 0, volume.size)

    def extents(request: Request, ticket: str) -> Response:
        volume = opened(request, ticket)
        return json_list_response(_extents(volume, changed(volume), request.query.get("context") or "zero"))

    return [
        Route(("images",), ("GET",), lambda request: _listing(known, token, changed)),
        Route(("images", None), ("GET",), content, is_open=True),
        Route(("images", None), ("OPTIONS",), lambda *asked: _options(opened(*asked)), is_open=True),
        Route(("images", None, "extents"), ("GET",), extents, is_open=True),
    ]


def _opened(known: Mapping[str, Volume], token: Token, request: Request, ticket: str) -> Volume:
    """Return the volume of a ticket; or the volume of a name, if the request has the token itself."""
    names = list(known)
    # A list: each is compared, so that the time reveals nothing.
    named = [hmac.compare_digest(ticket.encode("utf-8", "replace"), token.ticket(name).encode()) for name in names]
    if any(named):
        return known[names[named.index(True)]]
    if ticket in names and token.is_shown(request.headers, request.query):
        return known[ticket]
    raise Refused(403, "access-denied", "there is no such ticket, or no longer; GET /images lists the valid ones")


def _listing(known: Mapping[str, Volume], token: Token, changed: Changed) -> Response:
    return json_response({"images": [
        {"name": name, "size": known[name].size, "dirty": changed(known[name]) is not None,
         "path": f"/images/{token.ticket(name)}"} for name in known
    ]})  # fmt: skip


def _options(volume: Volume) -> Response:
    features = {"features": ["extents"], "max_readers": MAX_READERS, "max_writers": 1}
    return json_response(features, headers={"Allow": "OPTIONS,GET,HEAD"})


def _extents(volume: Volume, changed: Optional[Volume], context: str) -> Generator[dict[str, Any], None, None]:
    """Return all extents, without pages or a limit: imageio has neither."""
    if context == "zero":
        return _joined(volume, lambda kind: {"zero": kind == ZERO, "hole": False})
    if context != "dirty":
        raise Refused(400, "usage", f"context is {context[:40]!r}: give zero or dirty")
    if changed is None:
        raise Refused(404, "full", f"disk {volume.name} is backed up in full: it has no dirty extents")
    return _joined(changed, lambda kind: {"dirty": kind in (DATA, ZERO), "zero": kind == ZERO})


def _joined(volume: Volume, flags: Callable[[str], Flags]) -> Generator[dict[str, Any], None, None]:
    """Yield the extents of the whole disk, no two neighbours with the same flags."""
    begun: Optional[tuple[int, Flags]] = None
    with closing(pages.complete(volume, 0, volume.size)) as found:
        for offset, _, kind in found:
            now = flags(kind)
            if begun is None or begun[1] != now:
                if begun is not None:
                    yield _extent(*begun, offset)
                begun = offset, now
    if begun is not None:
        yield _extent(*begun, volume.size)


def _extent(start: int, flags: Flags, stop: int) -> dict[str, Any]:
    return {"start": start, "length": stop - start, **flags}
