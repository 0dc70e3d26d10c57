"""What a libvirt host offers to every domain: its emulators, and where its firmware is.

Owns: how to ask libvirt for that. No program that a definition names is run for it: given an emulator's path, libvirt
would start it to find out what it supports. Must not know: what is done with the answer.
"""

from __future__ import annotations

import os
from typing import Any

from ..definitions import domain_xml
from ..definitions.host_reach import Offer
from .bindings import libvirt

DOING = "cannot ask libvirt for an emulator of the domain's architecture"  # for messages


def offer(connection: Any, xml: str) -> Offer:
    """Return the offer for the architecture and machine in a definition; libvirt's error if there is no emulator."""
    arch, machine, kind = domain_xml.platform(xml)[1:]
    try:
        capabilities = connection.getDomainCapabilities(None, arch, machine, kind, 0)
    except libvirt.libvirtError as error:
        if machine is None or error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        capabilities = connection.getDomainCapabilities(None, arch, None, kind, 0)  # the host does not know the machine
    emulator, loaders = domain_xml.offered(capabilities)
    emulators = {emulator, *domain_xml.emulators(connection.getCapabilities())}
    return Offer(frozenset(emulators), frozenset(map(os.path.dirname, loaders)))
