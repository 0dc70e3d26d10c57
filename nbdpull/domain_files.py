"""What belongs to a domain on this machine besides its disks: direct-boot files, and the state of an emulated TPM.

Owns: where libvirt keeps them, and under which name each is in a point. Must not know: libvirt's API, the store.
"""

from __future__ import annotations

import os
import shutil
from urllib.parse import urlsplit

from . import definition, format

_SKIPPED = (".lock",)


def found(xml, uuid, uri):
    """Return ([(name in a point, path), …], warnings) for a domain that runs here."""
    files = [(name, path) for name, path in definition.boot_files(xml).items()]
    folder = definition.tpm_folder(xml)
    if folder is None:
        return files, []
    path = os.path.join(_tpm_root(uri), uuid, folder)
    try:
        names = sorted(name for name in os.listdir(path) if name not in _SKIPPED)
    except OSError as error:
        return files, [f"the TPM's state in {path} is not in the point: {error.strerror}"]
    return files + [(format.TPM_PREFIX + name, os.path.join(path, name)) for name in names], []


def place_tpm(xml, uuid, uri, restored):
    """Put {name in a point: path} of a TPM's state where libvirt looks for it; return warnings."""
    states = {name: path for name, path in restored.items() if name.startswith(format.TPM_PREFIX)}
    folder = definition.tpm_folder(xml)
    if folder is None or not states:
        return []
    home = os.path.join(_tpm_root(uri), uuid, folder)
    if os.path.isdir(home) and os.listdir(home):
        return [f"{home} holds a TPM's state already and is left alone; the point's is {', '.join(states.values())}"]
    try:
        os.makedirs(home, mode=0o711, exist_ok=True)
        for name, path in states.items():
            _copy(path, os.path.join(home, name[len(format.TPM_PREFIX) :]))
    except OSError as error:
        return [f"the TPM's state could not be put into {home}: {error.strerror}; it is {', '.join(states.values())}"]
    return []  # libvirt gives the files to swtpm's user when it starts the domain


def _copy(source, target):
    """For the owner alone from its first byte on."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(source, "rb") as original, open(descriptor, "wb") as copy:
        os.fchmod(descriptor, 0o600)
        shutil.copyfileobj(original, copy)


def _tpm_root(uri):
    if urlsplit(uri).path == "/session":
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        return os.path.join(config, "libvirt/qemu/swtpm")
    return "/var/lib/libvirt/swtpm"
