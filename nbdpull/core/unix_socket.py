"""Unix sockets: the longest path of one, and one without a path.

Owns: that number, which is Linux's, and how to create a socket that no other process finds. Must not know: whose socket
it is.
"""

from __future__ import annotations

import os
import shutil
import socket

from . import temporary

PATH_MAX = 107  # bytes: sun_path, less its NUL


def fits(path: str) -> bool:
    """Return whether a unix socket can have this path."""
    return len(os.fsencode(path)) <= PATH_MAX


def is_there(path: str) -> bool:
    return os.path.exists(path)


def nameless() -> tuple[socket.socket, int]:
    """Return a socket to listen on, and a descriptor: this process can connect to its path_of.

    Nothing remains of it however we end.
    """
    folder = temporary.folder()
    inside = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = f"{path_of(inside)}/nbd"  # the folder's own path may be too long
        listening.bind(path)
        return listening, os.open(path, os.O_PATH)
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(inside)
        shutil.rmtree(folder, ignore_errors=True)


def path_of(descriptor: int) -> str:
    """Return the path by which this process finds what a descriptor refers to."""
    return f"/proc/self/fd/{descriptor}"
