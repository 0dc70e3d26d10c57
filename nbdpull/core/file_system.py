"""File systems of this host: free and used space, whether they are writable, when they write.

Owns: those questions to the kernel. Must not know: what is stored there, and how much of it there may be.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Optional

WRITEBACK_STEP = 4 << 20  # bytes written between two calls; a guest on the same disk waits for no more than that


def free_bytes(path: str) -> Optional[int]:
    """Return the bytes free for users other than root, which QEMU mostly is; None: unknown."""
    with suppress(OSError):
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize
    return None


def size_bytes(path: str) -> Optional[int]:
    """Return the size of the whole file system in bytes; None: unknown."""
    with suppress(OSError):
        status = os.statvfs(path)
        return status.f_blocks * status.f_frsize
    return None


def used_bytes(files: Iterable[str]) -> int:
    """Return the bytes that files take on their file system; OSError if one does not exist."""
    return sum(os.stat(path).st_blocks * 512 for path in files)


def why_unwritable(folder: str) -> Optional[str]:
    """Return the operating system's reason not to create something in a directory; None if it can be created."""
    if os.access(folder, os.W_OK | os.X_OK):
        return None
    with suppress(OSError):
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
    return os.strerror(errno.EACCES)


def sync_folder(descriptor: int) -> None:
    """Make names that were added to a folder, or removed, durable."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no fsync of folders
            raise


def start_writeback(descriptor: int) -> None:
    """Ask the kernel to start writing a file's dirty pages, so that a later fsync has little left to wait for.

    Python has no sync_file_range of its own. It is not an error if a kernel or file system lacks it.
    """
    _SYNC_FILE_RANGE(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE: Any = getattr(ctypes.CDLL(None), "sync_file_range", lambda *_: -1)
if hasattr(_SYNC_FILE_RANGE, "argtypes"):
    _SYNC_FILE_RANGE.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2
