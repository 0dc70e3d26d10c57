"""A qemu-nbd of our own: only we can find it, it says why it does not serve, and nothing of it is left."""

import os
import subprocess
import sys
import tempfile
import time

import pytest
from bed.machine import wait_for
from stores import MIB, package_environment

from nbdpull.core import errors
from nbdpull.nbd import qemu_nbd, source


class Refused(errors.NbdpullError):
    pass


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"\x55" * MIB)
    return str(path)


def size_of(image, *words):
    def connect(path):
        return source.Source(path, "")

    served = qemu_nbd.serving(["-r", "-f", "raw", *words, image])
    with served as server, server.connected(connect, errors.SourceError, Refused) as opened:
        return opened.size


def test_it_serves(image):
    assert size_of(image, "-e", "8") == MIB


def test_its_message_becomes_the_error(tmp_path, image):
    with pytest.raises(Refused, match="none.*No such file or directory"):
        size_of(str(tmp_path / "none"))
    with pytest.raises(Refused, match="unrecognized option '--strange'"):
        size_of(image, "--strange")


@pytest.mark.parametrize("end_with_us", ["SIGKILL", "SIGTERM"])
def test_nothing_is_left_if_nbdpull_is_killed(tmp_path, image, end_with_us):
    """A verify --against that was killed left a directory in /tmp."""
    folder = tmp_path / "t"
    folder.mkdir()
    program = (
        "import signal, sys, time\n"
        "from nbdpull.nbd import qemu_nbd, source\n"
        f"with qemu_nbd.serving(['-r', '-f', 'raw', sys.argv[1]], signal.{end_with_us}) as server:\n"
        "    opened = source.Source(server.socket, '', connections=1)\n"
        "    print(flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**package_environment(), "TMPDIR": str(folder)}
    with subprocess.Popen([sys.executable, "-c", program, image], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"\n"
        assert os.listdir(folder) == []
        served = ["pgrep", "-f", f"qemu-nbd.*{image}"]
        assert subprocess.run(served, capture_output=True).returncode == 0
        process.kill()
    wait_for(lambda: subprocess.run(served, capture_output=True).returncode == 1, "qemu-nbd ends")
    assert os.listdir(folder) == []


def test_a_directory_path_of_any_length_works(tmp_path, image, monkeypatch):
    long = tmp_path / ("x" * 200)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert size_of(image, "-e", "8") == MIB


def test_an_image_that_takes_long_is_waited_for(tmp_path, image, monkeypatch):
    real = subprocess.check_output(["sh", "-c", "command -v qemu-nbd"], text=True).strip()
    slow = tmp_path / "bin" / "qemu-nbd"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 0.3\nexec {real} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    began = time.monotonic()
    assert size_of(image, "-e", "8") == MIB
    assert time.monotonic() - began >= 0.3
