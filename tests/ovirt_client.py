"""The real client of ovirt-imageio, which scripts/install --test installs."""

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "ovirt-imageio"


def module():
    """Return the module of the client; skip the test if the client is not installed."""
    if not FOLDER.is_dir():
        pytest.skip("no client of ovirt-imageio: scripts/install --test brings it")
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    # Compiled code, which the client needs only for checksums and local files: it accesses images over NBD.
    sys.modules.setdefault("ovirt_imageio._internal.ioutil", types.ModuleType("ioutil"))
    return importlib.import_module("ovirt_imageio.client")


def downloaded(url, path, cafile, base=None):
    """Return the bytes of an image that the client downloads; base: an earlier download, to fetch only the changes
    since."""
    module().download(url, str(path), cafile, incremental=base is not None,
                      backing_file=base and str(base), backing_format=base and "qcow2")  # fmt: skip
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()
