"""A live disk over NBD: its size, its extents, its bytes. The only file that knows a libnbd handle on the way in.

Owns: connections, what block status means, and the proof that the map covers the disk. nbd.Error and silence are
translated here. Must not know: libvirt, files, compression.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Any, NamedTuple, Optional, Union

import numpy

from ..core import errors, extents, pipeline

try:
    import nbd
except ImportError as error:  # the package called "nbd" on PyPI is something else
    raise errors.MissingSoftware(
        "libnbd's Python bindings are not installed: install python3-libnbd (Debian, Ubuntu, Fedora, RHEL), and run "
        "nbdpull with the distribution's own python3"
    ) from error

OLDEST = (1, 14)  # older bindings read into buffers of their own only

ALLOCATION = "base:allocation"
DIRTY_BITMAP = "qemu:dirty-bitmap:"

STATE_ZERO = 1 << 1  # of base:allocation; its HOLE bit promises nothing about the content and is ignored
STATE_DIRTY = 1 << 0  # of a dirty bitmap

# QEMU answers a block status request in the guest's I/O thread, so that its length follows the time that one took.
MIN_STATUS, FIRST_STATUS, MAX_STATUS = 16 << 20, 256 << 20, 2 << 30  # bytes asked for in one request
SLOW_STATUS, QUICK_STATUS = 0.02, 0.005  # seconds
MAX_CLUSTER = 2 << 20  # bytes, of qcow2
STATUS_AHEAD = 4  # replies taken in advance, each at most a few MB
BRIDGE = 16 << 10  # bytes: what lies between two ranges is read with them, and dropped, where it is no more than this
MAX_BATCH_READS = 16  # QEMU works on no more requests of a connection at once
# A guest's write waits for what QEMU has to read for us: so no connection asks for more bytes than this at once. And if
# nobody takes the answers (we are stopped, or killed), this much fits into the server's socket, 208 KiB by default:
# with more QEMU stands still as soon as it is to be paused, or the job to be ended, and so does the guest.
MAX_BATCH_BYTES = 192 << 10
FAR_BATCH_BYTES = 1 << 20  # by TCP: an answer may be long on its way, and the more have to be
POLL_INTERVAL = 250  # milliseconds
GOODBYE = 1.0  # seconds for a server to take leave
HANDSHAKE = 3.0  # seconds for the end of a handshake that nobody wants any more
KEPT_HANDSHAKE = 12.0  # the same where we may not break it off: a QEMU that limits it gives up after 10
# QEMU 9.1 and later (and older ones that were mended as it was) serve 100 connections, and let the next one wait for
# ever. Some may be somebody else's.
MAX_CONNECTIONS = 90
READERS = 4  # connections of a disk beside the map's: QEMU reads a disk in one thread, and more did nothing for it
TRIES = 5  # of a read or map request whose connection broke, each on a new connection
SHORT_PAUSE = 0.02  # seconds until a server's queue is looked at again
PAUSE = 0.2  # seconds before the second try, then doubled
PIN = 1 << 16  # bytes of a read that looks for the place of an error, then PIN_FINE
PIN_FINE = 1 << 12
BROKEN = (errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN, errno.ECONNREFUSED, errno.ECONNABORTED,
          errno.ENOENT)  # fmt: skip

log = logging.getLogger(__name__)


def library_version():
    return nbd.NBD().get_version()


def _numbers(version):
    return tuple(int(part) for part in version.split(".")[:3])


def require_new_enough(version):
    if _numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise errors.MissingSoftware(f"libnbd {version} is too old for nbdpull: install {oldest} or newer")


require_new_enough(library_version())


def tls_is_verified(version):
    """Whether this libnbd checks a TLS server's certificate without the gaps of CVE-2024-7383, found in mid-2024."""
    major, minor, patch = _numbers(version)
    if (major, minor) in _TLS_MENDED:
        return patch >= _TLS_MENDED[major, minor]
    return (major, minor) > max(_TLS_MENDED)


_TLS_MENDED = {(1, 18): 5, (1, 20): 2}  # first patch of the stable branches with the repair; all later branches have it


class Tcp(NamedTuple):
    """A server to be reached by TCP. certificates: folder with ca-cert.pem, and with client-cert.pem and client-key.pem
    where the server wants to know us; then TLS is required, and the server's certificate must be good for `host`."""

    host: str
    port: int
    certificates: Optional[str] = None


