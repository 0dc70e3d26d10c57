"""The disks to measure on: made once, kept in the cache folder, and copied for each use.

Must not know: the tools. A disk of real files, because made-up bytes flatter or punish compression.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

from bed.guest import ext4_image

GIB = 1 << 30
SOURCES = ("/usr/lib", "/usr/share", "/usr/bin", "/opt", "/var/lib")


def real_files(cache, size, content):
    """Return a qcow2 of `size` bytes: an ext4 with about `content` bytes of this machine's own files."""
    image = Path(cache) / f"files-{size}-{content}.qcow2"
    if not image.exists():
        tree = image.with_suffix(".tree")
        shutil.rmtree(tree, ignore_errors=True)
        try:
            _gather(tree, content)
            draft = image.with_suffix(".draft.qcow2")
            ext4_image(draft, size, tree)
            draft.rename(image)
        finally:
            shutil.rmtree(tree, ignore_errors=True)
    return image


def _gather(tree, content):
    """Hard-link (or copy) files below a new tree until they hold `content` bytes."""
    total = 0
    for file in (file for source in SOURCES for file in _files(source)):
        if total >= content:
            return
        target = tree / file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _link_or_copy(file, target)
            total += file.stat().st_size
        except OSError:
            continue


def _files(source):
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink() and 0 < file.stat().st_size < 256 << 20:
                yield file


def _link_or_copy(file, target):
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def copy(image, to):
    """A private copy of an image; sparse, and as quick as the file system allows."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(image), str(to)], check=True)
    return Path(to)


def random_writes(size, count, length, seed=1):
    """qemu-io lines of `count` writes of `length` bytes at random places, each with a content of its own."""
    chooser = random.Random(seed)
    for place in sorted(chooser.sample(range(size // length), count)):
        yield f"write -q -P {chooser.randrange(1, 256)} {place * length} {length}"


def empty(path, size):
    """A new qcow2 without any data."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
    return path


def of_bytes(path, size, seed=1):
    """A new qcow2 full of random bytes, which nothing can compress."""
    raw = path.with_suffix(".raw")
    chooser = random.Random(seed)
    with open(raw, "wb") as file:
        for _ in range(size >> 20):
            file.write(chooser.randbytes(1 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
    raw.unlink()
    return path
