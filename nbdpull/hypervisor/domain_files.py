"""Files of a domain on this machine besides its disks: direct-boot files, firmware variables, emulated TPM state.

Owns: where libvirt keeps them, and the name of each in a point. Must not know: libvirt's API, the store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Optional

from ..definitions import definition, host_fit
from ..format import layout
from ..images import guest_files, image_header
from . import libvirt_uri

_SKIPPED = (".lock",)
LOOK_TIME = 10.0  # seconds

File = tuple[str, str]  # name in a point, path here


def found(xml: str, live: Optional[str], uuid: str, uri: str) -> tuple[list[File], list[str]]:
    """Return ([(name in a point, path), …], warnings) for a domain of this machine.

    live: the definition of the running domain, which may name more; None if it is off.
    """
    files = [(name, path) for name, path in definition.boot_files(xml).items()]
    path, problem = definition.variables(live or xml)
    path = path or (None if problem else _variables_by_default(xml, uri))
    files += [(layout.NVRAM, path)] if path else []
    states, trouble = _tpm_states(xml, uuid, uri)
    return files + states, [text for text in (problem, trouble) if text]


def _variables_by_default(xml: str, uri: str) -> Optional[str]:
    """Return libvirt's default path of the variables if the definition has no path until the domain runs.

    That is so for <os firmware='efi'> before libvirt 9.2. None if the domain has no variables there.
    """
    root = definition.parse(xml)
    path = variables_homes(definition.identity(xml)[0], uri)[0]
    return path if definition.has_variables(root) and os.path.lexists(path) else None


def variables_homes(name: str, uri: str) -> list[str]:
    """Return where libvirt itself creates the variables of a domain of that name, for each of the two formats."""
    return [os.path.join(_state_root(uri), "nvram", f"{name}_VARS{ending}") for ending in (".fd", ".qcow2")]


def _tpm_states(xml: str, uuid: str, uri: str) -> tuple[list[File], Optional[str]]:
    """Return ([(name in a point, path), …], warning or None)."""
    folder = definition.tpm_folder(xml)
    if folder is None:
        return [], None
    path = os.path.join(_tpm_root(uri), uuid, folder)
    try:
        names = sorted(name for name in os.listdir(path) if name not in _SKIPPED)
    except OSError as error:
        return [], f"the TPM's state in {path} is not in the point: {error.strerror}"
    return [(layout.TPM_PREFIX + name, os.path.join(path, name)) for name in names], None


def place_tpm(xml: str, uuid: str, uri: str, restored: Mapping[str, str]) -> list[str]:
    """Put {name in a point: path} of a TPM's state where libvirt looks for it; return warnings."""
    states = {name: path for name, path in restored.items() if name.startswith(layout.TPM_PREFIX)}
    folder = definition.tpm_folder(xml)
    if folder is None or not states:
        return []
    home = os.path.join(_tpm_root(uri), uuid, folder)
    if os.path.isdir(home) and os.listdir(home):
        return [f"{home} already has a TPM's state, which was kept; the point's is {', '.join(states.values())}"]
    try:
        os.makedirs(home, mode=0o711, exist_ok=True)
        for name, path in states.items():
            _copy(path, os.path.join(home, name[len(layout.TPM_PREFIX) :]))
    except OSError as error:
        return [f"the TPM's state could not be put into {home}: {error.strerror}; it is {', '.join(states.values())}"]
    return []  # libvirt gives the files to swtpm's user when it starts the domain


def look(path: str) -> str:
    """Return what exists at a path that a definition names, as a word of host_fit.

    What cannot be determined in time counts as a file; so does a path relative to a directory that only libvirt knows.
    """
    if not os.path.isabs(path):
        return host_fit.FILE
    try:
        head = guest_files.read_file(path, LOOK_TIME, image_header.DISC_SIZE)
    except (FileNotFoundError, NotADirectoryError):
        return host_fit.NOTHING
    except OSError:
        return host_fit.FILE
    return host_fit.DISC if image_header.is_disc(head) else host_fit.FILE


def _copy(source: str, target: str) -> None:
    """Copy a file, readable only by the owner from its first byte on."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(source, "rb") as original, open(descriptor, "wb") as copy:
        os.fchmod(descriptor, 0o600)
        shutil.copyfileobj(original, copy)


def _tpm_root(uri: str) -> str:
    return os.path.join(_config_root() if libvirt_uri.is_session(uri) else "/var/lib/libvirt", "swtpm")


def _state_root(uri: str) -> str:
    return _config_root() if libvirt_uri.is_session(uri) else "/var/lib/libvirt/qemu"


def _config_root() -> str:
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(config, "libvirt/qemu")
