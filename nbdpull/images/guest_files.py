"""Files of a guest, inspected by a separate process, within a deadline.

They may be on a file system that hangs: a process that waits for it cannot be killed, not even by SIGKILL, so it must
not be ours. Owns: that process, which is our reader or qemu-img. Must not know: what the files are for.
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
LOOK_INTERVAL = 0.2  # seconds between checks of the stop flag


def read(path: str, seconds: float, most: Optional[int] = None, check: Check = lambda: None) -> bytes:
    """Return the content of a file, or at most its first bytes; OSError, which includes TimeoutError."""
    return _asked("read", path, seconds, check, -1 if most is None else most)


def read_file(path: str, seconds: float, most: int, check: Check = lambda: None) -> bytes:
    """Return the first bytes of a regular file, none of anything else; OSError."""
    return _asked("read_file", path, seconds, check, most)


def has_writer(path: str, seconds: float, check: Check = lambda: None) -> bool:
    """Return whether a QEMU has an image open for writing, even on another host if the file system shows that;
    OSError."""
    return _asked("has_writer", path, seconds, check) == b"yes"


def layers(path: str, kind: str, seconds: float, check: Check) -> list[dict[str, Any]]:
    """Return what `qemu-img info` reports about an image and its backing files, top first, even if a QEMU uses it;
    OSError."""
    command = ["qemu-img", "info", "-U", "--backing-chain", "--output=json", "-f", kind, path]
    output = _output(command, path, seconds, check)
    if not output:
        raise OSError(errno.EIO, "qemu-img cannot read it", path)
    found: list[dict[str, Any]] = json.loads(output)
    return found


def _asked(what: str, path: str, seconds: float, check: Check, most: int = -1) -> bytes:
    command = [sys.executable, "-I", "-S", str(_READER), what, path, str(most)]
    number, _, seen = _output(command, path, seconds, check).partition(b"\n")
    if number != b"0":
        failed = int(number or errno.EIO)  # nothing at all: the process was killed
        raise OSError(failed, os.strerror(failed), path)
    return seen


def _output(command: list[str], path: str, seconds: float, check: Check) -> bytes:
    """Return the output of a program that inspects this path; TimeoutError."""
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
        process.kill()  # do not wait for it: it may never end
        raise
