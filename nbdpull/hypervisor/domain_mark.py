"""A tag on a running domain: what a process of ours started on it and must end. It vanishes when QEMU ends.

Owns: the marks in libvirt's live metadata. Must not know: what was started, and how to end it.
"""

import contextlib
import xml.etree.ElementTree as ET
from dataclasses import asdict, fields
from typing import Any, Optional

from ..core import process
from ..core.process import Process
from .bindings import libvirt

STARTED_PAUSED, FREEZING = "started-paused", "freezing"

_ELEMENT, _LIVE = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
_NONE = (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_OPERATION_INVALID)


def uri(what: str) -> str:
    """Return the XML namespace of a tag."""
    return f"urn:nbdpull:{what}"


def put(dom: Any, what: str, pid: Optional[int] = None) -> Process:
    """Tag the domain for a process, None = this one; return what `owner` then returns."""
    owner = process.of(pid)
    attributes = {name: str(value) for name, value in asdict(owner).items()}
    mark = ET.tostring(ET.Element("started", attributes), encoding="unicode")
    dom.setMetadata(_ELEMENT, mark, "nbdpull", uri(what), _LIVE)
    return owner


def remove(dom: Any, what: str) -> None:
    """Remove the tag, whoever put it there."""
    dom.setMetadata(_ELEMENT, None, None, uri(what), _LIVE)


def owner(dom: Any, what: str) -> Optional[Process]:
    """Return the process that put the tag there, None if there is no tag."""
    try:
        return _process(ET.fromstring(dom.metadata(_ELEMENT, uri(what), _LIVE)))
    except libvirt.libvirtError as error:
        if error.get_error_code() in _NONE:
            return None
        raise


def _process(mark: ET.Element) -> Process:
    """Return the process in a tag; if the tag has another form, a process of an unknown machine."""
    values = [mark.get(field.name, "") for field in fields(Process)]
    with contextlib.suppress(ValueError):
        return Process(int(values[0]), int(values[1]), *values[2:])
    return Process(host=mark.get("by", ""))
