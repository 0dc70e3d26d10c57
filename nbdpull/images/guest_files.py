"""Files of a guest, looked at by a process of their own, within a deadline.

They may be on a file system that hangs: who waits for such a one cannot be killed, not even by SIGKILL, so it must not
be us. Owns: that process, which is ours or qemu-img. Must not know: what the files are for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional

from ..core.errors import Check

_READER = Path(__file__).with_name("guest_files_reader.py")
LOOK_INTERVAL = 0.2  # seconds between looks at the stop flag


def read(path: str, seconds: float, most: Optional[int] = None, check: Check = lambda: None) -> bytes:
    """What a file holds, at most its first bytes; OSError, of which TimeoutError is one."""
    return _asked("read", path, seconds, check, -1 if most is None else most)


def read_file(path: str, seconds: float, most: int, check: Check = lambda: None) -> bytes:
    """The first bytes of a regular file, none of anything else that is there; OSError."""
    return _asked("read_file", path, seconds, check, most)


def names(path: str, seconds: float, check: Check = lambda: None) -> list[str]:
    """The names in a directory, sorted; OSError."""
    return [os.fsdecode(name) for name in _asked("names", path, seconds, check).split(b"\0") if name]


def has_writer(path: str, seconds: float, check: Check = lambda: None) -> bool:
    """Whether a QEMU has an image open for writing, even on another host if the file system shows that; OSError."""
    return _asked("has_writer", path, seconds, check) == b"yes"


def layers(path: str, kind: str, seconds: float, check: Check = lambda: None) -> list[dict[str, Any]]:
    """What `qemu-img info` reports of an image and its backing files, top first, even if a QEMU uses it; OSError."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f", kind, path]
    told = _output(command, path, seconds, check)
    if not told:
        raise OSError(errno.EIO, "qemu-img cannot read it", path)
    found: list[dict[str, Any]] = json.loads(told)
    return found


def _asked(what: str, path: str, seconds: float, check: Check, most: int = -1) -> bytes:
    command = [sys.executable, "-I", "-S", str(_READER), what, path, str(most)]
    number, _, seen = _output(command, path, seconds, check).partition(b"\n")
    if number != b"0":
        failed = int(number or errno.EIO)  # nothing at all: it was killed
        raise OSError(failed, os.strerror(failed), path)
    return seen


def _output(command: list[str], path: str, seconds: float, check: Check) -> bytes:
    """What a program prints that looks at this path; TimeoutError."""
    deadline = time.monotonic() + seconds
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=LOOK_INTERVAL)[0]
            check()
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"its file system did not answer within {seconds:g} s", path)
    except BaseException:
        process.kill()  # and not waited for: it may never end
        raise
