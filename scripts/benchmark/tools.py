"""The tools that are compared, as command lines. Must not know: disks, or what is measured."""

import os
import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def nbdpull(*arguments):
    return [sys.executable, "-m", "nbdpull", *arguments]


def to_nothing(*arguments):
    """Return the command of a backup that is dropped: see to_nothing.py."""
    return [sys.executable, PROJECT / "scripts" / "benchmark" / "to_nothing.py", *arguments]


def environment():
    """Return an environment in which the commands find the project's own package, with compiled modules as if it were
    installed."""
    return {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": ""}


def has_peer():
    return shutil.which("virtnbdbackup") is not None


def peer_backup(vm, level, folder):
    """Return the command of virtnbdbackup with its own compression."""
    return ["virtnbdbackup", "-U", vm.bed.uri, "-d", vm.name, "-l", level, "-o", folder, "-z", "-n"]


def peer_restore(uri, folder, output):
    return ["virtnbdrestore", "-U", uri, "-i", folder, "-o", output, "-n", "-L", f"{output}.log"]


def synced_copy(file, to):
    return ["dd", "if=" + str(file), "of=" + str(to), "bs=1M", "conv=fsync", "status=none"]


def export_uri(socket, export):
    return f"nbd+unix:///{export}?socket={socket}"


def nbdcopy_to_null(uri):
    return ["nbdcopy", uri, "null:"]


def nbdcopy_zstd(uri, output):
    return ["sh", "-c", f"nbdcopy '{uri}' - | zstd -q -1 -T0 -o {output}"]


def qemu_img_zstd(uri, output):
    return ["qemu-img", "convert", "-c", "-W", "-m", "16", "-O", "qcow2", "-o", "compression_type=zstd", uri, output]


def nbdinfo_map(uri, context):
    return ["nbdinfo", f"--map={context}", uri]
