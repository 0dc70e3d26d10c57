"""What a libvirt URI says: which host it is for, whose VMs it shows, and how libvirt is reached.

Owns: the meaning of the parts of a URI. Must not know: connections.
"""

from __future__ import annotations

from typing import Optional
from urllib.parse import urlsplit


def is_remote(uri: str) -> bool:
    """Return whether paths there may be those of another machine. Any host counts: localhost may be the end of a
    tunnel."""
    return bool(urlsplit(uri).netloc)


def host(uri: str) -> str:
    return urlsplit(uri).hostname or "localhost"


def is_system(uri: str) -> bool:
    """Return whether it shows the VMs of the system."""
    return urlsplit(uri).path == "/system"


def is_session(uri: str) -> bool:
    """Return whether it shows the VMs of one user, whose QEMUs run as that user."""
    return urlsplit(uri).path == "/session"


def is_tls(uri: Optional[str]) -> bool:
    """Return whether a URI means TLS. libvirt also chooses TLS if a URI has a host and no transport."""
    parts = urlsplit(uri or "")
    return bool(parts.hostname) and parts.scheme.partition("+")[2] in ("", "tls")


def without_password(uri: str) -> str:
    """Return the URI without a password that a user put into it."""
    parts = urlsplit(uri)
    user, at, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=user.partition(":")[0] + at + place).geturl() if at else uri
