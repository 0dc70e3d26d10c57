"""Why a domain that is off could not be started for a pull, and what to do about it.

Owns: what libvirt's error codes mean at a start, and how to see that the domain runs elsewhere. Must not know: how a
domain is started.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from ..core import errors
from ..images import guest_files
from . import libvirt_uri
from .bindings import libvirt

_DENIED = (libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_AUTH_FAILED)
_ADVICE = {
    libvirt.VIR_ERR_OPERATION_TIMEOUT: "another call holds it: try again later",
    libvirt.VIR_ERR_HOOK_SCRIPT_FAILED: "a hook of libvirt refused: see /etc/libvirt/hooks",
    libvirt.VIR_ERR_NO_NETWORK: "its network is not defined: see virsh net-list --all",
    libvirt.VIR_ERR_OPERATION_INVALID: "what it needs (a network, a storage pool) is not active: see virsh net-list "
                                       "--all and virsh pool-list --all",
    libvirt.VIR_ERR_NO_STORAGE_POOL: "its storage pool is not defined: see virsh pool-list --all",
    libvirt.VIR_ERR_NO_STORAGE_VOL: "a volume of it is gone: see virsh vol-list",
    libvirt.VIR_ERR_SYSTEM_ERROR: "a file or a device that its definition names cannot be used",
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: "its definition requires what this host does not have",
}  # fmt: skip
_OTHERWISE = "see its log in /var/log/libvirt/qemu"
_ELSEWHERE = "it seems to run elsewhere, on another host or without libvirt: pull it there, and do not start it here"


def failed(name: str, error: libvirt.libvirtError, images: Iterable[str], seconds: float) -> errors.NbdpullError:
    """Return our error for a failed start. images: the images of its disks that are files on this host."""
    code, says = error.get_error_code(), f"({' '.join(str(error).split())})"
    used = [image for image in images if _is_used(image, seconds)]
    if used or code == libvirt.VIR_ERR_RESOURCE_BUSY:
        lock = f"its image {used[0]} is in use" if used else "a lock on it is held"
        return errors.Busy(f"domain '{name}' is off here, but {lock}: {_ELSEWHERE} {says}")
    if code in _DENIED:
        return errors.AccessDenied(f"domain '{name}' is off, and you may not start it: run as root, or start it {says}")
    advice = _ADVICE.get(code, _OTHERWISE)
    return errors.StartFailed(f"domain '{name}' is off, and cannot be started paused for the pull: {advice} {says}")


def _is_used(image: str, seconds: float) -> bool:
    try:
        return guest_files.has_writer(image, seconds)
    except OSError:
        return False


def other_session(uri: str, environment: Any = os.environ) -> str:
    """Return why libvirt may have asked a daemon other than that of our session, as a sentence; "" if it has not.

    Without XDG_RUNTIME_DIR, as under cron, libvirt looks for the daemon in another folder and starts one there, which
    has the same definitions and shows all domains as off.
    """
    folder, is_ours = f"/run/user/{os.geteuid()}", libvirt_uri.is_session(uri) and not libvirt_uri.is_remote(uri)
    if not is_ours or environment.get("XDG_RUNTIME_DIR") or not os.path.isdir(folder):
        return ""
    return ("XDG_RUNTIME_DIR is not set, so libvirt asked another daemon than your session's, which shows running "
            f"domains as off: set it to {folder}")  # fmt: skip
