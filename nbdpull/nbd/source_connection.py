"""One connection to an export that is read: its handshake, its map, its bytes.

Owns: a libnbd handle for reading, its concurrent requests, and the errors for its failures and silence. Must not know:
other connections, what the extents are for.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy

from ..core import errors, sizes
from ..core.errors import Check
from . import batching, connection
from .address import Kept, Tcp
from .connection import POLL_INTERVAL, Connection
from .libnbd import nbd

if TYPE_CHECKING:
    from ..core.extents import Numbers, Range
    from .address import Address, Server
    from .batching import Piece

    UnderWay = deque[tuple["SourceConnection", list[tuple[int, int]]]]  # connection, what it started

# A guest's write waits for what QEMU has to read for us: so no connection requests more bytes than this at once. And if
# nobody takes the answers (we are stopped, or killed, or wait for a client of ours), this much fits into the server's
# unix socket, 208 KiB by default: with more, QEMU would hang as soon as it is paused, or the job is ended, and so would
# the guest.
MAX_BATCH_BYTES = 192 << 10
FAR_BATCH_BYTES = 1 << 20  # over TCP: the latency of an answer may be long, so more has to be in flight
GOODBYE = 1.0  # seconds for a server to acknowledge a disconnect
HANDSHAKE = 3.0  # seconds for the end of a handshake that is no longer needed
KEPT_HANDSHAKE = 12.0  # the same if we may not break it off: a QEMU that limits it gives up after 10
PIN = 1 << 16  # bytes of a read that locates an error, then PIN_FINE
PIN_FINE = 1 << 12
BROKEN = (errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN, errno.ECONNREFUSED, errno.ECONNABORTED,
          errno.ENOENT)  # fmt: skip

log = logging.getLogger("nbdpull.nbd")


class ConnectionLost(errors.SourceError):
    """The connection broke; a new one may work."""


class QueueFull(ConnectionLost):
    """Too many connections are being opened at once for the server's queue; it will soon have space."""


class ReadFailed(errors.SourceError):
    """The server answered a read with an error."""


