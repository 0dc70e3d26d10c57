"""How to name an image to QEMU's programs, and the calls of qemu-img.

Owns: the translation of qemu-img's errors into ours, and how a program gets access to an encrypted image: it is given
the path of the file with the secret, and reads that itself. Must not know: what an image is for.
"""

from __future__ import annotations

import json
import subprocess
from typing import Optional

from ..core import errors, software

SECTOR = 512  # bytes: an encrypted image consists of whole sectors
# qemu-img measures how fast a passphrase can be tried by the CPU time of some ten milliseconds. A kernel that counts
# CPU time in ticks reports none in one case out of ten, and qemu-img gives up; another attempt may succeed.
CREATE_TRIES, _NO_CLOCK = 12, "CPU usage"
_ID = "secret0"
_KEY = f"key-secret={_ID}"


def run(path: str, *words: str) -> str:
    """Run qemu-img; return its output. path: of the image, for messages. Busy, OutputError."""
    software.require("qemu-img", "new images without options, and raw ones, can be restored without it")
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())
        if "lock" in said:
            raise errors.Busy(f"{path} is in use, probably by a running VM: shut it down first ({said})")
        raise errors.OutputError(f"qemu-img failed: {said}")
    return done.stdout


def create(path: str, size: int, *options: str) -> None:
    """Create a qcow2 image of `size` bytes; options: arguments of qemu-img."""
    run(path, "create", "-q", "-f", "qcow2", *options, path, str(size))


def create_encrypted(path: str, size: int, kind: str, secret: str, options: str = "") -> str:
    """Create an image encrypted with LUKS. kind: "qcow2", or "raw" inside LUKS; options: further ones, as for -o."""
    within = "encrypt." if kind == "qcow2" else ""
    wanted = [options] if options else []
    wanted += ["encrypt.format=luks"] if within else []
    words = ["create", "-q", *_secret(secret), "-f", _driver(kind), "-o", ",".join([*wanted, f"{within}{_KEY}"])]
    for _ in range(CREATE_TRIES):
        try:
            return run(path, *words, path, str(-(-size // SECTOR) * SECTOR))
        except errors.OutputError as error:
            if _NO_CLOCK not in str(error):
                raise
            failed = error
    raise failed


def named(path: str, kind: str, secret: Optional[str] = None, device: bool = False) -> list[str]:
    """Return the arguments that open an image; secret: path of a file with the secret of an encrypted one."""
    if secret is None:
        return ["-f", kind, path]
    driver, protocol = _driver(kind), "host_device" if device else "file"
    key = f"encrypt.{_KEY}" if driver == "qcow2" else _KEY
    options = f"driver={driver},{key},file.driver={protocol},file.filename={_escaped(path)}"
    return [*_secret(secret), "--image-opts", options]


def virtual_size(path: str, kind: str, secret: Optional[str] = None, device: bool = False) -> int:
    """Return the bytes of the disk in an image."""
    size: int = json.loads(run(path, "info", "--output=json", *named(path, kind, secret, device)))["virtual-size"]
    return size


def grow(path: str, kind: str, size: int, secret: Optional[str] = None) -> None:
    run(path, "resize", "-q", *named(path, kind, secret), str(size))


def _driver(kind: str) -> str:
    return "luks" if kind == "raw" else kind


def _secret(path: str) -> list[str]:
    return ["--object", f"secret,id={_ID},file={_escaped(path)}"]


def _escaped(text: str) -> str:
    """Escape a value in a list of options."""
    return text.replace(",", ",,")
