"""A folder of ours that exists while a process works, and that can be opened to another user.

Owns: that nobody else finds what is in it, that it is removed at the end, and that a later process removes what a
killed one left. Must not know: what is put there.
"""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Optional

from .os_error import translated

SWEPT_AFTER = 60.0  # seconds: the process that created it may not hold it yet


@contextmanager
def made(parent: str, prefix: str) -> Iterator[str]:
    """Yield the path of a new folder, inside one that nobody can list, whose name starts with `prefix`.

    Folders with that prefix that no process holds are removed.
    """
    _sweep(parent, prefix)
    with translated("create a folder in", parent):
        outer = tempfile.mkdtemp(prefix=prefix, dir=parent)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, outer, ignore_errors=True)
        with suppress(OSError):  # a file system without locks: then nothing is swept there either
            stack.enter_context(_held(outer))
        os.chmod(outer, 0o711)
        inner = os.path.join(outer, secrets.token_hex(8))
        os.mkdir(inner, 0o700)
        yield inner


def give(folder: str, user: Optional[int]) -> None:
    """Let another user, by ID, use the folder and the files in it.

    If they cannot be given to that user only, anybody who knows the folder's name can use them, and every process list
    shows that name.
    """
    paths = [os.path.join(folder, name) for name in os.listdir(folder)]
    modes = 0o711, 0o666
    with suppress(PermissionError):
        if user is not None:
            for path in (folder, *paths):
                os.chown(path, user, -1)
            modes = 0o700, 0o600
    for path, mode in ((folder, modes[0]), *((path, modes[1]) for path in paths)):
        os.chmod(path, mode)


def _sweep(parent: str, prefix: str) -> None:
    for path in glob.glob(os.path.join(glob.escape(parent), f"{prefix}*")):
        with suppress(OSError), _held(path) as status:
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > SWEPT_AFTER:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _held(folder: str) -> Iterator[os.stat_result]:
    """Hold a folder, so that it counts as in use as long as this process lives; yield its status.

    BlockingIOError if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)
