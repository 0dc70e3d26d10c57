"""A transient domain that exists as long as a `with` block: boot it, ask its agent, take a screenshot.

Owns: the libvirt calls of a drill. The domain ends with our connection, whatever happens to this process. Must not
know: what the domain is for, where its disks come from, XML.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Optional

from ..definitions import domain_xml
from ..definitions.host_reach import Offer
from . import domain_offer, libvirt_uri
from .bindings import libvirt, libvirt_qemu
from .connection import connecting
from .libvirt_error import translated, unless

log = logging.getLogger("nbdpull.libvirt")
PING = '{"execute":"guest-ping"}'
PING_TIMEOUT = 2  # seconds
# Not up yet, or no longer; 97 AGENT_UNSYNCED, 112 AGENT_COMMAND_TIMEOUT, and errors from the agent itself.
_NO_ANSWER = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, 97, 112, libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_NO_DOMAIN,
              libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_TIMEOUT)  # fmt: skip


@contextmanager
def connected(uri: Optional[str]) -> Iterator[Any]:
    """Yield a libvirt connection; uri None is libvirt's default."""
    with connecting(uri):  # not wrapped: a domain that ends with its connection must not be created again
        connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        with suppress(libvirt.libvirtError):
            connection.close()


def offer(connection: Any, xml: str) -> Offer:
    """Return what the host offers to a domain of this architecture and machine."""
    with translated(domain_offer.DOING):
        return domain_offer.offer(connection, xml)


def qemu_user(connection: Any) -> Optional[int]:
    """Return the ID of the user that QEMU runs as there; None if unknown."""
    with translated("cannot ask libvirt for QEMU's user"):
        user = domain_xml.qemu_user(connection.getCapabilities())
        is_ours = libvirt_uri.is_session(connection.getURI())  # a session's libvirt has only its own user
    return os.geteuid() if is_ours else user


@contextmanager
def booted(connection: Any, xml: str) -> Iterator[Boot]:
    """Yield a Boot of the domain that the XML defines, and destroy it at the end."""
    with translated("libvirt does not start the drill's domain"):
        began = time.monotonic()
        dom = connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
        log.info("createXML (%.3f s)", time.monotonic() - began)
    try:
        yield Boot(connection, dom)
    finally:
        with suppress(libvirt.libvirtError):  # it ends with the connection anyway
            dom.destroy()
            log.info("destroy")


class Boot:
    """A running transient domain."""

    def __init__(self, connection: Any, dom: Any):
        self._connection, self._dom = connection, dom

    @property
    def active(self) -> bool:
        """Whether it exists: a transient domain is gone when it ends."""
        with translated("cannot check whether the drill's domain runs"):
            return bool(unless((libvirt.VIR_ERR_NO_DOMAIN,), self._dom.isActive))

    def agent_answers(self) -> bool:
        with translated("cannot ask the guest agent"):
            return unless(_NO_ANSWER, self._ping) is not None

    def _ping(self) -> Any:
        return libvirt_qemu.qemuAgentCommand(self._dom, PING, PING_TIMEOUT, 0)

    def screenshot(self) -> Optional[tuple[str, bytes]]:
        """Return (kind, picture); kind is png or ppm. None if there is no display."""
        parts: list[bytes] = []
        try:
            stream = self._connection.newStream()
            kind = self._dom.screenshot(stream, 0)
            stream.recvAll(lambda _stream, data, _opaque: parts.append(data), None)
            stream.finish()
        except libvirt.libvirtError:
            return None
        return ("png" if kind == "image/png" else "ppm"), b"".join(parts)
