"""A folder in memory, for unit tests: they make and remove files by the thousand, and none outlives its test.

On a disk that took a fifth of their CPU: ext4 gives no new file the inode of one that went in the last minute, and goes
through all such to find another. Owns: where the folder is, and that none stays behind when a run is killed. Knows
nothing of the package.
"""

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM = 1 << 30  # bytes that have to be free there: a container has 64 MiB, and four processes test at once


def usable():
    """Whether there is such memory, and enough of it."""
    try:
        told = os.statvfs(MEMORY)
    except OSError:
        return False
    return os.access(MEMORY, os.W_OK) and told.f_bavail * told.f_frsize >= ROOM


@contextlib.contextmanager
def folder():
    """A new folder, which goes at the end; those of runs that were killed go at once."""
    for path in MEMORY.glob(f"{_prefix()}*"):
        if not os.path.exists(f"/proc/{path.name[len(_prefix()) :].partition('-')[0]}"):
            shutil.rmtree(path, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=MEMORY))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _prefix():
    """Of the folders of processes that /proc shows: containers can share memory and not that."""
    return f"nbdpull-tests-{re.sub('[^0-9]', '', os.readlink('/proc/self/ns/pid'))}-"
