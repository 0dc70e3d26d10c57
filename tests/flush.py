"""A replacement for os.fsync in unit tests: it gives the same answers, but does not wait for the disk.

No test can see whether bytes would survive a power cut: tests of durability check which descriptors are flushed, and
when. Owns nothing of the package; other processes flush as always.
"""

import errno
import os
import stat

REAL = os.fsync
FLUSHABLE = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK}


def skipped(descriptor):
    """Accept a descriptor or a file, and refuse what os.fsync refuses: what is closed, was opened with O_PATH, or
    cannot be flushed."""
    descriptor = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if stat.S_IFMT(os.fstat(descriptor).st_mode) not in FLUSHABLE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    os.lseek(descriptor, 0, os.SEEK_CUR)
