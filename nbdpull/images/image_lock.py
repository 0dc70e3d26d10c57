"""QEMU's locks on an image: whether a program uses it, and that none starts to.

Owns: the bytes of a file that QEMU locks, and what each means. A lock belongs to the open file, not to the process: it
ends with the descriptor, and reading the file elsewhere in this process does not release it. Must not know: the image's
content, or why it is needed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl

from ..core import errors

# QEMU holds a shared lock on the first kind of byte for each thing that it does with an image, and on the second for
# each thing that it forbids to others. Before it starts, it checks others' locks of the other kind.
_DOES, _FORBIDS = 100, 200
_WRITES, _RESIZES = 1, 3
_ALL = 4  # the others: consistent read, write of unchanged data

_IN_USE = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class _Flock(ctypes.Structure):
    _fields_ = [("type", ctypes.c_short), ("whence", ctypes.c_short), ("start", ctypes.c_int64),
                ("length", ctypes.c_int64), ("pid", ctypes.c_int)]  # fmt: skip


def keep_all_out(descriptor: int, path: str) -> None:
    """Raise Busy if QEMU uses the image; from now on, none can. The descriptor has to be open for writing."""
    try:
        _set(descriptor, fcntl.F_WRLCK, _DOES, _ALL)
    except OSError as error:
        if error.errno in _IN_USE:
            raise errors.Busy(f"{path} is in use, probably by a running VM: shut it down first") from error
        # otherwise a file system without locks


def keep_writers_out(descriptor: int, path: str) -> bool:
    """Raise Busy if a QEMU may write to the image; from now on none can, but many can read it.

    False if the file system has no locks: then nothing is known.
    """
    try:
        for change in (_WRITES, _RESIZES):
            _set(descriptor, fcntl.F_RDLCK, _FORBIDS + change, 1)
        used = has_writer(descriptor)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno not in _IN_USE:  # a restore locks all of it
            raise
        used = True
    if used:
        raise errors.Busy(f"{path} is in use: it seems that its VM runs elsewhere, or another program writes to it")
    return True


def has_writer(descriptor: int) -> bool:
    """Return whether a QEMU may write to the image; False also if the file system has no locks. OSError."""
    try:
        return any(_is_locked(descriptor, _DOES + change) for change in (_WRITES, _RESIZES))
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise


def _set(descriptor: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, bytes(_Flock(kind, 0, start, length, 0)))


def _is_locked(descriptor: int, byte: int) -> bool:
    """Return whether any process has a lock on it, even a shared one."""
    asked = bytes(_Flock(fcntl.F_WRLCK, 0, byte, 1, 0))
    found: int = _Flock.from_buffer_copy(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)).type
    return found != fcntl.F_UNLCK
