"""The volumes in KubeVirt's shape: /exports/NAME/map, /exports/NAME/data and /exportready.

Owns: paths, parameters and the answers' members, as in KubeVirt's export server, and our additions. Must not know:
where a volume comes from, who may read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import pages
from .app import Route
from .message import BYTES, Refused, Request, Response, json_response
from .volume import DATA, ZERO, Volume

PAGE_SIZE = 512
MAX_PAGE_SIZE = 1 << 16  # extents, 5 MB of JSON

# As in NBD's base:allocation and QEMU's dirty bitmap: the numbers of one have other meanings in the other.
DESCRIPTIONS = {
    "full": {DATA: (0, "data"), ZERO: (2, "zero")},
    "incremental": {pages.CLEAN: (0, "clean"), DATA: (1, "dirty"), ZERO: (3, "dirty,zero")},
}


def routes(volumes: Mapping[str, Volume]) -> list[Route]:
    """Return the routes. volumes: by name, read anew for each request."""

    def volume(name: str) -> Volume:
        if name not in volumes:
            raise Refused(404, "no-such-disk", f"there is no disk {name[:40]!r}")
        return volumes[name]

    return [
        Route(("exportready",), ("GET",), lambda request: _ready(volumes), is_open=True),
        Route(("exports", None, "map"), ("GET",), lambda request, name: _map(volume(name), request)),
        Route(("exports", None, "data"), ("GET",), lambda request, name: _data(volume(name), request)),
    ]


def _ready(volumes: Mapping[str, Volume]) -> Response:
    if not len(volumes):
        raise Refused(503, "not-ready", "nothing is exported yet, or no longer")
    return Response(200, {"Content-Type": "text/plain; charset=utf-8", "Content-Length": "2"}, [b"OK"])


def _map(volume: Volume, request: Request) -> Response:
    page_size = request.number("page_size", PAGE_SIZE)
    if not 0 < page_size <= MAX_PAGE_SIZE:
        raise Refused(400, "usage", f"page_size is {page_size}: give 1 to {MAX_PAGE_SIZE}")
    offset, stop = request.window(volume.size)
    page, following = pages.page(volume, offset, stop, page_size)
    return json_response({
        "extents": [_extent(volume.mode, *each) for each in page],
        "next_offset": following,
        "size": volume.size,
        "backup_type": volume.mode,
    })  # fmt: skip


def _extent(mode: str, offset: int, length: int, kind: str) -> dict[str, Any]:
    number, description = DESCRIPTIONS[mode][kind]
    return {"offset": offset, "length": length, "type": number, "description": description}


def _data(volume: Volume, request: Request) -> Response:
    return content(volume, request, *request.window(volume.size))


def content(volume: Volume, request: Request, begin: int, end: int) -> Response:
    """Return the bytes from begin to end, or the part of those that the request's Range selects."""
    part = request.range(end - begin)
    headers = {"Content-Type": BYTES, "Accept-Ranges": "bytes"}
    if part is not None:
        headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{end - begin}"
        begin, end = begin + part[0], begin + part[1]
    headers["Content-Length"] = str(end - begin)
    return Response(206 if part else 200, headers, volume.pieces(begin, end))
