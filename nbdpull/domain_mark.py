"""A mark on a running domain: what a process of ours began with it and has to end. It goes when QEMU ends.

Owns: the marks in libvirt's live metadata, and whether the process of a mark is alive. Must not know: what is begun,
and how it is ended.
"""

import os
import socket
import xml.etree.ElementTree as ET
from typing import Any, Optional

import libvirt

STARTED_PAUSED, FREEZING = "started-paused", "freezing"

_ELEMENT, _LIVE = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
_NONE = (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_OPERATION_INVALID)


def uri(what: str) -> str:
    """The XML namespace of a mark."""
    return f"urn:nbdpull:{what}"


def put(dom: Any, what: str, pid: Optional[int] = None) -> str:
    """Mark it as of a process, None = this one; return what `owner` then tells."""
    pid = pid or os.getpid()
    token = f"{pid}-{_began(pid)}-{socket.gethostname()}"
    mark = ET.tostring(ET.Element("started", by=token), encoding="unicode")
    dom.setMetadata(_ELEMENT, mark, "nbdpull", uri(what), _LIVE)
    return token


def remove(dom: Any, what: str) -> None:
    dom.setMetadata(_ELEMENT, None, None, uri(what), _LIVE)


def owner(dom: Any, what: str) -> Optional[str]:
    """The process that put the mark, None where there is none."""
    try:
        return ET.fromstring(dom.metadata(_ELEMENT, uri(what), _LIVE)).get("by")
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NONE:
            return None
        raise


def is_alive(token: str) -> bool:
    """Whether that process runs; in doubt, as on another machine, it does."""
    pid, began, host = token.split("-", 2)
    return host != socket.gethostname() or _began(int(pid)) == began


def _began(pid: int) -> Optional[str]:
    """When a process began, in the kernel's ticks; None where there is none, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            found = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if found[0] == "Z" else found[19]
