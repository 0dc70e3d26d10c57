"""Inspects one file of a guest, and writes to standard output the errno, a line break, and the result.

    guest_files_reader.py WHAT PATH MOST

guest_files.py runs it as a program; nothing imports it: it may hang in a file system for ever. It starts fast, and
imports from the package only the module of QEMU's locks, when that is needed.
"""

from __future__ import annotations

import os
import stat
import sys
from errno import EIO


def main(what: str, path: str, most: str) -> bytes:
    return {"read": read, "read_file": read_file, "has_writer": has_writer}[what](path, int(most))


def read(path: str, most: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(most)


def read_file(path: str, most: int) -> bytes:
    """Read a regular file. Do not open a device: that alone may have an effect."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return b""
    return read(path, most)


def has_writer(path: str, _most: int) -> bytes:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from nbdpull.images import image_lock

    with open(path, "rb") as file:
        return b"yes" if image_lock.has_writer(file.fileno()) else b"no"


if __name__ == "__main__":
    try:
        answer = b"0\n" + main(*sys.argv[1:])
    except OSError as error:
        answer = b"%d\n" % (error.errno or EIO)
    sys.stdout.buffer.write(answer)