class SourceConnection(Connection):
    """A connection to an export that is read.

    It does not disconnect from a server that has to hang up first, and avoids requests that such a server would answer
    by hanging up: a read that is answered in pieces and fails midway.
    """

    def __init__(
        self,
        address: Address,
        export: str,
        contexts: Sequence[str],
        reads_at_once: int,
        stall_timeout: float,
        check: Check,
    ):
        super().__init__(stall_timeout, check)
        self._export, self._reads_at_once, self._contexts = export, reads_at_once, contexts
        self._keeper: Any = address.keeper if isinstance(address, Kept) else None
        self._kept: Any = None
        server = address.address if isinstance(address, Kept) else address
        self._bytes_at_once = FAR_BATCH_BYTES if isinstance(server, Tcp) else MAX_BATCH_BYTES
        self._nbd.set_pread_initialize(False)  # 1 % of a pull; an answer that is too short is an error
        try:
            self._connect(server)
        except BaseException:
            self.close()
            raise

    def _connect(self, server: Server) -> None:
        with self._translated("connecting"):
            self._nbd.set_export_name(self._export)
            for context in self._contexts:
                self._nbd.add_meta_context(context)
            self._start(server)
            self._shake_hands()
            if not self._nbd.aio_is_ready():
                raise ConnectionLost(f"{self._export}: the NBD server closed the connection")
            self._require_contexts()
            self.size: int = self._nbd.get_size()
        log.info("connected to export %s of %s: %s", self._export, server, sizes.shown(self.size))

    def _shake_hands(self) -> None:
        try:
            self._poll_while(self._nbd.aio_is_connecting, "connecting")
        except BaseException:
            patience = KEPT_HANDSHAKE if self._keeper else HANDSHAKE
            with suppress(nbd.Error):
                _poll_until(lambda: not self._nbd.aio_is_connecting(), self._nbd, time.monotonic() + patience)
            raise

    def _start(self, server: Server) -> None:
        if self._keeper:
            self._nbd.aio_connect_socket(self._kept_socket(server))
            return
        if not isinstance(server, Tcp):
            self._nbd.aio_connect_unix(server)
            return
        if server.certificates:
            # Never ALLOW: that falls back to plain text. The peer is checked against the host name that we connect to.
            self._nbd.set_tls(nbd.TLS_REQUIRE)
            self._nbd.set_tls_certificates(server.certificates)
            self._nbd.set_tls_verify_peer(True)
        self._nbd.aio_connect_tcp(server.host, str(server.port))

    def _kept_socket(self, server: Server) -> int:
        """Return the descriptor of a connected socket for libnbd, which may close it: the keeper has duplicates."""
        try:
            with _connected(server, self._stall_timeout) as ours:
                self._kept = self._keeper.keep(ours)
                return ours.detach()
        except OSError as error:
            raise self._failure("connecting", error.errno or 0, str(error.strerror)) from error

    def _require_contexts(self) -> None:
        for context in self._contexts:
            if not self._nbd.can_meta_context(context):
                raise errors.SourceError(f"{self._export}: the NBD server does not offer {context}")
        if not self._nbd.is_read_only():
            raise errors.SourceError(f"{self._export}: the export is writable, so it is not a frozen image of the disk")

    def block_status(self, offset: int, length: int) -> list[tuple[Numbers, Numbers]]:
        """Return (lengths, flags) for each context; each may cover less than requested, and a different length."""
        doing = f"block status at {offset}"
        replies, failed = self._status(offset, length, doing)
        self._require_success(failed, doing)
        return [self._runs(replies.get(context, []), context, offset) for context in self._contexts]

    def _runs(self, answers: list[Any], context: str, offset: int) -> tuple[Numbers, Numbers]:
        if len(answers) != 1 or answers[0][0] != offset:
            raise errors.SourceError(f"{self._export}: the NBD server did not answer for {context} at byte {offset}")
        entries = numpy.array(answers[0][1], dtype="u8").reshape(-1, 2)
        return entries[:, 0], entries[:, 1]

    def _start_read(self, offset: int, view: memoryview) -> int:
        if self._keeper:
            return self._start_whole_read(offset, view)
        cookie: int = self._nbd.aio_pread(view, offset)
        return cookie

    def _start_whole_read(self, offset: int, view: memoryview) -> int:
        """Start a read with a single reply, so that an error midway comes as a reply, too.

        Not every server supports it.
        """
        whole = nbd.CMD_FLAG_DF if self._nbd.can_df() else 0
        cookie: int = self._nbd.aio_pread_structured(view, offset, _accept, None, whole)
        return cookie

    def begin_reads(self, load: Sequence[Piece]) -> list[tuple[int, int]]:
        """Request some pieces, of at most MAX_BATCH_BYTES together; pass the result to `end_reads`."""
        try:
            return [(self._start_read(offset, view), offset) for offset, view in load]
        except nbd.Error as error:
            raise self._failure(_reading(load[0][0]), error.errnum, error.string) from error

    def end_reads(self, begun: Sequence[tuple[int, int]]) -> None:
        """Wait until the buffers are filled. ReadFailed."""
        doing, failed = _reading(begun[0][1]), []  # type: str, list[Any]
        for cookie, _ in begun:
            self._wait(cookie, doing, failed)
        self._require_success(failed, doing, ReadFailed)

    def loads(self) -> int:
        """Return how many loads of MAX_BATCH_BYTES may be in flight."""
        return max(1, min(self._reads_at_once, self._bytes_at_once // MAX_BATCH_BYTES))

    def pieces(self) -> int:
        """Return how many pieces a load may have."""
        return max(1, self._reads_at_once // self.loads())

    def read_pinned(self, ranges: Sequence[Range]) -> list[memoryview]:
        """Read in small pieces; a SourceError lists all ranges that cannot be read."""
        views = _views(ranges)
        self.read_pinned_into(ranges, views)
        return views

    def read_pinned_into(self, ranges: Sequence[Range], views: Sequence[memoryview]) -> None:
        """Do the same as `read_pinned`, into buffers of the caller."""
        bad: list[tuple[int, int]] = []
        for (offset, length), view in zip(ranges, views):
            bad += self._pinned(offset, length, view, PIN)
        if bad:
            places = ", ".join(f"{start} to {stop - 1}" for start, stop in batching.joined(bad)[:10])
            raise errors.SourceError(
                f"disk {self._export}: reading at byte {bad[0][0]} failed, these bytes cannot be read: {places}"
            )

    def _pinned(self, offset: int, length: int, view: memoryview, step: int) -> list[tuple[int, int]]:
        """Read a range in steps; return the [start, stop) of those that fail."""
        bad: list[tuple[int, int]] = []
        for at, size in batching.steps(length, step):
            try:
                self._read_whole(offset + at, view[at : at + size])
            except ReadFailed:
                finer = step > PIN_FINE and size > PIN_FINE
                bad += self._pinned(offset + at, size, view[at : at + size], PIN_FINE) if finer else [
                    (offset + at, offset + at + size)]  # fmt: skip
        return bad

    def _read_whole(self, offset: int, view: memoryview) -> None:
        doing = _reading(offset)
        self._require_success(self._done(lambda: self._start_whole_read(offset, view), doing), doing, ReadFailed)

    def _require_success(
        self, failed: list[Any], doing: str, kind: type[errors.SourceError] = errors.SourceError
    ) -> None:
        """Raise if requests failed. failed: their nbd.Errors; kind: the class for an error in an answer of the
        server."""
        if failed:
            lost = self._nbd.aio_is_dead() or self._nbd.aio_is_closed() or failed[0].errnum == errno.ENOTCONN
            text = f"{self._export}: {doing} failed: {connection.reason(failed[0])}"
            raise (ConnectionLost if lost else kind)(text) from failed[0]

    def _silence(self, doing: str, seconds: float) -> errors.NbdpullError:
        return errors.SourceError(f"{self._export}: the NBD server was silent for {seconds:g} s while {doing}")

    def _failure(self, doing: str, number: int, text: str) -> errors.NbdpullError:
        if number == errno.EACCES:  # libvirt admits more users than the directory of QEMU's socket does
            return errors.AccessDenied(
                f"{self._export}: permission denied to connect to QEMU's NBD socket: run as root ({text})"
            )
        if number == errno.EAGAIN:  # only from a unix socket's connect
            return QueueFull(f"{self._export}: {doing} failed ({text})")
        lost = number in BROKEN or self._nbd is None or self._nbd.aio_is_dead() or self._nbd.aio_is_closed()
        return (ConnectionLost if lost else errors.SourceError)(f"{self._export}: {doing} failed ({text})")

    def close(self, deadline: Optional[float] = None) -> None:
        """Disconnect and close; do not wait for a server that does not answer."""
        handle, self._nbd = self._nbd, None
        if handle is None:
            return
        if self._keeper:
            with suppress(errors.HypervisorError):  # the keeper's check raises it
                if self._kept:
                    self._keeper.abandon(self._kept)
            return
        with suppress(nbd.Error):  # it was closed or lost already
            if handle.aio_is_ready() and not handle.aio_in_flight():
                handle.aio_disconnect()
                _poll_until(lambda: handle.aio_is_closed() or handle.aio_is_dead(), handle,
                            deadline or time.monotonic() + GOODBYE)  # fmt: skip
        _hang_up(handle)  # libnbd before 1.16 has no close()


def read_batch(connections: Sequence[SourceConnection], ranges: Sequence[Range]) -> list[memoryview]:
    """Read ascending [(offset, length), …], see `read_over`: a memoryview each, valid until the thread reads again."""
    reads = batching.bridged(ranges)
    buffers = _views([(start, length) for start, length, _ in reads])
    read_over(connections, [(start, view) for (start, _, _), view in zip(reads, buffers)])
    return [
        view[offset - start : offset - start + count]
        for (start, _, wanted), view in zip(reads, buffers)
        for offset, count in wanted
    ]


def read_over(connections: Sequence[SourceConnection], reads: Iterable[Piece]) -> None:
    """Fill buffers in one thread, over several connections of one export.

    While the thread takes the answer of one, the server works on the requests of the others.
    """
    end_over(begin_over(connections, reads))


def begin_over(connections: Sequence[SourceConnection], reads: Iterable[Piece]) -> UnderWay:
    """Do the same as `read_over` up to the last request; pass the result to `end_over`."""
    most = max(each.loads() for each in connections)
    idle = deque(each for number in range(most) for each in connections if number < each.loads())
    under_way: UnderWay = deque()
    pieces = ((start + at, view[at : at + size]) for start, view in reads
              for at, size in batching.steps(len(view), MAX_BATCH_BYTES))  # fmt: skip
    with _drained(under_way):
        for load in batching.loads(pieces, MAX_BATCH_BYTES, min(each.pieces() for each in connections)):
            used = idle.popleft() if idle else _ended(under_way)
            under_way.append((used, used.begin_reads(load)))
    return under_way


def end_over(under_way: UnderWay) -> None:
    """Wait until all buffers are filled. ReadFailed."""
    with _drained(under_way):
        while under_way:
            _ended(under_way)


@contextmanager
def _drained(under_way: UnderWay) -> Iterator[None]:
    """After a ReadFailed, wait for the other answers: then the connections can be used again."""
    try:
        yield
    except ReadFailed:
        while under_way:
            with suppress(ReadFailed):
                _ended(under_way)
        raise


def _ended(under_way: UnderWay) -> SourceConnection:
    used, begun = under_way.popleft()
    used.end_reads(begun)
    return used


_own = threading.local()  # the buffer of each thread, which uses what it read after it gave the connection back


def _reading(offset: int) -> str:
    return f"reading at byte {offset}"


def _views(ranges: Sequence[Range]) -> list[memoryview]:
    """Return a memoryview of the thread's buffer for each range."""
    size = sum(length for _, length in ranges)
    if len(getattr(_own, "buffer", b"")) < size:
        _own.buffer = bytearray(size)
    views, at = [], 0
    for _, length in ranges:
        views.append(memoryview(_own.buffer)[at : at + length])
        at += length
    return views


def _connected(server: Server, timeout: float) -> socket.socket:
    """Return a socket of ours that is connected to a path or a Tcp."""
    if isinstance(server, Tcp):
        return socket.create_connection((server.host, server.port), timeout)
    ours = socket.socket(socket.AF_UNIX)
    try:
        ours.setblocking(False)  # a full queue is an error at once
        ours.connect(server)
        return ours
    except BaseException:
        ours.close()
        raise


def _hang_up(handle: Any) -> None:
    """End the connection even if something still refers to the handle, such as an exception's traceback.

    QEMU does not end a job while a client of its server is in its handshake.
    """
    with suppress(nbd.Error, OSError), socket.socket(fileno=os.dup(handle.aio_get_fd())) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _poll_until(done: Callable[[], bool], handle: Any, deadline: float) -> None:
    while not done() and time.monotonic() < deadline:
        handle.poll(POLL_INTERVAL)


def _accept(_piece: Any, _offset: int, _status: int, _error: Any) -> int:
    """Accept a piece of a structured reply: its bytes are in the buffer already."""
    return 0
