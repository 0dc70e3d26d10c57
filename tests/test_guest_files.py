"""Files of a guest, read by a process that may hang in our place."""

import errno
import os
import subprocess
import time

import pytest
from bed.machine import wait_for

from nbdpull.core import errors
from nbdpull.images import guest_files


def test_read(tmp_path):
    path = tmp_path / "a b'c"
    path.write_bytes(bytes(range(256)) * 1000)
    assert guest_files.read(str(path), 10) == path.read_bytes()
    assert guest_files.read(str(path), 10, 3) == b"\0\1\2"


def test_an_error_has_its_number(tmp_path):
    with pytest.raises(OSError) as caught:
        guest_files.read(str(tmp_path / "none"), 10)
    assert caught.value.errno == errno.ENOENT and caught.value.strerror == os.strerror(errno.ENOENT)


@pytest.fixture
def hanging(tmp_path):
    """A file that nobody can open: a pipe without a writer."""
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


def test_one_that_hangs_is_given_up(hanging):
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="did not answer within 0.5 s"):
        guest_files.read(hanging, 0.5)
    assert time.monotonic() - started < 10


def test_a_stop_ends_the_wait(hanging):
    def stop():
        raise errors.Interrupted(15)

    with pytest.raises(errors.Interrupted):
        guest_files.read(hanging, 60, check=stop)


def test_whether_a_qemu_writes_to_an_image(tmp_path):
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    assert not guest_files.has_writer(str(image), 10)
    pid, socket = tmp_path / "pid", tmp_path / "socket"
    server = subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", socket, "--pid-file", pid, image])
    try:
        wait_for(pid.exists, "qemu-nbd")
        assert guest_files.has_writer(str(image), 10)
    finally:
        server.kill()
        server.wait()
