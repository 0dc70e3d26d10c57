"""A live disk over NBD: its size, its extents, its bytes.

Owns: the connections of a disk and their renewal, what block status means, and the proof that the map covers the disk.
Must not know: libnbd, libvirt, files, compression.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Callable, Optional, TypeVar

import numpy

from ..core import errors, extents, pipeline
from ..core.choices import STALL_TIMEOUT
from ..core.errors import Check
from . import batching, connection, source_connection
from .address import Kept, Tcp
from .connection import ALLOCATION, POLL_INTERVAL, STATE_ZERO
from .source_connection import (
    GOODBYE,
    HANDSHAKE,
    KEPT_HANDSHAKE,
    ConnectionLost,
    QueueFull,
    ReadFailed,
    SourceConnection,
)

if TYPE_CHECKING:
    from ..core.extents import Extents, Mask, Numbers, Range, Ranges
    from .address import Address

    Held = Callable[[int, int], Ranges]

_Answer = TypeVar("_Answer")

DIRTY_BITMAP = "qemu:dirty-bitmap:"
STATE_DIRTY = 1 << 0  # of a dirty bitmap

MAX_CLUSTER = 2 << 20  # bytes, of qcow2
MAX_BATCH_READS = connection.MAX_AT_ONCE
STATUS_AHEAD = 4  # replies taken in advance, each at most a few MB
# QEMU 9.1 and later (and older ones with the same fix) serve 100 connections, and let the next one wait for ever. Some
# may belong to other programs.
MAX_CONNECTIONS = 90
SPREAD = 4  # connections that one thread reads over
READERS = 4  # connections of a disk besides the map's: QEMU reads a disk in one thread, and more gained nothing
TRIES = 5  # of a read or map request whose connection broke, each on a new connection
SHORT_PAUSE = 0.02  # seconds until a server's full queue is tried again
PAUSE = 0.2  # seconds before the second try, then doubled

log = logging.getLogger("nbdpull.nbd")


class Source:
    """One export.

    address: path of a unix socket, Tcp, or Kept; size: bytes; bitmap: name of its dirty bitmap, None = full.

    Where a bitmap is known to report too little: from the offset dirty_from on, everything is dirty; held(start, stop)
    returns the ranges in which the image that the extents are laid over has data, None: that image is unknown. What is
    clean and zero in these ranges is reported, too. layered: the disk's image has a backing file. If such a disk is
    shrunk and grown again, QEMU fills the rest of the cluster in which it ended with zeroes, reports it as data, and
    sets no bit. Behind that cluster everything is zero or dirty, so it ends where the last clean data ends, or before.
    So the last MAX_CLUSTER bytes of the clean data are reported; also if the image is unknown, because old data of such
    a cluster may reappear.

    again: ranges that are reported whether they are dirty or not, sorted and disjoint.
    presumed: bytes that were reported without a bit, most of which will not have changed.

    connections: how many there are, for readers and the map together; a thread that finds none free waits for one. All
    are opened before the first request: a QEMU whose server is stopped during a handshake may hang for ever, and
    whoever ends the job does not ask us when. So handshakes happen only at the start and after a loss, and none is left
    unfinished.

    check() is called during a wait for the server, and its exception ends the wait. require_alive() is called before a
    broken connection is opened again: it raises if the export can no longer be the same frozen image.

    Raises SourceError if the server cannot be reached, stalls for `stall_timeout` seconds, or reports what cannot be
    true.
    """

    def __init__(
        self,
        address: Address,
        export: str,
        bitmap: Optional[str] = None,
        reads_at_once: int = MAX_BATCH_READS,
        stall_timeout: float = STALL_TIMEOUT,
        check: Check = lambda: None,
        require_alive: Callable[[], None] = lambda: None,
        dirty_from: Optional[int] = None,
        held: Optional[Held] = None,
        again: Ranges = extents.of([]),  # noqa: B008
        layered: bool = False,
        connections: int = 2,
    ):
        self._dirty_from, self._held, self._again, self.presumed = dirty_from, held, again, 0
        self._reports_edge = bitmap is not None and (layered or held is None)
        self._address, self._export, self._stall_timeout = address, export, stall_timeout
        self._reads_at_once, self._check, self._require_alive = reads_at_once, check, require_alive
        self._contexts = [ALLOCATION] + ([DIRTY_BITMAP + bitmap] if bitmap else [])
        self._free: list[_Reader] = []
        self._given_back = threading.Condition()  # guards self._free
        self._count = 0  # of those in self._free, or lent from it
        self._paused = 0  # of those lent, how many belong to a paused read
        self._opened: list[SourceConnection] = []
        self._closed = False
        self._handshake = KEPT_HANDSHAKE if isinstance(address, Kept) else HANDSHAKE
        self._is_far = isinstance(address.address if isinstance(address, Kept) else address, Tcp)
        try:
            self._open(connections)
        except BaseException:
            self.close()
            raise
        self.size: int = self._opened[0].size

    def _open(self, count: int) -> None:
        """Open all connections at once: each takes a dozen round trips."""
        made = pipeline.ordered(lambda _: self._connect(), range(count), threads=count, budget=count,
                                weight=lambda _: 0, check=self._check)  # fmt: skip
        self._free = [_Reader(self, each) for each in made]
        self._count = count

    def _connect(self) -> SourceConnection:
        deadline = time.monotonic() + self._stall_timeout
        while True:
            self._require_open()
            try:
                made = SourceConnection(self._address, self._export, self._contexts, self._reads_at_once,
                                         self._stall_timeout, self._require_open)  # fmt: skip
            except QueueFull:
                if time.monotonic() > deadline:
                    raise
                self._sleep(SHORT_PAUSE)
                continue
            self._opened.append(made)
            return made

    def _require_open(self) -> None:
        """Raise if the run was given up: this also ends what is in progress in other threads."""
        self._require_not_closed()
        self._check()

    def _require_not_closed(self) -> None:
        if self._closed:
            raise errors.SourceError(f"{self._export}: the source was closed")

    # Extents

    def extents(self, start: int = 0) -> Iterator[Extents]:
        """Yield arrays of merged extents in ascending order: DATA to read, ZERO to record; clean ranges are omitted.

        Proves on the way that the server's answers cover [start, size) exactly.
        """
        found = extents.merged_stream(pipeline.ahead(self._status_windows(start), STATUS_AHEAD))
        if not self._reports_edge:
            return found
        return extents.merged_stream(extents.with_edge(found, MAX_CLUSTER, self._presume))

    def _status_windows(self, offset: int) -> Iterator[Extents]:
        window = batching.MIN_STATUS
        while offset < self.size:
            stop = min(offset + window, self.size)
            replies, seconds = self._map(offset, stop - offset)
            window = batching.next_window(window, seconds)
            offsets, lengths, flags, reached = extents.combine_status(offset, stop, *replies)
            if reached <= offset:
                raise errors.SourceError(f"{self._export}: the NBD server made no progress at byte {offset} of its map")
            yield self._stored_extents(offsets, lengths, *flags)
            offset = reached

    def _map(self, offset: int, length: int) -> tuple[list[tuple[Numbers, Numbers]], float]:
        with self._lent(self._taken(1)) as [reader]:
            began = time.monotonic()
            return reader.block_status(offset, length), time.monotonic() - began

    def _stored_extents(
        self, offsets: Numbers, lengths: Numbers, allocation: Numbers, dirty: Optional[Numbers] = None
    ) -> Extents:
        result = numpy.empty(len(offsets), extents.EXTENT)
        result["offset"], result["length"] = offsets, lengths
        result["kind"] = numpy.where(allocation & STATE_ZERO, extents.ZERO, extents.DATA)
        return result if dirty is None else self._changed(result, (dirty & STATE_DIRTY) != 0)

    def _changed(self, found: Extents, dirty: Mask) -> Extents:
        parts, clean = [found[dirty]], found[~dirty]
        if self._dirty_from is not None:
            parts.append(extents.clip(clean, self._dirty_from, self.size))
            clean = extents.clip(clean, 0, self._dirty_from)
        if len(clean) and len(self._again):
            again = extents.meeting(self._again, int(clean["offset"][0]), int(extents.ends(clean[-1:])[0]))
            parts.append(extents.intersect(clean, again))
            self._presume(parts[-1])
            clean = extents.without(clean, again)
        # A disk that was shrunk and grown again is zero there, and its bitmap has lost the bits.
        zero = clean[clean["kind"] == extents.ZERO]
        if self._held is None:
            self._presume(zero)
            parts.append(zero)
        elif len(zero):
            parts.append(extents.intersect(zero, self._held(int(zero["offset"][0]), int(extents.ends(zero[-1:])[0]))))
        if self._reports_edge:
            data = clean[clean["kind"] == extents.DATA]
            data["kind"] = extents.CLEAN
            parts.append(data)
        result = numpy.concatenate(parts)
        return result[numpy.argsort(result["offset"], kind="stable")] if len(result) > len(parts[0]) else parts[0]

    def _presume(self, ranges: Extents) -> None:
        self.presumed += extents.total(ranges)

    # Bytes

    @contextmanager
    def reading(self) -> Iterator[_Spread]:
        """Yield a reader for one thread, over up to SPREAD connections.

        Its read_batch([(offset, length), …]) returns a memoryview each, valid until the thread's next call, even after
        the reader was given back.
        """
        with self._lent(self._taken(SPREAD)) as readers:
            yield _Spread(self, readers)

    @contextmanager
    def _lent(self, readers: list[_Reader]) -> Iterator[list[_Reader]]:
        """Connect what was taken, and give it back when the block ends; after an error, unless it was only an answer,
        to be connected again."""
        try:
            for each in readers:
                if each.connection is None:
                    each.connect()
            yield readers
        except ReadFailed:  # an answer like others
            raise
        except BaseException:
            for each in readers:
                each.drop()  # its state is unknown
            raise
        finally:
            with self._given_back:
                self._free += readers
                self._given_back.notify_all()

    def _taken(self, most: int) -> list[_Reader]:
        """Wait for one connection, and take more as long as one is left for the map, or the next thread."""
        while True:
            with self._given_back:
                if self._free and not self._closed:
                    count = max(1, min(most, len(self._free) - 1))
                    taken, self._free[-count:] = self._free[-count:], []
                    return taken
                if not self._closed:
                    self._given_back.wait(POLL_INTERVAL / 1000)
            self._require_open()

    def _taken_ahead(self, count: int) -> list[_Reader]:
        """Take connections if another one is left. So no thread waits for connections held by threads that wait, too:
        the last one is always free, or with a thread that needs no other.

        Over TCP take none: what nobody takes for a while may not fit into its buffers, and then QEMU hangs if it is
        paused.
        """
        with self._given_back:
            if len(self._free) <= count or self._closed or self._is_far:
                return []
            taken, self._free[-count:] = self._free[-count:], []
            return taken

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a buffer, over up to SPREAD connections in this one thread.

        With a thread for each connection, more of the time goes into handing over Python's lock than into the reads.
        """

        def spread() -> None:
            with self._lent(self._taken(_useful(view))) as readers:
                source_connection.read_over([each.ready for each in readers], [(offset, view)])

        self._filled(spread, offset, view)

    def _filled(self, spread: Callable[[], None], offset: int, view: memoryview) -> None:
        def pinned() -> None:
            with self._lent(self._taken(1)) as readers:
                readers[0].ready.read_pinned_into([(offset, len(view))], [view])

        self._tried(spread, lambda: None, pinned)

    def filling(self, offset: int, view: memoryview) -> Generator[bool, None, None]:
        """Fill a buffer in two steps: request the bytes and pause; when resumed, wait for them.

        Yields True if they were requested; False if too few connections were spare, or one broke: then everything
        happens when it is resumed. Exhaust or close it before you use the buffer again. SourceError, as `read_into`.
        """
        begun = self._begun(self._taken_ahead(_useful(view)), offset, view)
        if begun is None:
            yield False
            return self.read_into(offset, view)
        try:
            yield True
            self._filled(partial(next, begun, None), offset, view)
        finally:
            with suppress(errors.NbdpullError):
                begun.close()

    def _begun(self, readers: list[_Reader], offset: int, view: memoryview) -> Optional[Generator[None, None, None]]:
        """Request bytes, and return what waits for them; None if they could not be requested."""
        steps = self._spread(readers, offset, view)
        with suppress(ConnectionLost, ReadFailed):
            if readers:
                next(steps)
                return steps
        return None

    def _spread(self, readers: list[_Reader], offset: int, view: memoryview) -> Generator[None, None, None]:
        with self._lent(readers):
            begun = source_connection.begin_over([each.ready for each in readers], [(offset, view)])
            self._pause(len(readers))
            with suppress(GeneratorExit):  # what is on its way must arrive before the connections are used again
                yield
            self._pause(-len(readers))
            self._require_not_closed()
            source_connection.end_over(begun)

    def _pause(self, change: int) -> None:
        with self._given_back:
            self._paused += change
            self._given_back.notify_all()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; length at most 32 MiB."""
        with self.reading() as reader:
            return bytes(reader.read_batch([(offset, length)])[0])

    def _tried(
        self, first: Callable[[], _Answer], renew: Callable[[], None], again: Optional[Callable[[], _Answer]] = None
    ) -> _Answer:
        """Return what first() returns; if its connection broke, what again() returns, on up to TRIES connections.

        A server also breaks the connection if a read fails midway: so the second try reads in small pieces, whose
        errors come as replies, with the offset.
        """
        attempt, pause, lost = first, PAUSE, False
        for left in reversed(range(TRIES)):
            try:
                if lost:
                    renew()
                return attempt()
            except ReadFailed:
                if attempt is not first or lost:
                    raise
            except ConnectionLost as error:
                if self._closed or not left:
                    raise
                log.info("%s; connecting again in %g s", error, pause)
                self._sleep(pause)
                pause, lost = 2 * pause, True
            attempt = again or first
        raise AssertionError("every try returns or raises")

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._require_open()
            time.sleep(min(seconds, 0.05))

    def _drop(self, broken: SourceConnection) -> None:
        with suppress(ValueError):
            self._opened.remove(broken)
        broken.close()

    def close(self) -> None:
        """Close every connection. Requests in progress, such as the map's, fail; a handshake is completed first."""
        self._closed = True
        deadline = time.monotonic() + self._handshake + GOODBYE
        with self._given_back:
            self._given_back.wait_for(
                lambda: len(self._free) + self._paused == self._count, deadline - time.monotonic()
            )
        deadline = time.monotonic() + GOODBYE
        while self._opened:
            self._opened.pop().close(deadline)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _useful(view: memoryview) -> int:
    """Return over how many connections a buffer is best filled."""
    return min(max(-(-len(view) // source_connection.MAX_BATCH_BYTES), 1), SPREAD)


class _Spread:
    """What one thread reads through: several readers."""

    def __init__(self, owner: Source, readers: Sequence[_Reader]):
        self._owner, self._readers = owner, readers

    def read_batch(self, ranges: Sequence[Range]) -> list[memoryview]:
        def spread() -> list[memoryview]:
            connections = [each.connection for each in self._readers if each.connection]
            return source_connection.read_batch(connections, ranges)

        return self._owner._tried(spread, self._renew, lambda: self._readers[0].ready.read_pinned(ranges))

    def _renew(self) -> None:
        """Replace all by one new connection: where one broke, the others did, too."""
        for each in self._readers:
            each.drop()
        self._readers[0].connect()


class _Reader:
    """A connection, and its replacement when it is needed after it broke; connection: None = none yet."""

    def __init__(self, owner: Source, connection: Optional[SourceConnection]):
        self._owner, self.connection = owner, connection

    def block_status(self, offset: int, length: int) -> list[tuple[Numbers, Numbers]]:
        return self._owner._tried(lambda: self.ready.block_status(offset, length), self._renew)

    @property
    def ready(self) -> SourceConnection:
        assert self.connection  # it was connected before the first read
        return self.connection

    def _renew(self) -> None:
        self.drop()
        self.connect()

    def connect(self) -> None:
        if self.connection is None:
            self._owner._require_alive()  # last, so that the job still exists when the handshake starts
            self.connection = self._owner._connect()

    def drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection:
            self._owner._drop(connection)
