"""A pipe as a target: it takes bytes in order.

Owns: the zeroes between what is written, and that a reader that does not read cannot prevent us from ending. Must not
know: what reads.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core import errors
from ..core.errors import Check
from ..core.os_error import unprintable

if TYPE_CHECKING:
    from ..core.extents import Buffer, Part

LOOK_INTERVAL = 0.2  # seconds between checks of the stop flag


class Stream:
    """A pipe: takes bytes in order, and zeroes for what is not written. check() is called during a wait for its
    reader."""

    sequential, blank = True, True

    def __init__(self, descriptor: int, size: int, check: Check = lambda: None) -> None:
        self._descriptor, self.size, self._check = descriptor, size, check
        self._reached = 0
        self._blocks = os.get_blocking(descriptor)
        os.set_blocking(descriptor, False)  # a signal could not interrupt a write to a full pipe

    def write(self, parts: Sequence[Part]) -> int:
        for offset, buffer in parts:
            self._fill(offset)
            self._out(buffer)
        return sum(len(buffer) for _, buffer in parts)

    def _fill(self, stop: int) -> None:
        zeros = bytes(1 << 20)
        while self._reached < stop:
            self._out(memoryview(zeros)[: stop - self._reached])

    def _out(self, buffer: Buffer) -> None:
        view = memoryview(buffer)
        self._reached += len(view)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BrokenPipeError:
                raise  # the command line knows what it means
            except BlockingIOError:
                self._check()
                select.select([], [self._descriptor], [], LOOK_INTERVAL)
            except OSError as error:
                raise errors.OutputError(f"cannot write to stdout: {unprintable(error)}") from error

    def flush(self) -> None:
        self._fill(self.size)
        with contextlib.suppress(OSError):  # a pipe cannot be synced
            os.fsync(self._descriptor)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        os.set_blocking(self._descriptor, self._blocks)
