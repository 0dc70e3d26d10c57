"""How to reach libvirt: opens a connection, and finds a domain by name.

Owns: the messages when either fails. Must not know: what a connection is for. domain_link owns its deadlines.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

from ..core import errors
from ..core.choices import STALL_TIMEOUT
from ..core.errors import Check
from . import domain_link, libvirt_uri
from .bindings import libvirt
from .libvirt_error import DENIED, UNREACHABLE, translated

_CERTIFICATES = ("check that libvirt listens there with TLS, and that both sides accept each other's certificates: the "
                 "CA's, the client's, and the server's with its host name")  # fmt: skip


class Host(NamedTuple):
    """A libvirt that answers: its versions, and the names of its domains."""

    uri: str
    is_remote: bool
    versions: dict[str, str]
    names: list[str]


@contextlib.contextmanager
def host(uri: Optional[str] = None) -> Iterator[Host]:
    """Yield what a libvirt reports about itself. AccessDenied, HypervisorError."""
    with connected(uri) as connection, translated("cannot query libvirt"):
        here = connection.getURI()
        versions = {"libvirt": dotted(connection.getLibVersion()), "qemu": dotted(connection.getVersion())}
        names = sorted(each.name() for each in connection.listAllDomains())
        yield Host(here, libvirt_uri.is_remote(here), versions, names)


@contextlib.contextmanager
def connected(uri: Optional[str] = None, stall_timeout: float = STALL_TIMEOUT) -> Iterator[Any]:
    """Yield a connection to libvirt with deadlines, as `domain.open` uses it."""
    with linked(uri, stall_timeout) as link:
        yield link.connection()


@contextlib.contextmanager
def linked(uri: Optional[str], stall_timeout: float, check: Check = lambda: None) -> Iterator[domain_link.Link]:
    """Yield a Link to libvirt, and close it after the block. AccessDenied, HypervisorError, NoAnswer."""
    with connecting(uri):
        link = domain_link.Link(uri, stall_timeout, check)
    try:
        yield link
    finally:
        with contextlib.suppress(libvirt.libvirtError, errors.HypervisorError):
            link.close()


@contextlib.contextmanager
def connecting(uri: Optional[str]) -> Iterator[None]:
    """Translate errors of opening a connection into ours. AccessDenied, HypervisorError, NoAnswer."""
    # Every error arrives as an exception; libvirt would print it on stderr as well. The handler must not be Python
    # code: a signal's exception raised in a Python handler, inside the C call, would become a SystemError.
    libvirt.registerErrorHandler(operator.is_, None)
    otherwise, denied = UNREACHABLE, DENIED
    if libvirt_uri.is_tls(uri):
        otherwise, denied = (errors.HypervisorError, _CERTIFICATES), (errors.AccessDenied, _CERTIFICATES)
    doing = f"cannot connect to libvirt at {uri or 'its default URI'}"
    try:
        with translated(doing, otherwise, denied):
            yield
    except errors.NoAnswer as error:
        raise errors.NoAnswer(f"{doing}: {error}") from None


def look_up(connection: Any, name: str) -> Any:
    """Return the virDomain of that name. NoSuchDomain lists those that exist."""
    with translated(f"cannot look up domain '{name}'"):
        try:
            return connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
        names = sorted(each.name() for each in connection.listAllDomains())
        uri = connection.getURI()
        hint = "; VMs of the system are at -c qemu:///system" if uri == "qemu:///session" else ""
        raise errors.NoSuchDomain(f"no domain '{name}' at {uri}; it has {_some(names)}{hint}")


def _some(names: Sequence[str], most: int = 10) -> str:
    """Return as many of the names as fit in a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def dotted(version: int) -> str:
    """Format libvirt's version number as "9.0.0"."""
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