class Kept(NamedTuple):
    """A server that has to hang up first. address: path of a unix socket, or a Tcp without certificates; keeper: a
    socket_keeper.SocketKeeper, or what has its `keep` and `abandon`."""

    address: Union[str, Tcp]
    keeper: Any


class ConnectionLost(errors.SourceError):
    """The connection broke; another one may serve."""


class _QueueFull(ConnectionLost):
    """Too many are being connected at once for the server's queue; in a moment there is room."""


class ReadFailed(errors.SourceError):
    """The server answered a read with an error."""


class Source:
    """One export. address: path of a unix socket, Tcp, or Kept; size: bytes; bitmap: name of its dirty bitmap, None =
    full.

    Where a bitmap is known to say too little: dirty_from is the offset from which all is dirty; held(start, stop) gives
    the ranges where the image that the extents are laid over has data, None: nobody knows that image. What of them is
    clean and zero is told, too. layered: the disk's image is on top of another one. Where such a disk is shrunk and
    grown again, QEMU fills the rest of the cluster in which it ended with zeroes, tells it as data, and sets no bit.
    Behind that cluster all is zero or dirty: it ends with the last clean data, or before. So of that the last
    MAX_CLUSTER bytes are told; also where nobody knows the image, as what such a cluster held may have come to light.

    presumed: bytes of what was told without a bit, most of which will not have changed.

    connections: how many there are, for readers and the map together; who finds none free waits for one. All are made
    before anything is asked: a QEMU whose server is stopped in the midst of a handshake may never come to itself again,
    and whoever ends the job does not ask us when. So there are handshakes at the begin and after a loss, and none is
    left half way.

    check() is called while the server is waited for, what it raises ends that. require_alive() is called before a
    connection that broke is made anew: it raises where the export cannot be the same frozen image any more.
    Raises SourceError where the server cannot be reached, stalls for `stall_timeout` seconds, or says what cannot be.
    """

    def __init__(self, address, export, bitmap=None, reads_at_once=MAX_BATCH_READS, stall_timeout=60.0,
                 check=lambda: None, require_alive=lambda: None, dirty_from=None, held=None,
                 layered=False, connections=2):  # fmt: skip
        self._dirty_from, self._held, self.presumed = dirty_from, held, 0
        self._tells_edge = bitmap is not None and (layered or held is None)
        self._address, self._export, self._stall_timeout = address, export, stall_timeout
        self._reads_at_once, self._check, self._require_alive = reads_at_once, check, require_alive
        self._contexts = [ALLOCATION] + ([DIRTY_BITMAP + bitmap] if bitmap else [])
        self._free: LifoQueue = LifoQueue()  # of connections, None = one that broke and is made anew when it is wanted
        self._count = 0  # of those that are in self._free, or lent from it
        self._opened: list[_Connection] = []
        self._closed = False
        self._handshake = KEPT_HANDSHAKE if isinstance(address, Kept) else HANDSHAKE
        try:
            self._open(connections)
        except BaseException:
            self.close()
            raise
        self.size = self._opened[0].size

    def _open(self, count):
        """All at once: each takes a dozen round trips."""
        made = pipeline.ordered(lambda _: self._connect(), range(count), threads=count, budget=count,
                                weight=lambda _: 0, check=self._check)  # fmt: skip
        for connection in list(made):
            self._free.put(connection)
        self._count = count

    def _connect(self):
        deadline = time.monotonic() + self._stall_timeout
        while True:
            self._require_open()
            try:
                connection = _Connection(self._address, self._export, self._contexts, self._reads_at_once,
                                         self._stall_timeout, self._require_open)  # fmt: skip
            except _QueueFull:
                if time.monotonic() > deadline:
                    raise
                self._sleep(SHORT_PAUSE)
                continue
            self._opened.append(connection)
            return connection

    def _require_open(self):
        """What is under way in other threads ends, too, when the run is given up."""
        if self._closed:
            raise errors.SourceError(f"{self._export}: the source was closed")
        self._check()

    # Extents

    def extents(self, start=0):
        """Yield arrays of merged extents in ascending order: DATA to read, ZERO to record; what is clean is left out.

        Proves on the way that what the server tells covers [start, size) exactly.
        """
        found = extents.merged_stream(pipeline.ahead(self._status_windows(start), STATUS_AHEAD))
        if not self._tells_edge:
            return found
        return extents.merged_stream(extents.with_edge(found, MAX_CLUSTER, self._presume))

    def _status_windows(self, offset):
        window = FIRST_STATUS
        while offset < self.size:
            stop = min(offset + window, self.size)
            replies, seconds = self._map(offset, stop - offset)
            window = _next_window(window, seconds)
            offsets, lengths, flags, reached = extents.combine_status(offset, stop, *replies)
            if reached <= offset:
                raise errors.SourceError(f"{self._export}: the NBD server made no progress at byte {offset} of its map")
            yield self._stored_extents(offsets, lengths, *flags)
            offset = reached

    def _map(self, offset, length):
        with self.reading() as reader:
            began = time.monotonic()
            return reader.block_status(offset, length), time.monotonic() - began

    def _stored_extents(self, offsets, lengths, allocation, dirty=None):
        result = numpy.empty(len(offsets), extents.EXTENT)
        result["offset"], result["length"] = offsets, lengths
        result["kind"] = numpy.where(allocation & STATE_ZERO, extents.ZERO, extents.DATA)
        return result if dirty is None else self._changed(result, (dirty & STATE_DIRTY) != 0)

    def _changed(self, found, dirty):
        parts, clean = [found[dirty]], found[~dirty]
        if self._dirty_from is not None:
            parts.append(extents.clip(clean, self._dirty_from, self.size))
            clean = extents.clip(clean, 0, self._dirty_from)
        # A disk that was shrunk and grown again is zero there, and its bitmap has lost the bits.
        zero = clean[clean["kind"] == extents.ZERO]
        if self._held is None:
            self._presume(zero)
            parts.append(zero)
        elif len(zero):
            parts.append(extents.intersect(zero, self._held(int(zero["offset"][0]), int(extents.ends(zero[-1:])[0]))))
        if self._tells_edge:
            data = clean[clean["kind"] == extents.DATA]
            data["kind"] = extents.CLEAN
            parts.append(data)
        result = numpy.concatenate(parts)
        return result[numpy.argsort(result["offset"], kind="stable")] if len(result) > len(parts[0]) else parts[0]

    def _presume(self, ranges):
        self.presumed += extents.total(ranges)

    # Bytes

    @contextmanager
    def reading(self):
        """Give a reader to one thread: its read_batch([(offset, length), …]) returns a memoryview each, valid until
        the thread's next call, also when the reader is given back."""
        reader = _Reader(self, self._take())
        try:
            reader.connect()
            yield reader
        except BaseException:
            reader.drop()  # its state is unknown
            raise
        finally:
            self._free.put(reader.connection)

    def _take(self):
        while True:
            self._require_open()
            with suppress(Empty):
                return self._free.get(timeout=POLL_INTERVAL / 1000)

    def read(self, offset, length):
        """Return bytes; length at most 32 MiB."""
        with self.reading() as reader:
            return bytes(reader.read_batch([(offset, length)])[0])

    def _tried(self, first, renew, again=None):
        """What first() returns, or where its connection broke, again(), on up to TRIES connections.

        A server breaks the connection, too, where a read fails in its middle: so the second try reads in small pieces,
        whose errors come as replies and tell the place.
        """
        again, pause, call = again or first, PAUSE, first
        for left in reversed(range(TRIES)):
            try:
                if call is None:
                    renew()
                    call = again
                return call()
            except ReadFailed:
                if call is not first:
                    raise
                call = again
            except ConnectionLost as error:
                if self._closed or not left:
                    raise
                log.info("%s; connecting again in %g s", error, pause)
                self._sleep(pause)
                self._require_alive()  # last, so that the job is still there when the handshake begins
                pause, call = 2 * pause, None
        raise AssertionError("every try returns or raises")

    def _sleep(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._require_open()
            time.sleep(min(seconds, 0.05))

    def _drop(self, connection):
        with suppress(ValueError):
            self._opened.remove(connection)
        connection.close()

    def close(self):
        """Close every connection; what is under way on one, such as the map, fails, but for a handshake, which ends."""
        self._closed = True
        deadline = time.monotonic() + self._handshake + GOODBYE
        with suppress(Empty):
            for _ in range(self._count):
                self._free.get(timeout=max(0, deadline - time.monotonic()))
        deadline = time.monotonic() + GOODBYE
        while self._opened:
            self._opened.pop().close(deadline)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def _next_window(window, seconds):
    if seconds > SLOW_STATUS:
        return max(window // 2, MIN_STATUS)
    return min(window * 2, MAX_STATUS) if seconds < QUICK_STATUS else window


class _Reader:
    """What one thread reads through: a connection, and the next one where that breaks; connection: None = none yet."""

    def __init__(self, owner, connection):
        self._owner, self.connection = owner, connection

    def read_batch(self, ranges):
        return self._owner._tried(lambda: self.connection.read_batch(ranges), self._renew,
                                  lambda: self.connection.read_pinned(ranges))  # fmt: skip

    def block_status(self, offset, length):
        return self._owner._tried(lambda: self.connection.block_status(offset, length), self._renew)

    def _renew(self):
        self.drop()
        self.connect()

    def connect(self):
        self.connection = self.connection or self._owner._connect()

    def drop(self):
        connection, self.connection = self.connection, None
        if connection:
            self._owner._drop(connection)


class _Connection:
    """A connection, used by one thread at a time. No call blocks for longer than the stall timeout.

    To a server that has to hang up first it says no goodbye, and asks for nothing that such a one answers by hanging
    up: an error in the midst of a read whose answer comes in pieces.
    """

    def __init__(self, address, export, contexts, reads_at_once, stall_timeout, check):
        self._export, self._reads_at_once, self._stall_timeout = export, reads_at_once, stall_timeout
        self._contexts, self._check = contexts, check
        self._keeper, self._kept = address.keeper if isinstance(address, Kept) else None, None
        address = address.address if self._keeper else address
        self._bytes_at_once = FAR_BATCH_BYTES if isinstance(address, Tcp) else MAX_BATCH_BYTES
        self._check_at = 0.0
        self._nbd = nbd.NBD()
        self._nbd.set_pread_initialize(False)  # 1 % of a pull; an answer that is too short is an error
        try:
            self._connect(address)
        except BaseException:
            self.close()
            raise

    def _connect(self, address):
        with self._translated("connecting"):
            self._nbd.set_export_name(self._export)
            for context in self._contexts:
                self._nbd.add_meta_context(context)
            self._start(address)
            self._shake_hands()
            if not self._nbd.aio_is_ready():
                raise ConnectionLost(f"{self._export}: the NBD server closed the connection")
            self._require_contexts()
            self.size = self._nbd.get_size()
        log.info("connected to export %s of %s: %d bytes", self._export, address, self.size)

    def _shake_hands(self):
        try:
            self._poll_while(self._nbd.aio_is_connecting, "connecting")
        except BaseException:
            patience = KEPT_HANDSHAKE if self._keeper else HANDSHAKE
            with suppress(nbd.Error):
                _poll_until(lambda: not self._nbd.aio_is_connecting(), self._nbd, time.monotonic() + patience)
            raise

    def _start(self, server):
        if self._keeper:
            self._nbd.aio_connect_socket(self._kept_socket(server))
            return
        if not isinstance(server, Tcp):
            self._nbd.aio_connect_unix(server)
            return
        if server.certificates:
            # Never ALLOW: that falls back to plain text. The peer is checked against the name that is connected to.
            self._nbd.set_tls(nbd.TLS_REQUIRE)
            self._nbd.set_tls_certificates(server.certificates)
            self._nbd.set_tls_verify_peer(True)
        self._nbd.aio_connect_tcp(server.host, str(server.port))

    def _kept_socket(self, server):
        """The descriptor of a connected socket for libnbd, which may close it: the keeper has others of it."""
        try:
            with _connected(server, self._stall_timeout) as ours:
                self._kept = self._keeper.keep(ours)
                return ours.detach()
        except OSError as error:
            raise self._failure("connecting", error.errno, error.strerror) from error

    def _require_contexts(self):
        for context in self._contexts:
            if not self._nbd.can_meta_context(context):
                raise errors.SourceError(f"{self._export}: the NBD server does not offer {context}")
        if not self._nbd.is_read_only():
            raise errors.SourceError(f"{self._export}: the export is writable, so it is no frozen image of the disk")

    def block_status(self, offset, length):
        """Return (lengths, flags) arrays for each context; each may cover less than asked, and a different length."""
        replies = {}

        def collect(context, at, entries, error):  # holds the handle's lock: thinking is done outside
            replies.setdefault(context, []).append((at, entries))
            return 0

        self._done(lambda: self._nbd.aio_block_status(length, offset, collect), f"block status at {offset}")
        return [self._runs(replies.get(context, []), context, offset) for context in self._contexts]

    def _runs(self, answers, context, offset):
        if len(answers) != 1 or answers[0][0] != offset:
            raise errors.SourceError(f"{self._export}: the NBD server did not answer for {context} at byte {offset}")
        entries = numpy.array(answers[0][1], dtype="u8").reshape(-1, 2)
        return entries[:, 0], entries[:, 1]

    def read_batch(self, ranges):
        """Read ascending [(offset, length), …] at once: a memoryview each, valid until the thread reads again."""
        reads = _bridged(ranges)
        buffers = _views([(start, length) for start, length, _ in reads])
        views, pieces = [], []
        for (start, _, wanted), view in zip(reads, buffers):
            views += [view[offset - start : offset - start + count] for offset, count in wanted]
            pieces += [(start + at, view[at : at + MAX_BATCH_BYTES]) for at in range(0, len(view), MAX_BATCH_BYTES)]
        with self._translated("reading"):
            self._read_pieces(pieces)
        return views

    def _read_pieces(self, pieces):
        """Read [(offset, where to), …], as many at once as may be; after an error only what is under way is awaited."""
        under_way, size, failed = deque(), 0, []
        for offset, view in pieces:
            while under_way and (len(under_way) >= self._reads_at_once or size + len(view) > self._bytes_at_once):
                cookie, at, length = under_way.popleft()
                self._wait(cookie, f"reading at byte {at}", failed)
                size -= length
            if failed:
                break
            under_way.append((self._start_read(view, offset), offset, len(view)))
            size += len(view)
        for cookie, at, _ in under_way:
            self._wait(cookie, f"reading at byte {at}", failed)
        self._require_success(failed, f"reading from byte {pieces[0][0]} on" if pieces else "reading", ReadFailed)

    def _start_read(self, view, offset):
        return self._start_whole_read(view, offset) if self._keeper else self._nbd.aio_pread(view, offset)

    def _start_whole_read(self, view, offset):
        """One read in one reply: an error in its middle comes as a reply too. Not every server has it."""
        whole = nbd.CMD_FLAG_DF if self._nbd.can_df() else 0
        return self._nbd.aio_pread_structured(view, offset, _accept, None, whole)

    def read_pinned(self, ranges):
        """The same in small pieces; a SourceError tells the ranges that cannot be read, all of them."""
        views, bad = _views(ranges), []
        for (offset, length), view in zip(ranges, views):
            bad += self._pinned(offset, length, view, PIN)
        if bad:
            places = ", ".join(f"{start} to {stop - 1}" for start, stop in _joined(bad)[:10])
            raise errors.SourceError(
                f"disk {self._export}: reading at byte {bad[0][0]} failed, these bytes cannot be read: {places}"
            )
        return views

    def _pinned(self, offset, length, view, step):
        """Read a range in steps; return the [start, stop) of those that fail."""
        bad = []
        for at in range(0, length, step):
            size = min(step, length - at)
            try:
                self._read_whole(view[at : at + size], offset + at)
            except ReadFailed:
                finer = step > PIN_FINE and size > PIN_FINE
                bad += self._pinned(offset + at, size, view[at : at + size], PIN_FINE) if finer else [
                    (offset + at, offset + at + size)]  # fmt: skip
        return bad

    def _read_whole(self, view, offset):
        self._done(lambda: self._start_whole_read(view, offset), f"reading at byte {offset}", ReadFailed)

    def _done(self, request, doing, kind=errors.SourceError):
        """Have one request done; `kind`: what an error in its answer becomes."""
        failed = []
        with self._translated(doing):
            self._wait(request(), doing, failed)
            self._require_success(failed, doing, kind)

    def _wait(self, cookie, doing, failed):
        """Wait for a request's end, and note the nbd.Error that it ends in, in `failed`.

        Only who asks for the end is told that an answer to a read was too short; a completion callback is not.
        """
        try:
            self._poll_while(lambda: not self._nbd.aio_command_completed(cookie), doing)
        except nbd.Error as error:
            failed.append(error)

    def _require_success(self, failed, doing, kind):
        """failed: the nbd.Errors of requests; those of what the protocol forbids have no number."""
        if failed:
            number = failed[0].errnum
            lost = self._nbd.aio_is_dead() or self._nbd.aio_is_closed() or number == errno.ENOTCONN
            why = os.strerror(number) if number else failed[0].string
            raise (ConnectionLost if lost else kind)(f"{self._export}: {doing} failed: {why}") from failed[0]

    def _poll_while(self, pending, doing):
        heard = time.monotonic()
        while pending():
            progress, now = self._nbd.poll(POLL_INTERVAL), time.monotonic()
            if now >= self._check_at:  # not each time: it takes longer than a poll
                self._check()
                self._check_at = now + POLL_INTERVAL / 1000
            if progress:
                heard = now
            elif now > heard + self._stall_timeout:
                raise errors.SourceError(
                    f"{self._export}: the NBD server was silent for {self._stall_timeout:g} s while {doing}"
                )

    @contextmanager
    def _translated(self, doing):
        try:
            yield
        except nbd.Error as error:
            raise self._failure(doing, error.errnum, error.string) from error

    def _failure(self, doing, number, text):
        """number: an errno, or 0."""
        if number == errno.EACCES:  # libvirt lets in more users than the directory of QEMU's socket does
            return errors.AccessDenied(
                f"{self._export}: permission denied to connect to QEMU's NBD socket: run as root ({text})"
            )
        if number == errno.EAGAIN:  # of a unix socket's connect alone
            return _QueueFull(f"{self._export}: {doing} failed ({text})")
        lost = number in BROKEN or self._nbd is None or self._nbd.aio_is_dead() or self._nbd.aio_is_closed()
        return (ConnectionLost if lost else errors.SourceError)(f"{self._export}: {doing} failed ({text})")

    def close(self, deadline=None):
        """Take leave, and let go; a server that does not answer is not waited for."""
        handle, self._nbd = self._nbd, None
        if handle is None:
            return
        if self._keeper:
            with suppress(errors.HypervisorError):  # which the keeper's check tells
                if self._kept:
                    self._keeper.abandon(self._kept)
            return
        with suppress(nbd.Error):  # it was closed or lost already
            if handle.aio_is_ready() and not handle.aio_in_flight():
                handle.aio_disconnect()
                _poll_until(lambda: handle.aio_is_closed() or handle.aio_is_dead(), handle,
                            deadline or time.monotonic() + GOODBYE)  # fmt: skip
        _hang_up(handle)  # libnbd before 1.16 has no close()


_own = threading.local()  # the buffer of each thread: what it read is of use to it after it gave the connection back


def _views(ranges):
    """A memoryview of the thread's buffer for each range."""
    size = sum(length for _, length in ranges)
    if len(getattr(_own, "buffer", b"")) < size:
        _own.buffer = bytearray(size)
    views, at = [], 0
    for _, length in ranges:
        views.append(memoryview(_own.buffer)[at : at + length])
        at += length
    return views


def _connected(server, timeout):
    """A socket of ours that is connected to a path or a Tcp."""
    if isinstance(server, Tcp):
        return socket.create_connection((server.host, server.port), timeout)
    ours = socket.socket(socket.AF_UNIX)
    try:
        ours.setblocking(False)  # a queue that is full is an error at once
        ours.connect(server)
        return ours
    except BaseException:
        ours.close()
        raise


def _hang_up(handle):
    """End the connection whoever still refers to the handle, such as an exception's traceback: QEMU does not end a
    job while a client of its server is in the midst of the handshake."""
    with suppress(nbd.Error, OSError), socket.socket(fileno=os.dup(handle.aio_get_fd())) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _poll_until(done, handle, deadline):
    while not done() and time.monotonic() < deadline:
        handle.poll(POLL_INTERVAL)


def _accept(_piece, _offset, _status, _error):
    """A piece of a structured reply: its bytes are in the buffer already."""
    return 0


def _joined(ranges):
    """Ascending [start, stop) ranges, neighbours made one."""
    joined = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _bridged(ranges):
    """Join ascending ranges that are at most BRIDGE bytes apart: [(offset, length, ranges within), …]."""
    reads = []
    for offset, length in ranges:
        if reads and offset - (reads[-1][0] + reads[-1][1]) <= BRIDGE:
            reads[-1][1] = offset + length - reads[-1][0]
            reads[-1][2].append((offset, length))
        else:
            reads.append([offset, length, [(offset, length)]])
    return reads
