"""A live disk over NBD: its size, its extents, its bytes. The only file that knows a libnbd handle on the way in.

Owns: connections, what block status means, and the proof that the map covers the disk. nbd.Error and silence are
translated here. Must not know: libvirt, files, compression.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress

import numpy

from . import errors, extents, pipeline

try:
    import nbd
except ImportError as error:  # the package called "nbd" on PyPI is something else
    raise errors.MissingSoftware(
        "libnbd's Python bindings are not installed: install python3-libnbd (Debian, Ubuntu, Fedora, RHEL), and run "
        "nbdpull with the distribution's own python3"
    ) from error

ALLOCATION = "base:allocation"
DIRTY_BITMAP = "qemu:dirty-bitmap:"

STATE_ZERO = 1 << 1  # of base:allocation; its HOLE bit promises nothing about the content and is ignored
STATE_DIRTY = 1 << 0  # of a dirty bitmap

# QEMU answers a block status request in the guest's I/O thread, so that its length follows the time that one took.
MIN_STATUS, FIRST_STATUS, MAX_STATUS = 16 << 20, 256 << 20, 2 << 30  # bytes asked for in one request
SLOW_STATUS, QUICK_STATUS = 0.02, 0.005  # seconds
STATUS_AHEAD = 4  # replies taken in advance, each at most a few MB
BRIDGE = 16 << 10  # bytes: what lies between two ranges is read with them, and dropped, where it is no more than this
MAX_BATCH_READS = 16  # QEMU works on no more requests of a connection at once
POLL_INTERVAL = 250  # milliseconds


def library_version():
    return nbd.NBD().get_version()


class Source:
    """One export. size: bytes; bitmap: the name of its dirty bitmap, or None for a full read.

    Raises SourceError where the server cannot be reached, stalls for `stall_timeout` seconds, or says what cannot be.
    """

    def __init__(self, socket, export, bitmap=None, reads_at_once=MAX_BATCH_READS, stall_timeout=60.0):
        self._socket, self._export, self._stall_timeout = socket, export, stall_timeout
        self._reads_at_once = reads_at_once
        self._contexts = [ALLOCATION] + ([DIRTY_BITMAP + bitmap] if bitmap else [])
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._all: list[_Connection] = []
        self._mapper = self._connect(self._contexts)
        self.size = self._mapper.size

    def _connect(self, contexts=()):
        connection = _Connection(self._socket, self._export, contexts, self._reads_at_once, self._stall_timeout)
        with self._lock:
            self._all.append(connection)
        return connection

    # Extents

    def extents(self):
        """Yield arrays of merged extents in ascending order: DATA to read, ZERO to record; what is clean is left out.

        Proves on the way that what the server tells covers [0, size) exactly.
        """
        return extents.merged_stream(pipeline.ahead(self._status_windows(), STATUS_AHEAD))

    def _status_windows(self):
        offset, window = 0, FIRST_STATUS
        while offset < self.size:
            stop, began = min(offset + window, self.size), time.monotonic()
            replies = self._mapper.block_status(offset, stop - offset, self._contexts)
            window = _next_window(window, time.monotonic() - began)
            offsets, lengths, flags, reached = extents.combine_status(offset, stop, *replies)
            if reached <= offset:
                raise errors.SourceError(f"{self._export}: the NBD server made no progress at byte {offset} of its map")
            yield self._stored_extents(offsets, lengths, *flags)
            offset = reached

    def _stored_extents(self, offsets, lengths, allocation, dirty=None):
        result = numpy.empty(len(offsets), extents.EXTENT)
        result["offset"], result["length"] = offsets, lengths
        result["kind"] = numpy.where(allocation & STATE_ZERO, extents.ZERO, extents.DATA)
        return result if dirty is None else result[(dirty & STATE_DIRTY) != 0]

    # Bytes

    @contextmanager
    def reading(self):
        """Give a connection to one thread; a new one is made where none is idle."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        yield connection  # not put back after an error: its state is unknown
        with self._lock:
            self._idle.append(connection)

    def read(self, offset, length):
        """Return bytes; length at most 32 MiB."""
        with self.reading() as connection:
            return bytes(connection.read_batch([(offset, length)])[0])

    def close(self):
        """Close every connection; none may be in use any more."""
        while self._all:
            self._all.pop().close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def _next_window(window, seconds):
    if seconds > SLOW_STATUS:
        return max(window // 2, MIN_STATUS)
    return min(window * 2, MAX_STATUS) if seconds < QUICK_STATUS else window


class _Connection:
    """One connection, used by one thread at a time. No call blocks for longer than the stall timeout."""

    def __init__(self, socket, export, contexts, reads_at_once, stall_timeout):
        self._export, self._reads_at_once, self._stall_timeout = export, reads_at_once, stall_timeout
        self._buffer = bytearray()
        self._nbd = nbd.NBD()
        with self._translated("connecting"):
            self._nbd.set_export_name(export)
            for context in contexts:
                self._nbd.add_meta_context(context)
            self._nbd.aio_connect_unix(socket)
            self._poll_while(self._nbd.aio_is_connecting, "connecting")
            if not self._nbd.aio_is_ready():
                raise errors.SourceError(f"{export}: the NBD server closed the connection")
            self._require(contexts)
            self.size = self._nbd.get_size()

    def _require(self, contexts):
        for context in contexts:
            if not self._nbd.can_meta_context(context):
                raise errors.SourceError(f"{self._export}: the NBD server does not offer {context}")
        if not self._nbd.is_read_only():
            raise errors.SourceError(f"{self._export}: the export is writable, so it is no frozen image of the disk")

    def block_status(self, offset, length, contexts):
        """Return (lengths, flags) arrays for each context; each may cover less than asked, and a different length."""
        replies = {}

        def collect(context, at, entries, error):  # holds the handle's lock: thinking is done outside
            replies.setdefault(context, []).append((at, entries))
            return 0

        with self._translated(f"block status at {offset}"):
            self._run([lambda done: self._nbd.aio_block_status(length, offset, collect, done)], "block status")
        return [self._runs(replies.get(context, []), context, offset) for context in contexts]

    def _runs(self, answers, context, offset):
        if len(answers) != 1 or answers[0][0] != offset:
            raise errors.SourceError(f"{self._export}: the NBD server did not answer for {context} at byte {offset}")
        entries = numpy.array(answers[0][1], dtype="u8").reshape(-1, 2)
        return entries[:, 0], entries[:, 1]

    def read_batch(self, ranges):
        """Read ascending [(offset, length), …] at once; return a memoryview each, valid until the next call."""
        reads = _bridged(ranges)
        size = sum(length for _, length, _ in reads)
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        views, requests, at = [], [], 0
        for start, length, wanted in reads:
            view = memoryview(self._buffer)[at : at + length]
            views += [view[offset - start : offset - start + count] for offset, count in wanted]
            requests.append(lambda done, v=view, o=start: self._nbd.aio_pread(v, o, done))
            at += length
        with self._translated("reading"):
            for first in range(0, len(requests), self._reads_at_once):
                self._run(requests[first : first + self._reads_at_once], f"reading at byte {reads[first][0]}")
        return views

    def _run(self, requests, doing):
        """Start all requests, and wait until each has ended well."""
        ended = []

        def done(error):
            ended.append(error.value)
            return 1  # retire it, also after an error

        for request in requests:
            request(done)
        self._poll_while(lambda: len(ended) < len(requests), doing)
        failed = [number for number in ended if number]
        if failed:
            raise errors.SourceError(f"{self._export}: {doing} failed: error {failed[0]} of the NBD server")

    def _poll_while(self, pending, doing):
        deadline = time.monotonic() + self._stall_timeout
        while pending():
            if self._nbd.poll(POLL_INTERVAL):
                deadline = time.monotonic() + self._stall_timeout
            elif time.monotonic() > deadline:
                raise errors.SourceError(
                    f"{self._export}: the NBD server was silent for {self._stall_timeout:g} s while {doing}"
                )

    @contextmanager
    def _translated(self, doing):
        try:
            yield
        except nbd.Error as error:
            if error.errno == "EACCES":  # libvirt lets in more users than the directory of QEMU's socket does
                raise errors.AccessDenied(
                    f"{self._export}: permission denied to connect to QEMU's NBD socket: run as root ({error.string})"
                ) from error
            raise errors.SourceError(f"{self._export}: {doing} failed ({error.string})") from error

    def close(self):
        with suppress(nbd.Error):  # it was closed or lost already
            self._nbd.aio_disconnect()  # shutdown() would wait for the server, and for ever for one that is stopped
        del self._nbd  # libnbd before 1.16 has no close()


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
