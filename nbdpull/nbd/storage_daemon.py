"""A qemu-storage-daemon of our own: QEMU's block layer in a process without a guest, which nobody else can reach.

Owns: its start, its guaranteed end, its monitor (QMP over its standard input and output), and the socket of its NBD
server, which has no name: no other process finds it, and nothing of it remains however we end. Must not know: which
images are opened in it, or why.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from typing import Any

from ..core import child, errors, software, temporary, unix_socket
from ..core.choices import STALL_TIMEOUT
from ..core.errors import Check

PROGRAM = "qemu-storage-daemon"
LOOK_INTERVAL = 0.2  # seconds between checks of the stop flag
END_TIMEOUT = 5.0  # seconds; a process whose storage hangs cannot be ended, and we do not wait for it


class Refused(errors.HypervisorError):
    """QEMU's block layer refused; the text is its own."""


class StorageDaemon:
    """A running daemon, to be closed.

    socket: a path for NBD clients in this process; version: QEMU's. check() is called during a wait for it, and its
    exception ends the wait. SourceError if it is silent for `stall_timeout` seconds, JobLost if it has ended.
    """

    def __init__(self, check: Check = lambda: None, stall_timeout: float = STALL_TIMEOUT):
        software.require(PROGRAM)
        self._check, self._stall_timeout = check, stall_timeout
        self._unread = b""
        with contextlib.ExitStack() as opened:
            self._log = opened.enter_context(temporary.file())
            listening, way = unix_socket.nameless()
            opened.callback(os.close, way)
            self.socket = unix_socket.path_of(way)
            with listening:
                self._process = self._started(listening.fileno())
            opened.callback(self._end)
            self.version = _dotted(self._answer("its start", "QMP")["version"]["qemu"])
            self.ask("qmp_capabilities")
            self._opened = opened.pop_all()

    def _started(self, listening: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [PROGRAM, "--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor",
             "--nbd-server", f"addr.type=fd,addr.str={listening},max-connections=0"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0, pass_fds=[listening],
            start_new_session=True,  # a Ctrl-C is for us: we end it
            preexec_fn=child.ended_with_us(),
        )  # fmt: skip

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the result of a monitor command; write the dashes of names as underscores. Refused."""
        asked = {"execute": command, "arguments": {name.replace("_", "-"): arguments[name] for name in arguments}}
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the answer shows it
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        return self._answer(command, "return")

    def _answer(self, doing: str, wanted: str) -> Any:
        deadline = time.monotonic() + self._stall_timeout
        while True:
            answer = json.loads(self._line(doing, deadline))
            if "error" in answer:
                raise Refused(" ".join(answer["error"]["desc"].split()))
            if wanted in answer:  # else it is an event
                return answer[wanted]

    def _line(self, doing: str, deadline: float) -> bytes:
        assert self._process.stdout
        while b"\n" not in self._unread:
            self._check()
            if select.select([self._process.stdout], [], [], LOOK_INTERVAL)[0]:
                read = os.read(self._process.stdout.fileno(), 1 << 16)
                if not read:
                    raise self._ended()
                self._unread += read
            elif time.monotonic() > deadline:
                raise errors.SourceError(f"{PROGRAM} was silent for {self._stall_timeout:g} s over {doing}: does its "
                                         "storage hang?")  # fmt: skip
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def require_alive(self) -> None:
        """Raise JobLost if it has ended."""
        if self._process.poll() is not None:
            raise self._ended()

    def _ended(self) -> errors.NbdpullError:
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_TIMEOUT)
        said = child.said(self._log, 500)
        how = f"by signal {-code}" if code and code < 0 else f"with code {code}"
        return errors.JobLost(f"{PROGRAM}, which read the images, has ended {how}{said and f' ({said})'}: what was "
                              "read cannot be used, pull again")  # fmt: skip

    def close(self) -> None:
        self._opened.close()

    def _end(self) -> None:
        """Kill it: it has nothing to write."""
        process = self._process
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_TIMEOUT)
        for pipe in (process.stdin, process.stdout):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()

    def __enter__(self) -> StorageDaemon:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


def _dotted(version: dict[str, int]) -> str:
    return "{major}.{minor}.{micro}".format(**version)
