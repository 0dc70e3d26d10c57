"""An image written over NBD: an export that the user named, or one of a qemu-nbd that we run for an image file.

Owns: the connections for writing, their requests, and the errors for their failures and silence. Must not know: points,
frames, which image it is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable

from ..core import errors, sizes
from ..core.choices import STALL_TIMEOUT
from ..core.errors import Check
from . import batching, connection, qemu_nbd
from .connection import ALLOCATION, STATE_ZERO, Connection
from .libnbd import nbd

if TYPE_CHECKING:
    from ..core.extents import Part, Range

    Connect = Callable[[Any], None]

MAX_REQUEST = 32 << 20  # bytes
ZEROES = 1 << 20  # bytes written at once to a server that cannot zero

log = logging.getLogger("nbdpull.nbd")


class NbdTarget:
    """A writable export. Several threads may use it at once.

    connect: starts to connect the handle that it receives; name: of the image, for messages. shared: several
    connections may write although the server does not say so. check() is called during a wait for the server, and its
    exception ends the wait.
    """

    blank = sequential = False
    size: int

    def __init__(
        self, connect: Connect, name: str, connections: int, shared: bool = False, check: Check = lambda: None
    ):
        self._idle: queue.LifoQueue[_Connection] = queue.LifoQueue()
        self._all = [_Connection(connect, name, check)]
        try:
            if shared or self._all[0].several:
                self._all += [_Connection(connect, name, check) for _ in range(connections - 1)]
        except BaseException:
            self.close()
            raise
        for each in self._all:
            self._idle.put(each)
        self.size = self._all[0].size

    @contextlib.contextmanager
    def _lent(self) -> Iterator[_Connection]:
        lent = self._idle.get()
        try:
            yield lent
        finally:
            self._idle.put(lent)  # also after an error, as others may wait for it; it fails them, too

    def write(self, parts: Sequence[Part]) -> int:
        """Write [(offset, buffer), …], many at once; return the number of bytes."""
        with self._lent() as lent:
            lent.write(parts)
        return sum(len(buffer) for _, buffer in parts)

    def zero(self, offset: int, length: int) -> int:
        with self._lent() as lent:
            lent.zero(offset, length)
        return length

    def read(self, offset: int, length: int) -> bytearray:
        with self._lent() as lent:
            return lent.read(offset, length)

    def allocated(self, offset: int, length: int) -> list[Range]:
        """Return [(offset, length), …] of the parts of a range that may not be zero."""
        with self._lent() as lent:
            return lent.allocated(offset, length)

    def flush(self) -> None:
        with self._lent() as lent:
            lent.flush()

    def close(self) -> None:
        while self._all:
            self._all.pop().close()

    def __enter__(self) -> NbdTarget:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Connection(Connection):
    """One connection to a writable export."""

    def __init__(self, connect: Connect, name: str, check: Check):
        super().__init__(STALL_TIMEOUT, check)
        self._name = name
        with self._translated("connect to"):
            self._nbd.add_meta_context(ALLOCATION)
            connect(self._nbd)
            self._poll_while(self._nbd.aio_is_connecting, "connect to")
            if not self._nbd.aio_is_ready():
                raise errors.OutputError(f"cannot connect to {name}: the NBD server closed the connection")
            if self._nbd.is_read_only():
                raise errors.OutputError(f"cannot write to {name}: the NBD server exports it read-only")
            self.size: int = self._nbd.get_size()
            self.several: bool = self._nbd.can_multi_conn()
        log.info("connected to %s: %s", name, sizes.shown(self.size))

    def write(self, parts: Sequence[Part]) -> None:
        pieces = [
            (offset + at, memoryview(buffer)[at : at + size])
            for offset, buffer in parts
            for at, size in batching.steps(len(buffer), MAX_REQUEST)
        ]
        with self._translated("write to"):
            failed = self._at_once(self._start_write, pieces, lambda _: "write to")
        self._require_success(failed, "write to")

    def _start_write(self, offset: int, view: memoryview) -> int:
        cookie: int = self._nbd.aio_pwrite(view, offset)
        return cookie

    def zero(self, offset: int, length: int) -> None:
        if self._nbd.can_zero():  # without NO_HOLE: the server may unmap
            self._require_success(self._done(lambda: self._nbd.aio_zero(length, offset), "write to"), "write to")
        else:
            zeroes = bytes(ZEROES)
            self.write([(offset + at, memoryview(zeroes)[:size]) for at, size in batching.steps(length, ZEROES)])

    def read(self, offset: int, length: int) -> bytearray:
        buffer = bytearray(length)
        self._require_success(self._done(lambda: self._nbd.aio_pread(buffer, offset), "read"), "read")
        return buffer

    def allocated(self, offset: int, length: int) -> list[Range]:
        found, stop = [], offset + length
        if not self._nbd.can_meta_context(ALLOCATION):
            return [(offset, length)]
        while offset < stop:
            runs = self._map(offset, stop - offset)
            if not sum(runs[::2]):
                raise errors.OutputError(f"cannot read {self._name}: the NBD server makes no progress in its map")
            for size, flags in zip(runs[::2], runs[1::2]):
                size = min(size, stop - offset)
                if size and not flags & STATE_ZERO:
                    found.append((offset, size))
                offset += size
        return found

    def _map(self, offset: int, length: int) -> list[int]:
        """Return [length, flags, length, flags …] from the offset on."""
        replies, failed = self._status(offset, length, "read")
        self._require_success(failed, "read")
        return [entry for at, entries in replies.get(ALLOCATION, []) if at == offset for entry in entries]

    def flush(self) -> None:
        """Flush, however long that takes: the server is silent meanwhile."""
        if self._nbd.can_flush():
            with self._translated("flush"):
                cookie = self._nbd.aio_flush()
                self._poll_while(lambda: not self._nbd.aio_command_completed(cookie), "flush", math.inf)

    def _require_success(self, failed: list[Any], doing: str) -> None:
        if failed:
            raise self._failure(doing, failed[0].errnum, connection.reason(failed[0])) from failed[0]

    def _failure(self, doing: str, number: int, text: str) -> errors.NbdpullError:
        kind = errors.OutputFull if number in (28, 122) else errors.OutputError  # ENOSPC and EDQUOT, of the protocol
        return kind(f"cannot {doing} {self._name}: {text}")

    def _silence(self, doing: str, seconds: float) -> errors.NbdpullError:
        return errors.OutputError(f"cannot {doing} {self._name}: the NBD server was silent for {seconds:g} s")

    def close(self) -> None:
        with contextlib.suppress(nbd.Error):  # it was closed or lost already
            self._nbd.aio_disconnect()  # shutdown() would wait for a stopped server
        del self._nbd  # libnbd before 1.16 has no close()


def open_uri(uri: str, connections: int, check: Check) -> NbdTarget:
    """Return the NbdTarget of an nbd:// or nbd+unix:// URI."""
    return NbdTarget(lambda handle: handle.aio_connect_uri(uri), uri, connections, check=check)


@contextlib.contextmanager
def open_image(path: str, image: Sequence[str], connections: int, draft: bool, check: Check) -> Iterator[NbdTarget]:
    """Yield the NbdTarget of an image, through qemu-nbd.

    image: the arguments that name it, from qemu_img; draft: the whole image is synced afterwards, so no flush is
    needed.
    """

    def connect(socket: str) -> NbdTarget:
        return NbdTarget(lambda handle: handle.aio_connect_unix(socket), path, connections, True, check)

    def refused(said: str) -> errors.NbdpullError:
        kind = errors.Busy if 'Failed to get "write" lock' in said else errors.OutputError
        return kind(f"qemu-nbd does not serve {path}: {said}")

    words = [f"--cache={'unsafe' if draft else 'writeback'}", "--discard=unmap", "-e", str(connections + 1), *image]
    # An existing image keeps its bitmaps only if it is closed in an orderly way.
    with qemu_nbd.serving(words, signal.SIGKILL if draft else signal.SIGTERM) as server:
        with server.connected(connect, errors.OutputError, refused) as target:
            yield target
        failed = server.finish()
        if failed:
            raise errors.OutputError(f"qemu-nbd failed to finish {path}: {failed}")
