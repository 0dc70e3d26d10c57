"""Images that QEMU encrypts (LUKS), made once and kept: each takes QEMU some seconds, whatever its size."""

import os
import subprocess
import tempfile
import uuid
from pathlib import Path

from bed import BedError
from bed.libvirtd import cache_folder

MIB = 1 << 20
PASSPHRASE = "correct horse"
PATTERN = 0x07  # what the disk in it is full of
SIZE = 4 * MIB  # of that disk


def encrypted_image(path, kind="luks"):
    """Make `path` an image of SIZE bytes; kind: "luks", which is raw inside, or "qcow2". Return its path as text."""
    kept = cache_folder() / f"encrypted-{SIZE}.{kind}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = Path(folder) / "image"
            _make(made, kind)
            os.replace(made, kept)
    subprocess.run(["cp", "--sparse=always", kept, path], check=True)
    return str(path)


def image_options(path, kind):
    """Return the image option with which a QEMU program opens such an image; the id of its secret is "s"."""
    inner = "encrypt.key-secret" if kind == "qcow2" else "key-secret"
    return ["--image-opts", f"driver={kind},{inner}=s,file.filename={path}"]


def secret_options(key):
    return ["--object", f"secret,id=s,file={str(key).replace(',', ',,')}"]


def define_secret(bed, passphrase=PASSPHRASE):
    """Define a secret in libvirt; return the <encryption> of a disk that uses it."""
    name = str(uuid.uuid4())
    usage = f"<usage type='volume'><volume>/{name}</volume></usage>"
    about = f"<secret ephemeral='yes' private='no'><uuid>{name}</uuid>{usage}</secret>"
    bed.connection().secretDefineXML(about).setValue(passphrase.encode())
    return f"<encryption format='luks'><secret type='passphrase' uuid='{name}'/></encryption>"


def content(path, kind, key):
    """Return all bytes of the disk in an image, read with the secret in the file `key`."""
    raw = f"{path}.as-raw"
    words = ["qemu-img", "convert", "-U", *secret_options(key), *image_options(path, kind), "-O", "raw", raw]
    subprocess.run(list(map(str, words)), check=True)
    return Path(raw).read_bytes()


def _make(path, kind):
    key = path.with_name("key")
    key.write_text(PASSPHRASE)
    within = "encrypt." if kind == "qcow2" else ""
    options = ["encrypt.format=luks"] if kind == "qcow2" else []
    options += [f"{within}key-secret=s", f"{within}iter-time=10"]
    words = ["qemu-img", "create", "-q", "-f", kind, *secret_options(key), "-o", ",".join(options), path, str(SIZE)]
    # It measures how fast it is by the CPU time of some ten milliseconds. A kernel that counts that by ticks reports
    # none, now and then, and QEMU gives up: that has nothing to do with the image.
    while (done := subprocess.run(words, capture_output=True, text=True)).returncode:
        if "CPU usage" not in done.stderr:
            raise BedError(f"{words}: {done.stderr}")
    fill = ["-c", f"write -q -P {PATTERN} 0 {SIZE}"]
    subprocess.run(["qemu-io", *secret_options(key), *image_options(path, kind), *fill], check=True)
