"""A command of the user, run to its end, which comes no later than ours, even if we are killed.

Owns: its process group, that nothing of it continues when it has to end, and files for it to read. Must not know: what
it does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Callable, Optional

from . import child, errors, temporary
from .errors import Check
from .os_error import translated

GRACE = 10  # seconds from SIGTERM to SIGKILL
_LOOK = 0.05  # seconds
# Continues in the background, so that the command has no child that it does not know. Reads until we have ended, for
# whatever reason, or report that all is done.
_GUARD = """exec 3<&0; {
    read -r word <&3
    [ "$word" = done ] || { kill -s TERM -- -$1; sleep $2; kill -s KILL -- -$1; }
} &"""


def require_there(words: Sequence[str]) -> None:
    """Raise CommandFailed if the program does not exist, or may not be executed."""
    if shutil.which(words[0]) is None:
        why = "may not be executed" if os.path.exists(words[0]) else "was not found"
        raise errors.CommandFailed(f"command {words[0]!r} {why}: nothing was started")


def run(words: Sequence[str], environment: Mapping[str, str], output: Optional[int], check: Check) -> int:
    """Run the command; return its exit code, or the negative number of the signal that ended it.

    output: a descriptor, None = our own. An exception from check() ends its whole process group.
    """
    with _guard() as guarded:
        try:
            process = subprocess.Popen(
                words, env=environment, stdout=output, start_new_session=True, preexec_fn=guarded
            )
        except OSError as error:
            raise errors.CommandFailed(f"command {words[0]!r} could not be run: {error.strerror}") from error
        try:
            while not _has_ended(process.pid):
                check()
                time.sleep(_LOOK)
        except BaseException:
            _end(process.pid)
            raise
        finally:
            code = process.wait()
    return code


def said(code: int) -> str:
    """Describe how a command ended."""
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


@contextmanager
def handed(lines: Iterable[str]) -> Iterator[str]:
    """Yield the path of a file with these lines, which a command of ours can read. It disappears however we end.
    OutputError."""
    with temporary.file() as file:
        with translated("write to", temporary.place()):
            file.writelines(f"{line}\n".encode("ascii") for line in lines)
            file.flush()
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


@contextmanager
def _guard() -> Iterator[Callable[[], None]]:
    """Yield a function that the new process, the leader of its group, calls before it becomes the command.

    It starts a guard of that group, which lives until the block ends. A guard started after the command would come too
    late if we were killed in between.
    """
    ends_with_us = child.ended_with_us(signal.SIGTERM)
    reading, writing = os.pipe()

    def begin() -> None:
        ends_with_us()
        guard = os.posix_spawnp(
            "sh",
            ["sh", "-c", _GUARD, "sh", str(os.getpid()), str(GRACE)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        os.waitpid(guard, 0)

    try:
        yield begin
    finally:
        os.write(writing, b"done\n")
        os.close(reading)
        os.close(writing)


def _has_ended(pid: int) -> bool:
    """Return whether a process has ended, without reaping it: so its pid, and that of its group, cannot be reused."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _end(group: int) -> None:
    _signal(group, signal.SIGTERM)
    end = time.monotonic() + GRACE
    while not _has_ended(group) and time.monotonic() < end:
        time.sleep(_LOOK)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
