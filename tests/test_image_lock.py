"""QEMU's locks on images, against QEMU's own programs: each kind of use keeps out what it must, and no more."""

import contextlib
import errno
import fcntl
import os
import subprocess

import pytest
from bed.images import used_by_qemu

from nbdpull.core import errors
from nbdpull.images import image_lock


@pytest.fixture(params=["raw", "qcow2"])
def image(request, tmp_path):
    path = tmp_path / f"image.{request.param}"
    subprocess.run(["qemu-img", "create", "-q", "-f", request.param, path, "1M"], check=True)
    return path


@contextlib.contextmanager
def opened(image, mode=os.O_RDONLY):
    descriptor = os.open(image, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def qemu_io(image, *words):
    """Return whether QEMU could do it."""
    done = subprocess.run(["qemu-io", "-f", image.suffix[1:], *words, str(image)], capture_output=True, text=True)
    assert not done.returncode or "lock" in done.stderr, done.stderr
    return not done.returncode


def writes(image):
    return qemu_io(image, "-c", "write -q 0 512")


def reads(image):
    return qemu_io(image, "-r", "-c", "read -q 0 512")


def test_writers_are_kept_out_and_readers_are_not(image):
    with opened(image) as descriptor, opened(image) as another:
        assert image_lock.keep_writers_out(descriptor, image)
        assert image_lock.keep_writers_out(another, image)
        assert not writes(image) and reads(image)
        with opened(image):
            pass  # a lock of the process would be gone now
        assert not writes(image)
    assert writes(image)


def test_all_are_kept_out(image):
    with opened(image, os.O_RDWR) as descriptor:
        image_lock.keep_all_out(descriptor, image)
        assert not writes(image) and not reads(image)
        with opened(image) as another, pytest.raises(errors.Busy, match="in use"):
            image_lock.keep_writers_out(another, image)
    assert writes(image)


def test_image_that_a_qemu_writes_to(image):
    with used_by_qemu(image), opened(image, os.O_RDWR) as descriptor:
        with pytest.raises(errors.Busy, match="runs elsewhere"):
            image_lock.keep_writers_out(descriptor, image)
        with pytest.raises(errors.Busy, match="in use"):
            image_lock.keep_all_out(descriptor, image)


def test_image_that_a_qemu_reads(image):
    """Such as the backing file of another VM's disk."""
    with used_by_qemu(image, "-r"), opened(image, os.O_RDWR) as descriptor:
        assert image_lock.keep_writers_out(descriptor, image)
        with pytest.raises(errors.Busy, match="in use"):
            image_lock.keep_all_out(descriptor, image)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_without_locks(image, monkeypatch, number):
    def without_locks(_descriptor, command, _argument=0):
        assert command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(image_lock.fcntl, "fcntl", without_locks)
    with opened(image, os.O_RDWR) as descriptor:
        assert not image_lock.keep_writers_out(descriptor, image)
        image_lock.keep_all_out(descriptor, image)
