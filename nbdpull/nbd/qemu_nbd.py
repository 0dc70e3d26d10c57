"""A qemu-nbd of our own, that serves one image on a socket of its own.

Owns: its start, what it said, and its end, which is certain, and orderly where that was asked for. Must not know: who
connects to it, what is read or written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Callable, TypeVar

from ..core import child, errors, software

START = 10.0  # seconds
LOOK_INTERVAL = 0.005  # seconds until its socket is tried again

_Connected = TypeVar("_Connected")


class QemuNbd:
    """A running one. socket: the path of its socket."""

    def __init__(self, socket: str, process: subprocess.Popen[bytes], log: IO[bytes]):
        self.socket = socket
        self._process, self._log = process, log

    def connected(
        self,
        connect: Callable[[str], _Connected],
        not_yet: type[errors.NbdpullError],
        refused: Callable[[str], errors.NbdpullError],
    ) -> _Connected:
        """What connect(socket) returns, as soon as it does not raise `not_yet`: the socket is there a moment before
        somebody listens, and qemu-nbd listens before it looks at the image. refused: the error for what it says, where
        it has ended or takes too long."""
        deadline = time.monotonic() + START
        while True:
            try:
                return connect(self.socket)
            except not_yet as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise refused(child.said(self._log) or str(error)) from None
            time.sleep(LOOK_INTERVAL)

    def finish(self) -> str:
        """Let it close the image and end. What went wrong, "" if nothing did."""
        self._process.terminate()
        code = self._process.wait()
        return child.said(self._log) or str(code) if code else ""


@contextlib.contextmanager
def serving(words: Sequence[str], end_with_us: int = signal.SIGKILL) -> Iterator[QemuNbd]:
    """Give a QemuNbd. words: its options, and those that name the image; end_with_us: the signal that it gets when we
    end before it. In the end it is killed, unless it has finished."""
    software.require("qemu-nbd")
    with tempfile.TemporaryDirectory(prefix="nbdpull-") as folder, tempfile.TemporaryFile() as log:
        socket = os.path.join(folder, "nbd")
        process = subprocess.Popen(
            ["qemu-nbd", "-t", "-k", socket, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,  # a Ctrl-C is for us: we end it
            preexec_fn=child.ended_with_us(end_with_us),
        )  # fmt: skip
        try:
            yield QemuNbd(socket, process, log)
        finally:
            process.kill()
            process.wait()
