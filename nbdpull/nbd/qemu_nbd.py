"""A qemu-nbd of our own, which serves one image on a socket without a name: nothing of it remains however we end.

Owns: its start, its messages, and its end, which is guaranteed, and orderly on request. Must not know: what connects to
it, what is read or written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import IO, Callable, TypeVar

from ..core import child, errors, software, temporary, unix_socket

END = 5.0  # seconds from its hang-up until it has ended

# The socket is handed over as systemd does it: LISTEN_PID needs the process's own pid, unknown before it exists.
_WITH_SOCKET = 'exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'

_Connected = TypeVar("_Connected")


class QemuNbd:
    """A running qemu-nbd. socket: a path for NBD clients in this process."""

    def __init__(self, socket: str, process: subprocess.Popen[bytes], log: IO[bytes]):
        self.socket = socket
        self._process, self._log = process, log

    def connected(
        self,
        connect: Callable[[str], _Connected],
        hung_up: type[errors.NbdpullError],
        refused: Callable[[str], errors.NbdpullError],
    ) -> _Connected:
        """Return what connect(socket) returns.

        connect waits in the socket's queue until qemu-nbd has opened the image; if qemu-nbd ends instead, connect
        raises `hung_up`. refused: returns the error for qemu-nbd's message then.
        """
        try:
            return connect(self.socket)
        except hung_up as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its message is complete when it has ended
                self._process.wait(END)
            raise refused(child.said(self._log) or str(error)) from None

    def finish(self) -> str:
        """Let it close the image and end. Return what went wrong, "" if nothing did."""
        self._process.terminate()
        code = self._process.wait()
        return child.said(self._log) or str(code) if code else ""


@contextlib.contextmanager
def serving(words: Sequence[str], end_with_us: int = signal.SIGKILL) -> Iterator[QemuNbd]:
    """Yield a QemuNbd, which is killed at the end unless it has finished.

    words: its options, and those that name the image; end_with_us: the signal that it gets if we end before it.
    """
    software.require("qemu-nbd")
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(temporary.file())
        listening, way = unix_socket.nameless()
        opened.callback(os.close, way)
        with listening:  # closed here, but not there: after qemu-nbd's end nobody listens
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
