"""A request and its response, as the routes see them: numbers, ranges, JSON.

Owns: what a request may contain, and the status otherwise. Must not know: the server, what a route is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Optional, Union

LIST_PIECE = 1 << 10  # values of a list that are sent at once
MAX_NUMBER = (1 << 63) - 1
JSON = "application/json"
BYTES = "application/octet-stream"

_NUMBER = re.compile(r"[0-9]{1,19}")
_TICKET = re.compile(r"^(/images/)[^/]+")
_RANGE = re.compile(r"bytes=\s*([0-9]{0,100})-([0-9]{0,100})\s*")


class Refused(Exception):
    """A request that is answered with an error. code: a word for programs; headers: additional ones."""

    def __init__(self, status: int, code: str, message: str, headers: Optional[Mapping[str, str]] = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


@dataclass(frozen=True)
class Request:
    """path: its parts, decoded; query: each parameter once, decoded; headers: by their names in lower case."""

    method: str
    path: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def number(self, name: str, default: int = 0) -> int:
        """Return a decimal parameter; an empty one counts as missing."""
        text = self.query.get(name, "")
        if not text:
            return default
        if not _NUMBER.fullmatch(text) or int(text) > MAX_NUMBER:
            raise Refused(400, "usage", f"{name} is {text[:40]!r}: give a decimal number of at least 0")
        return int(text)

    def window(self, size: int) -> tuple[int, int]:
        """Return start and end of the range that the parameters offset and length select from `size` bytes.

        length 0, or one that is too long, means up to the end.
        """
        offset, length = self.number("offset"), self.number("length")
        if offset > size or (offset == size and size):
            raise Refused(400, "usage", f"offset {offset} is not within the disk, which has {size} bytes")
        return offset, min(offset + length, size) if length else size

    def range(self, size: int) -> Optional[tuple[int, int]]:
        """Return start and end of the single range in the Range header; None if there is none, or one in another unit.

        Also None for HEAD, which has no ranges (RFC 9110, 14.2), and if the range depends on a validator: we send none,
        so the client has the rest from somewhere else.
        """
        text = self.headers.get("range", "")
        if self.method == "HEAD" or not text.startswith("bytes=") or "if-range" in self.headers:
            return None
        match = _RANGE.fullmatch(text)
        first, last = match.groups() if match else ("", "")
        if first:
            start, stop = int(first), min(int(last) + 1, size) if last else size
        else:
            start, stop = max(size - int(last or 0), 0), size
        if start >= stop:
            raise Refused(416, "usage", "give one range, within the content", {"Content-Range": f"bytes */{size}"})
        return start, stop


@dataclass(frozen=True)
class Response:
    """body: pieces, with a total length equal to the header Content-Length, or of any length without it; memoryviews
    are valid until the next is taken."""

    status: int
    headers: Mapping[str, str]
    body: Iterable[Union[bytes, memoryview]] = ()


def loggable(path: str) -> str:
    """Return a path without the part that may be a ticket."""
    return _TICKET.sub(r"\1…", path)


def json_response(value: Any, status: int = 200, headers: Optional[Mapping[str, str]] = None) -> Response:
    text = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return Response(status, {"Content-Type": JSON, "Content-Length": str(len(text)), **(headers or {})}, [text])


def json_list_response(values: Generator[Any, None, None]) -> Response:
    """Return a list of any length, sent while its values are generated. If it is cut short, it is not valid JSON."""
    return Response(200, {"Content-Type": JSON}, _list(values))


def _list(values: Generator[Any, None, None]) -> Iterator[bytes]:
    before = b"["
    with closing(values):
        while some := list(islice(values, LIST_PIECE)):
            yield before + json.dumps(some, separators=(",", ":"))[1:-1].encode()
            before = b","
    yield b"[]\n" if before == b"[" else b"]\n"


def error_response(error: Refused) -> Response:
    return json_response({"code": error.code, "message": str(error)}, error.status, error.headers)
