"""Images as programs other than nbdpull make, open, serve and read them: QEMU's programs, and loop devices."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs block devices: run as root")


@contextlib.contextmanager
def used_by_qemu(image, *words):
    """Have a QEMU keep the image open until the end of the block."""
    command = ["qemu-io", "-f", image.suffix[1:], *words, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        process.stdin.write(b"length\n")
        assert b"1 MiB" in process.stdout.readline()
        yield
        process.stdin.close()


@contextlib.contextmanager
def exported(path, kind="raw", *options):
    """Give the URI of an image that qemu-nbd serves inside the block."""
    socket = f"{path}.sock"
    server = subprocess.Popen(["qemu-nbd", "-f", kind, "-t", "-e", "8", "-k", socket, *options, path])
    try:
        while subprocess.run(["nbdinfo", "--size", f"nbd+unix:///?socket={socket}"], capture_output=True).returncode:
            assert server.poll() is None
        yield f"nbd+unix:///?socket={socket}"
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def loop_device(path):
    done = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop devices: {done.stderr}")
    try:
        yield done.stdout.strip()
    finally:
        subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


def old_data(path, size, kind="raw"):
    """Make an image full of data that must be gone in the end."""
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(size)], check=True)
    subprocess.run(["qemu-io", "-f", kind, "-c", f"write -q -P 0xee 0 {size}", path], check=True)
    return str(path)


def raw_of(path, kind):
    if kind == "raw":
        return Path(path).read_bytes()
    subprocess.run(["qemu-img", "check", "-q", "-f", kind, path], check=True)
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "raw", path, f"{path}.as-raw"], check=True)
    return Path(f"{path}.as-raw").read_bytes()
