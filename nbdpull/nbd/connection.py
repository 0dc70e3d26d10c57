"""One connection to an NBD server: a libnbd handle that is polled, so that no call blocks for ever.

Owns: polling, silence, several requests at once, and where libnbd's errors are caught. Must not know: whether its
export is read or written, and which of our errors libnbd's become: its subclasses decide that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Callable, Optional

from ..core import errors
from ..core.errors import Check
from .libnbd import nbd

if TYPE_CHECKING:
    from .batching import Piece

ALLOCATION = "base:allocation"
STATE_ZERO = 1 << 1  # of base:allocation; its HOLE bit promises nothing about the content and is ignored
POLL_INTERVAL = 250  # milliseconds
MAX_AT_ONCE = 16  # QEMU handles no more requests of a connection at once


class Connection:
    """A connection, used by one thread at a time. No call blocks for longer than the stall timeout.

    check() is called during a wait for the server, and its exception ends the wait.
    """

    def __init__(self, stall_timeout: float, check: Check):
        self._stall_timeout, self._check = stall_timeout, check
        self._check_at = 0.0
        self._nbd: Any = nbd.NBD()

    def _failure(self, doing: str, number: int, text: str) -> errors.NbdpullError:
        """Return our error for one of libnbd's. number: an errno, or 0."""
        raise NotImplementedError

    def _silence(self, doing: str, seconds: float) -> errors.NbdpullError:
        """Return the error for a server that sent nothing for this long."""
        raise NotImplementedError

    def _at_once(
        self,
        start: Callable[[int, memoryview], int],
        pieces: Iterable[Piece],
        doing: Callable[[int], str],
    ) -> list[Any]:
        """Perform a request for each piece, MAX_AT_ONCE at once; return the nbd.Errors of those that failed.

        After a failure, only wait for the requests in flight. start: starts a request, returns its cookie; doing:
        describes it.
        """
        under_way: deque[tuple[int, int]] = deque()  # cookie, offset
        failed: list[Any] = []
        for offset, view in pieces:
            if len(under_way) >= MAX_AT_ONCE:
                cookie, at = under_way.popleft()
                self._wait(cookie, doing(at), failed)
            if failed:
                break
            under_way.append((start(offset, view), offset))
        for cookie, at in under_way:
            self._wait(cookie, doing(at), failed)
        return failed

    def _done(self, start: Callable[[], int], doing: str) -> list[Any]:
        """Perform one request; return its nbd.Error in a list, or an empty list."""
        failed: list[Any] = []
        with self._translated(doing):
            self._wait(start(), doing, failed)
        return failed

    def _status(self, offset: int, length: int, doing: str) -> tuple[dict[str, list[Any]], list[Any]]:
        """Return ({context: [(offset, [length, flags, length, flags …]), …]} as the server reports it, the
        nbd.Errors)."""
        replies: dict[str, list[Any]] = {}

        def collect(context: str, at: int, entries: list[int], _error: Any) -> int:
            replies.setdefault(context, []).append((at, entries))
            return 0  # libnbd holds the handle's lock here: all processing is done outside

        return replies, self._done(lambda: self._nbd.aio_block_status(length, offset, collect), doing)

    def _wait(self, cookie: int, doing: str, failed: list[Any]) -> None:
        """Wait for the end of a request, and append its nbd.Error, if any, to `failed`.

        Only querying the completion shows that an answer to a read was too short; a completion callback does not.
        """
        try:
            self._poll_while(lambda: not self._nbd.aio_command_completed(cookie), doing)
        except nbd.Error as error:
            failed.append(error)

    def _poll_while(self, pending: Callable[[], bool], doing: str, stall: Optional[float] = None) -> None:
        heard, stall = time.monotonic(), self._stall_timeout if stall is None else stall
        while pending():
            progress, now = self._nbd.poll(POLL_INTERVAL), time.monotonic()
            if now >= self._check_at:  # not each time: it takes longer than a poll
                self._check()
                self._check_at = now + POLL_INTERVAL / 1000
            if progress:
                heard = now
            elif now > heard + stall:
                raise self._silence(doing, stall)

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except nbd.Error as error:
            raise self._failure(doing, error.errnum, error.string) from error


def reason(error: Any) -> str:
    """Return why a request failed; an error for a violation of the protocol has no number."""
    return os.strerror(error.errnum) if error.errnum else str(error.string)
