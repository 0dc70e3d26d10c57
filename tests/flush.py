"""What stands for os.fsync in unit tests: its answers, without the wait for the disk.

No test sees whether bytes would survive a power cut: those that are about it look at which descriptors are flushed, and
when. Owns nothing of the package; what runs in another process flushes as always.
"""

import errno
import os
import stat

REAL = os.fsync
FLUSHABLE = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK}


def skipped(descriptor):
    """Of a descriptor or a file. Refuse what os.fsync refuses: what is closed, was opened for its path alone, or has
    nothing to flush."""
    descriptor = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if stat.S_IFMT(os.fstat(descriptor).st_mode) not in FLUSHABLE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    os.lseek(descriptor, 0, os.SEEK_CUR)
