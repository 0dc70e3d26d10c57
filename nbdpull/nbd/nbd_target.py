"""An image written over NBD: an export that the user named, or one that qemu-nbd gives us of an image file.

Owns: the libnbd handle on the way out. nbd.Error and silence are translated here. Must not know: points, frames, which
image it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import time
from collections.abc import Iterator, Sequence

from ..core import errors
from ..core.errors import Check
from . import qemu_nbd
from .libnbd import nbd

STALL_TIMEOUT = 60.0  # seconds without a byte in either direction
POLL_INTERVAL = 250  # milliseconds
MAX_IN_FLIGHT = 16  # QEMU works on so many requests of a connection at once
MAX_REQUEST = 32 << 20  # bytes
ALLOCATION, STATE_ZERO = "base:allocation", 1 << 1

log = logging.getLogger(__name__)


class NbdTarget:
    """A writable export. connect: starts to connect the handle it is given; name: of the image, for messages.

    shared: several connections may write though the server does not say so. May be used by several threads at once.
    check() is called while the server is waited for, what it raises ends that.
    """

    blank = sequential = False

    def __init__(self, connect, name, connections, shared=False, check=lambda: None):
        self._name = name
        self._idle: queue.LifoQueue = queue.LifoQueue()
        self._all = [_Connection(connect, name, check)]
        try:
            if shared or self._all[0].several:
                self._all += [_Connection(connect, name, check) for _ in range(connections - 1)]
        except BaseException:
            self.close()
            raise
        for connection in self._all:
            self._idle.put(connection)
        self.size = self._all[0].size

    @contextlib.contextmanager
    def _connection(self):
        connection = self._idle.get()
        try:
            yield connection
        finally:
            self._idle.put(connection)  # also after an error, as others may wait for it; it fails them, too

    def write(self, parts):
        """Write [(offset, buffer), …], many at once; return how many bytes."""
        with self._connection() as connection:
            connection.write(parts)
        return sum(len(buffer) for _, buffer in parts)

    def zero(self, offset, length):
        with self._connection() as connection:
            connection.zero(offset, length)
        return length

    def read(self, offset, length):
        with self._connection() as connection:
            return connection.read(offset, length)

    def allocated(self, offset, length):
        """[(offset, length), …] of what may be other than zero in a range."""
        with self._connection() as connection:
            return connection.allocated(offset, length)

    def flush(self):
        with self._connection() as connection:
            connection.flush()

    def close(self):
        while self._all:
            self._all.pop().close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class _Connection:
    """One connection, used by one thread at a time. No call blocks for longer than the stall timeout."""

    def __init__(self, connect, name, check):
        self._name, self._check = name, check
        self._nbd = nbd.NBD()
        with self._translated("connect to"):
            self._nbd.add_meta_context(ALLOCATION)
            connect(self._nbd)
            self._poll_while(self._nbd.aio_is_connecting, "connect to")
            if not self._nbd.aio_is_ready():
                raise errors.OutputError(f"cannot connect to {name}: the NBD server closed the connection")
            if self._nbd.is_read_only():
                raise errors.OutputError(f"cannot write to {name}: the NBD server exports it read-only")
            self.size = self._nbd.get_size()
            self.several = self._nbd.can_multi_conn()
        log.info("connected to %s: %d bytes", name, self.size)

    def write(self, parts):
        cut = [
            (offset + at, memoryview(buffer)[at : at + MAX_REQUEST])
            for offset, buffer in parts
            for at in range(0, len(buffer), MAX_REQUEST)
        ]
        self._run("write to", [lambda done, o=o, b=b: self._nbd.aio_pwrite(b, o, done) for o, b in cut])

    def zero(self, offset, length):
        if self._nbd.can_zero():  # without NO_HOLE: the server may unmap
            self._run("write to", [lambda done: self._nbd.aio_zero(length, offset, done)])
        else:
            step = bytes(1 << 20)
            self.write([(at, step[: offset + length - at]) for at in range(offset, offset + length, len(step))])

    def read(self, offset, length):
        buffer = bytearray(length)
        with self._translated("read"):
            cookie = self._nbd.aio_pread(buffer, offset)  # a completion callback is not told of a short answer
            self._poll_while(lambda: not self._nbd.aio_command_completed(cookie), "read")
        return buffer

    def allocated(self, offset, length):
        found, stop = [], offset + length
        if not self._nbd.can_meta_context(ALLOCATION):
            return [(offset, length)]
        while offset < stop:
            runs = self._status(offset, stop - offset)
            if not sum(runs[::2]):
                raise errors.OutputError(f"cannot read {self._name}: the NBD server makes no progress in its map")
            for size, flags in zip(runs[::2], runs[1::2]):
                size = min(size, stop - offset)
                if size and not flags & STATE_ZERO:
                    found.append((offset, size))
                offset += size
        return found

    def _status(self, offset, length):
        replies = []

        def collect(_context, at, entries, _error):  # holds the handle's lock: thinking is done outside
            replies.append((at, entries))
            return 0

        self._run("read", [lambda done: self._nbd.aio_block_status(length, offset, collect, done)])
        return [entry for at, entries in replies if at == offset for entry in entries]

    def flush(self):
        if self._nbd.can_flush():
            self._run("flush", [lambda done: self._nbd.aio_flush(done)], stall=float("inf"))

    def _run(self, doing, requests, stall=STALL_TIMEOUT):
        """Have each of the requests done, some at once."""
        ended = []

        def done(error):
            ended.append(error.value)
            return 1  # retire it, also after an error

        with self._translated(doing):
            for number, request in enumerate(requests):
                self._poll_while(lambda n=number: n - len(ended) >= MAX_IN_FLIGHT, doing, stall)
                request(done)
            self._poll_while(lambda: len(ended) < len(requests), doing, stall)
        failed = [number for number in ended if number]
        if failed:
            raise self._error(doing, os.strerror(failed[0]), failed[0])

    def _poll_while(self, pending, doing, stall=STALL_TIMEOUT):
        deadline = time.monotonic() + stall
        while pending():
            heard = self._nbd.poll(POLL_INTERVAL)
            self._check()
            if heard:
                deadline = time.monotonic() + stall
            elif time.monotonic() > deadline:
                raise errors.OutputError(f"cannot {doing} {self._name}: the NBD server was silent for {stall:g} s")

    @contextlib.contextmanager
    def _translated(self, doing):
        try:
            yield
        except nbd.Error as error:
            raise self._error(doing, error.string, error.errnum) from error

    def _error(self, doing, text, number):
        kind = errors.OutputFull if number in (28, 122) else errors.OutputError  # ENOSPC and EDQUOT, of the protocol
        return kind(f"cannot {doing} {self._name}: {text}")

    def close(self):
        with contextlib.suppress(nbd.Error):  # it was closed or lost already
            self._nbd.aio_disconnect()  # shutdown() would wait for a server that is stopped
        del self._nbd  # libnbd before 1.16 has no close()


def open_uri(uri, connections, check=lambda: None):
    """Return the NbdTarget of an nbd:// or nbd+unix:// URI."""
    return NbdTarget(lambda handle: handle.aio_connect_uri(uri), uri, connections, check=check)


@contextlib.contextmanager
def open_image(
    path: str, image: Sequence[str], connections: int, draft: bool, check: Check = lambda: None
) -> Iterator[NbdTarget]:
    """Give the NbdTarget of an image, by qemu-nbd. image: the words that name it, of qemu_img; draft: it is synced as a
    whole afterwards, so that no flush is needed."""

    def connect(socket: str) -> NbdTarget:
        return NbdTarget(lambda handle: handle.aio_connect_unix(socket), path, connections, True, check)

    def refused(said: str) -> errors.NbdpullError:
        kind = errors.Busy if 'Failed to get "write" lock' in said else errors.OutputError
        return kind(f"qemu-nbd does not serve {path}: {said}")

    words = [f"--cache={'unsafe' if draft else 'writeback'}", "--discard=unmap", "-e", str(connections + 1), *image]
    # An image that is there keeps its bitmaps only where it is closed in an orderly way.
    with qemu_nbd.serving(words, signal.SIGKILL if draft else signal.SIGTERM) as server:
        with server.connected(connect, errors.OutputError, refused) as target:
            yield target
        failed = server.finish()
        if failed:
            raise errors.OutputError(f"qemu-nbd failed to finish {path}: {failed}")
