"""QEMU's programs for images: is one installed, and what qemu-img is asked to do.

Owns: qemu-img's words and its errors, which become ours here. Must not know: what an image is for.
"""

from __future__ import annotations

import json
import shutil
import subprocess

from . import errors


def require(program):
    """MissingSoftware where it is not installed."""
    if shutil.which(program) is None:
        raise errors.MissingSoftware(
            f"{program} is not installed: install qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL); new images "
            "without options, and raw ones, can be restored without it"
        )


def run(path, *words):
    """What qemu-img prints; path: of the image, for messages. Busy, OutputError."""
    require("qemu-img")
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())
        if "lock" in said:
            raise errors.Busy(f"{path} is in use, by a running VM it seems: shut it down first ({said})")
        raise errors.OutputError(f"qemu-img failed: {said}")
    return done.stdout


def create(path, size, *options):
    """Make a qcow2 image of `size` bytes; options: words of qemu-img."""
    run(path, "create", "-q", "-f", "qcow2", *options, path, str(size))


def virtual_size(path, kind):
    """Bytes of the disk in an image."""
    return json.loads(run(path, "info", "--output=json", "-f", kind, path))["virtual-size"]


def grow(path, kind, size):
    run(path, "resize", "-q", "-f", kind, path, str(size))
