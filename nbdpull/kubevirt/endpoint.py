"""The HTTP endpoint of a KubeVirt backup: pages of maps, and ranges of bytes, bounded, counted and retried.

Owns: requests, the token's header, which answers are retried and for how long, and that a truncated answer is never
taken for a complete one. Must not know: what a map means, the cluster.

A route in front may cut every answer after 30 seconds, the server aborts an answer that fails midway, and KubeVirt may
create the export anew elsewhere. So we keep the received part of a truncated answer and request the rest, and call
`renew` to learn where the endpoint is now.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import urlencode

from ..core import errors
from ..core.errors import Check

TOKEN_HEADER = "x-kubevirt-export-token"  # noqa: S105
PAGE_SIZE = 1 << 14  # extents
MAX_PAGE = 1 << 23  # bytes of JSON
SHORTEST = 1 << 20  # bytes of a disk: the shortest range of a request for a map
LONGEST = 1 << 36
GROWS = 16  # answers after which a longer range is tried again
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 10.0, 30.0
PAUSE, MAX_PAUSE = 0.1, 5.0  # seconds before the second try, and at most
_PARTIAL_CHAIN = ssl.VerifyFlags(0x80000)  # X509_V_FLAG_PARTIAL_CHAIN; Python 3.9 has no name for it
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may change soon
_AT_THE_END = (400, 416, 500)  # statuses for an offset equal to the size: KubeVirt's is 500
_MISSING = "the library urllib3 is not installed: pip install 'nbdpull[kubevirt]'"

log = logging.getLogger("nbdpull.http")


class Urls(NamedTuple):
    """The URLs of one volume."""

    map: str
    data: str


class Access(NamedTuple):
    """Where the volumes of a backup are, by name. ca: PEM to verify the server with, None = the system's."""

    volumes: Mapping[str, Urls]
    ca: Optional[str]


class _Passing(Exception):
    """A failure that may pass; the message describes it."""


