"""A raw image or a block device as a target.

Owns: ranges of bytes that this host's kernel writes, zeroes and flushes, and which parts of a file are allocated. Must
not know: which disk it is, how the file was opened.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.file_system import WRITEBACK_STEP, start_writeback
from ..core.os_error import translated

if TYPE_CHECKING:
    from ..core.extents import Buffer, Part, Range

_PUNCH_HOLE, _ZERO_RANGE, _KEEP_SIZE = 2, 16, 1
_MAX_IOV = 1024  # buffers in one pwritev


class File:
    """A raw image or a block device; closes the descriptor. Several threads use it at once."""

    sequential = False

    def __init__(self, descriptor: int, path: str, size: int, blank: bool = False) -> None:
        self._descriptor, self._path = descriptor, path
        self.size, self.blank = size, blank
        self._since_writeback = 0

    def write(self, parts: Sequence[Part]) -> int:
        """Write [(offset, buffer), …], ascending; return the number of bytes."""
        for offset, buffers in _runs(parts):
            self._pwrite(offset, buffers)
        return sum(len(buffer) for _, buffer in parts)

    def _pwrite(self, offset: int, buffers: list[Buffer]) -> None:
        with translated("write to", self._path):
            while buffers:
                done = os.pwritev(self._descriptor, buffers[:_MAX_IOV], offset)
                offset, buffers = offset + done, _rest(buffers, done)
                self._since_writeback += done
        if self._since_writeback >= WRITEBACK_STEP:  # a race of threads costs one call too many, nothing more
            self._since_writeback = 0
            start_writeback(self._descriptor)

    def zero(self, offset: int, length: int) -> int:
        """Make a range read as zero, by deallocating it if possible."""
        for mode in (_PUNCH_HOLE, _ZERO_RANGE):
            if not _FALLOCATE(self._descriptor, mode | _KEEP_SIZE, offset, length):
                return length
        zeros = bytes(min(length, 1 << 20))
        for at in range(offset, offset + length, len(zeros)):
            self._pwrite(at, [memoryview(zeros)[: offset + length - at]])
        return length

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        with translated("read", self._path):
            while length and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset, length = offset + len(part), length - len(part)
        return b"".join(parts) + bytes(length)

    def allocated(self, offset: int, length: int) -> list[Range]:
        """Return [(offset, length), …] of the parts of a range that may not be zero."""
        found, stop = [], offset + length
        try:
            while offset < stop:
                start = os.lseek(self._descriptor, offset, os.SEEK_DATA)
                offset = min(os.lseek(self._descriptor, start, os.SEEK_HOLE), stop)
                found += [(start, offset - start)] if start < offset else []
        except OSError as error:
            if error.errno != errno.ENXIO:  # no more data; otherwise a block device, which has no holes
                return [*found, (offset, stop - offset)]
        return found

    def flush(self) -> None:
        with translated("write to", self._path):
            os.fsync(self._descriptor)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._descriptor)


def _runs(parts: Iterable[Part]) -> Iterator[tuple[int, list[Buffer]]]:
    """Group [(offset, buffer), …] into (offset, [adjacent buffers])."""
    start = reached = 0
    run: list[Buffer] = []
    for offset, buffer in parts:
        if run and offset != reached:
            yield start, run
            run = []
        start = start if run else offset
        run.append(buffer)
        reached = offset + len(buffer)
    if run:
        yield start, run


def _rest(buffers: list[Buffer], done: int) -> list[Buffer]:
    """Return what remains of buffers after their first `done` bytes."""
    for number, buffer in enumerate(buffers):
        if done < len(buffer):
            return [memoryview(buffer)[done:], *buffers[number + 1 :]]
        done -= len(buffer)
    return []


_LIBC = ctypes.CDLL(None)
_FALLOCATE: Any = getattr(_LIBC, "fallocate64", getattr(_LIBC, "fallocate", lambda *_: -1))
if hasattr(_FALLOCATE, "argtypes"):
    _FALLOCATE.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
