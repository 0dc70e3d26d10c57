"""The QEMU that runs a domain on this machine: its version, whichever version is installed now.

Owns: where libvirt records a QEMU's process id. Must not know: libvirt's API, what a version means.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Optional

_ANSWER = 10  # seconds
_VERSION = re.compile(r"version (\d+)\.(\d+)\.(\d+)")


def version(name: str, session: bool) -> Optional[tuple[int, ...]]:
    """Return the version of the running domain's own executable, even if an upgrade has replaced the file; None if
    unknown.

    libvirt reports the version of the installed emulator, and a QEMU may keep running for months after an upgrade.
    """
    try:
        with open(os.path.join(_folder(session), f"{name}.pid")) as file:
            program = f"/proc/{int(file.read())}/exe"
        answer = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer.stdout.decode(errors="replace"))
    return tuple(map(int, found.groups())) if found else None


def _folder(session: bool) -> str:
    if not session:
        return "/run/libvirt/qemu"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}", "libvirt/qemu/run")
