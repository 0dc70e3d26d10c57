"""A qemu-nbd of our own, that serves one image on a socket without a name: nothing is left of it however we end.

Owns: its start, what it said, and its end, which is certain, and orderly where that was asked for. Must not know: who
connects to it, what is read or written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Callable, TypeVar

from ..core import child, errors, software, unix_socket

END = 5.0  # seconds from when it hangs up until it has ended

# The socket is handed over as systemd does it, because no process can be told its own number before it is one.
_WITH_SOCKET = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'

_Connected = TypeVar("_Connected")


class QemuNbd:
    """A running one. socket: a path for NBD clients in this process."""

    def __init__(self, socket: str, process: subprocess.Popen[bytes], log: IO[bytes]):
        self.socket = socket
        self._process, self._log = process, log

    def connected(
        self,
        connect: Callable[[str], _Connected],
        hung_up: type[errors.NbdpullError],
        refused: Callable[[str], errors.NbdpullError],
    ) -> _Connected:
        """What connect(socket) returns. That waits in the socket's queue until qemu-nbd has opened the image; where it
        ends instead, connect raises `hung_up`. refused: the error for what it says then."""
        try:
            return connect(self.socket)
        except hung_up as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # what it says is said when it has ended
                self._process.wait(END)
            raise refused(child.said(self._log) or str(error)) from None

    def finish(self) -> str:
        """Let it close the image and end. What went wrong, "" if nothing did."""
        self._process.terminate()
        code = self._process.wait()
        return child.said(self._log) or str(code) if code else ""


@contextlib.contextmanager
def serving(words: Sequence[str], end_with_us: int = signal.SIGKILL) -> Iterator[QemuNbd]:
    """Yield a QemuNbd. words: its options, and those that name the image; end_with_us: the signal that it gets when we
    end before it. In the end it is killed, unless it has finished."""
    software.require("qemu-nbd")
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(tempfile.TemporaryFile())
        listening, way = unix_socket.nameless()
        opened.callback(os.close, way)
        with listening:  # here, but not there, it is closed: after its end nobody listens
            listening.listen()
            process = subprocess.Popen(
                ["/bin/sh", "-c", _WITH_SOCKET, "sh", "qemu-nbd", "-t", *words],
                stdin=listening.fileno(), stdout=log, stderr=log,
                start_new_session=True,  # a Ctrl-C is for us: we end it
                preexec_fn=child.ended_with_us(end_with_us),
            )  # fmt: skip
        try:
            yield QemuNbd(unix_socket.path_of(way), process, log)
        finally:
            process.kill()
            process.wait()
