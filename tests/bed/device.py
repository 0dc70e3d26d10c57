"""A small file system that fails on request: an ext4 on a loop device. Needs root.

The request only decides when; what the kernel then does is real. Must not know what the files are.
"""

import contextlib
import fcntl
import os
import struct
import subprocess
from pathlib import Path

EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2


class Device:
    """A file system that is mounted at `folder` while this is open; its image is a sparse file in `below`."""

    def __init__(self, folder, below, size):
        self.folder = Path(folder)
        self.folder.mkdir()
        self._image = Path(below) / "image"
        with open(self._image, "wb") as file:
            file.truncate(size)
        run("mkfs.ext4", "-q", "-F", self._image)
        self._attach()
        self._mount()

    def _attach(self):
        self._loop = run("losetup", "--find", "--show", self._image).strip()

    def _mount(self):
        run("mount", "-o", "errors=remount-ro", self._loop, self.folder)

    def unplug(self):
        """Let everything fail with EIO from now on; unsynced data is lost, as in a power failure."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os.close(descriptor)

    def fail(self):
        """Let the file system find an error in itself, and become read-only."""
        Path("/sys/fs/ext4", Path(self._loop).name, "trigger_fs_error").write_text("on order")

    def mend(self):
        """Check it and mount it again, as an administrator would.

        The loop device is another one: a mount namespace that another process created meanwhile still holds this mount.
        """
        run("umount", self.folder)
        run("losetup", "--detach", self._loop)
        self._attach()
        run("e2fsck", "-fy", self._loop, codes=(0, 1))
        self._mount()

    def close(self):
        with contextlib.suppress(subprocess.CalledProcessError):
            run("umount", self.folder)
        run("losetup", "--detach", self._loop)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def run(*words, codes=(0,)):
    """Run a program, which may be where only root looks for programs; return its standard output."""
    environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    done = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True)
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done.stdout