class Endpoint:
    """The endpoint of one backup. Several threads may read at once.

    renew: returns where it is now, None: it does not move. It raises if the endpoint will not come back. check() is
    called often, and its exception ends a call. SourceError if a call fails for stall_timeout seconds.
    """

    def __init__(
        self,
        access: Access,
        token: str,
        threads: int,
        stall_timeout: float,
        check: Check = lambda: None,
        renew: Optional[Callable[[], Access]] = None,
    ) -> None:
        self._token, self._threads, self._stall_timeout = token, threads, stall_timeout
        self._check, self._renew = check, renew
        self._lock = threading.Lock()
        self._live: set[Any] = set()  # connections with an answer in progress
        self._closed = False
        self._longest, self._answered = LONGEST, 0  # longest request for a map; answers since it was shortened
        self._access, self._pool = access, _pool(access.ca, threads)

    @property
    def volumes(self) -> list[str]:
        return list(self._access.volumes)

    # What is requested

    def map_page(self, volume: str, offset: int, length: int) -> Any:
        """Return a page of the map, unparsed, for that range or, if the answer took too long, a shorter one."""

        def attempt() -> Any:
            return self._page(volume, offset, min(length, self._longest))

        def shorten() -> None:
            self._longest, self._answered = max(min(length, self._longest) // 4, SHORTEST), 0

        found = self._tried(f"the map of {volume} at byte {offset}", attempt, shorten)
        self._answered += 1
        if self._answered % GROWS == 0:
            self._longest = min(2 * self._longest, LONGEST)
        return found

    def map_behind(self, volume: str, offset: int) -> Any:
        """Return the page of a volume from `offset` on; None if the volume ends there.

        At the end the server answers only with an error, which it may also use for something else. So ask twice.
        """
        what = f"the map of {volume} at byte {offset}"
        for _ in range(2):
            found = self._tried(what, lambda: self._page(volume, offset, self._longest, may_end=True))
            if found is not None:
                break
        return found

    def _page(self, volume: str, offset: int, length: int, may_end: bool = False) -> Any:
        query = {"offset": offset, "length": length, "page_size": PAGE_SIZE}
        with self._answer(volume, self._access.volumes[volume].map, query, _AT_THE_END if may_end else ()) as answer:
            if answer.status != 200:
                return None
            data = b"".join(_bounded(answer.stream(1 << 16), MAX_PAGE))
        try:
            return json.loads(data)
        except ValueError:
            raise _Passing("the answer is not JSON") from None

    def read_into(self, volume: str, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes of a volume from `offset` on."""
        filled = 0

        def attempt() -> None:
            nonlocal filled
            query = {"offset": offset + filled, "length": len(view) - filled}
            with self._answer(volume, self._access.volumes[volume].data, query, (206,)) as answer:
                _require_place(volume, answer, offset + filled)
                for piece in answer.stream(1 << 18):
                    if filled + len(piece) > len(view):
                        raise errors.SourceError(f"{volume}: received more bytes than requested at byte {offset}")
                    view[filled : filled + len(piece)] = piece
                    filled += len(piece)
                    self._require_open()
            if filled < len(view):
                raise _Passing(f"the answer ended {len(view) - filled} bytes early")

        self._tried(f"{volume} at byte {offset}", attempt, progress=lambda: filled)

    # How it is requested

    def _tried(
        self,
        what: str,
        attempt: Callable[[], Any],
        react: Callable[[], None] = lambda: None,
        progress: Callable[[], int] = lambda: 0,
    ) -> Any:
        """Return what attempt() returns once it succeeds. Restart time and pauses whenever progress() grows."""
        began, pause, reached = time.monotonic(), PAUSE, progress()
        while True:
            self._require_open()
            try:
                return attempt()
            except _Passing as error:
                why = str(error)
            self._require_open()
            if progress() > reached:
                began, pause, reached = time.monotonic(), PAUSE, progress()
            elif time.monotonic() - began > self._stall_timeout:
                raise errors.SourceError(f"cannot read {what}: {why}; tried for {self._stall_timeout:g} s")
            log.info("%s: %s; trying again in %.1f s", what, why, pause)
            self._sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)
            react()
            looked = time.monotonic()
            self._look_again()
            began += time.monotonic() - looked  # KubeVirt may create it anew meanwhile

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._require_open()
            time.sleep(min(left, 0.1))

    def _look_again(self) -> None:
        if self._renew is None:
            return
        access = self._renew()
        with self._lock:
            if access != self._access:
                log.info("the endpoint has moved")
                if access.ca != self._access.ca:
                    self._pool = _pool(access.ca, self._threads)
                self._access = access

    def _require_open(self) -> None:
        self._check()  # first: its error says why the endpoint was closed
        if self._closed:
            raise errors.SourceError("the endpoint was closed")

    @contextmanager
    def _answer(self, volume: str, url: str, query: Mapping[str, int], accepted: Collection[int] = ()) -> Iterator[Any]:
        """Yield a successful answer to a GET, or one with an accepted status; _Passing if it fails, or breaks while it
        is read."""
        import urllib3

        joined = f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"
        wait = min(self._stall_timeout, ANSWER_TIMEOUT)
        timeout = urllib3.Timeout(connect=min(wait, CONNECT_TIMEOUT), read=wait)
        try:
            answer = self._pool.request("GET", joined, headers={TOKEN_HEADER: self._token}, timeout=timeout,
                                        retries=False, redirect=False, preload_content=False)  # fmt: skip
            with self._living(answer):
                if answer.status not in (200, *accepted):
                    self._refuse(volume, answer)
                yield answer
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if is_unverified(error) and not self._renew:
                host = url.partition("//")[2].partition("/")[0]
                raise errors.SourceError(
                    f"{host} cannot be verified: {_reason(error)}; give its CA certificates with --ca"
                ) from None
            raise _Passing(_reason(error)) from None

    @contextmanager
    def _living(self, answer: Any) -> Iterator[None]:
        connection = getattr(answer, "connection", None)
        with self._lock:
            self._live.add(connection)
        whole = False
        try:
            yield
            whole = True
        finally:
            with self._lock:
                self._live.discard(connection)
            if whole:
                answer.release_conn()
            else:
                answer.close()  # its rest must not be taken for the next answer

    def _refuse(self, volume: str, answer: Any) -> None:
        status = answer.status
        if status in (401, 403):
            raise errors.AccessDenied(
                f"{volume}: the server refuses the token (status {status}): it has expired, or is of another backup"
            )
        if status in _PASSING or (status == 404 and self._renew):
            raise _Passing(f"status {status}")
        more = "; redirects are not followed, as they would receive the token" if 300 <= status < 400 else ""
        raise errors.SourceError(f"{volume}: the server answered with status {status}{more}")

    def close(self) -> None:
        """Close the endpoint. Reads in other threads soon fail."""
        self._closed = True
        with self._lock:
            for connection in self._live:
                with suppress(AttributeError, OSError, ValueError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            self._pool.clear()

    def ending(self, check: Check) -> Check:
        """Return a check that also closes the endpoint if it ends the run, because its threads wait for answers."""

        def checked() -> None:
            try:
                check()
            except BaseException:
                self.close()
                raise

        return checked

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _bounded(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise errors.SourceError(f"a page of a map has more than {limit} bytes")
        yield piece


def _require_place(volume: str, answer: Any, offset: int) -> None:
    """Raise SourceError if an answer consists of other bytes than those from `offset` on."""
    place = answer.headers.get("Content-Range")
    if (place or answer.status == 206) and not str(place).startswith(f"bytes {offset}-"):
        raise errors.SourceError(f"{volume}: received the range {place} instead of the bytes from {offset} on")


def is_unverified(error: BaseException) -> bool:
    """Return whether the error is about a certificate; the library wraps it."""
    inner = [error, *error.args, error.__cause__, error.__context__]
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in inner)


def _reason(error: Exception) -> str:
    """Return what went wrong, without the library's object names."""
    text = str(error.__cause__ or error) or type(error).__name__
    return " ".join(text.rpartition(">: ")[2].split())[:200]


def _pool(ca: Optional[str], threads: int) -> Any:
    try:
        import urllib3
    except ImportError:
        raise errors.MissingSoftware(_MISSING) from None
    try:
        context = ssl.create_default_context(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise errors.UsageError(f"cannot read the certificates that verify the server: {error}") from None
    # A cluster may report its router's own certificate, and CAs may lack what Python 3.13 requires.
    context.verify_flags = (context.verify_flags | _PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    return urllib3.PoolManager(maxsize=threads + 1, cert_reqs="CERT_REQUIRED", ssl_context=context)
