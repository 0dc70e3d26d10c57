"""A transient domain that lives as long as a `with` block: boot it, ask its agent, look at its screen.

Owns: the libvirt calls of a drill. The domain ends with our connection, whatever becomes of this process. Must not
know: what the domain is for, where its disks come from, XML.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager, suppress
from typing import Any, Optional

from nbdpull import errors

try:
    import libvirt
    import libvirt_qemu
except ImportError as error:
    raise errors.MissingSoftware(
        "the Python bindings of libvirt are not installed: install python3-libvirt (Debian, Fedora) and run the "
        "distribution's python3, or libvirt-python (PyPI)"
    ) from error

PING = '{"execute":"guest-ping"}'
PING_TIMEOUT = 2  # seconds
_DENIED = (libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_OPERATION_DENIED)


@contextmanager
def connected(uri: Optional[str]):
    """A libvirt connection; uri None is libvirt's own default."""
    libvirt.registerErrorHandler(operator.is_, None)  # libvirt would print every error as well
    with _translated(f"cannot connect to libvirt at {uri or 'its default URI'}"):
        connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        with suppress(libvirt.libvirtError):
            connection.close()


@contextmanager
def booted(connection, xml: str):
    """A Boot of the domain that the XML defines; it is destroyed at the end."""
    with _translated("libvirt does not start the drill's domain"):
        domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
    try:
        yield Boot(connection, domain)
    finally:
        with suppress(libvirt.libvirtError):
            domain.destroy()


class Boot:
    """A running transient domain."""

    def __init__(self, connection: Any, domain: Any):
        self._connection, self._domain = connection, domain

    @property
    def active(self) -> bool:
        try:
            return bool(self._domain.isActive())
        except libvirt.libvirtError:
            return False  # a transient one is gone when it ends

    def agent_answers(self) -> bool:
        try:
            return libvirt_qemu.qemuAgentCommand(self._domain, PING, PING_TIMEOUT, 0) is not None
        except libvirt.libvirtError:
            return False

    def screenshot(self) -> Optional[tuple[str, bytes]]:
        """(kind, picture), kind being png or ppm; None where there is no display to look at."""
        parts: list[bytes] = []
        try:
            stream = self._connection.newStream()
            kind = self._domain.screenshot(stream, 0)
            stream.recvAll(lambda _stream, data, _opaque: parts.append(data), None)
            stream.finish()
        except libvirt.libvirtError:
            return None
        return ("png" if kind == "image/png" else "ppm"), b"".join(parts)


@contextmanager
def _translated(doing: str):
    try:
        yield
    except libvirt.libvirtError as error:
        text = " ".join(str(error).split())
        if error.get_error_code() in _DENIED:
            raise errors.AccessDenied(f"{doing}: permission denied: run as root or in the group libvirt") from error
        raise errors.HypervisorError(f"{doing} ({text})") from error
