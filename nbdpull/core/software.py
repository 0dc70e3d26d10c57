"""Other programs that nbdpull runs: whether they are installed, and which package to install if not.

Owns: which packages contain a program, on the supported distributions, and the error if it is missing. Must not know:
what it is used for.
"""

from __future__ import annotations

import shutil
from typing import Optional

from . import errors

_QEMU_IMG = "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)"
PACKAGES = {
    "qemu-img": _QEMU_IMG,
    "qemu-nbd": _QEMU_IMG,
    "qemu-storage-daemon": "qemu-utils (Debian 13), qemu-system-common (Debian 12, Ubuntu) or qemu-img (Fedora, RHEL)",
    "age": "age (Debian, Ubuntu, Fedora, EPEL)",
    "nbdkit": "nbdkit and nbdkit-plugin-python (Debian, Ubuntu) or nbdkit-python-plugin (Fedora, RHEL)",
}


def require(program: str, otherwise: str = "") -> None:
    """Raise MissingSoftware if it is not installed. otherwise: how to do without it."""
    if shutil.which(program) is None:
        raise missing(program, otherwise=otherwise)


def missing(program: str, what: Optional[str] = None, otherwise: str = "") -> errors.MissingSoftware:
    """Return the error for a missing program, or for the missing part of it that `what` names."""
    problem = f"{what or f'{program} is not installed'}: install {PACKAGES[program]}"
    return errors.MissingSoftware(f"{problem}; {otherwise}" if otherwise else problem)
