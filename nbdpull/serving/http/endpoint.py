"""Where HTTP is served: the address as it is written, and the certificates.

Owns: those, and that a missing cheroot is reported in one clear line. Must not know: how the server works (server.py),
paths, tokens, volumes.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable, Optional

from ...core import errors, unix_socket
from ...core.os_error import translated

_ADDRESS = re.compile(r"(?:\[([^]]+)\]|([^:]+)):(\d{1,5})")


@dataclass(frozen=True)
class Where:
    """Where to listen. path: of a unix socket, else host and port; port 0: any free one."""

    path: Optional[str] = None
    host: str = ""
    port: int = 0

    @property
    def is_local(self) -> bool:
        """Whether only this host can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False


@contextmanager
def secured(
    app: Callable[..., Any], option: str, listen: str, tls: Optional[str], client_ca: Optional[str]
) -> Iterator[str]:
    """Serve as `serving` does, but only where nobody on the way can read the traffic. UsageError.

    listen: the value of the option `option`; tls, client_ca: as in tls_context, None: without.
    """
    where = parse(listen, option)
    if tls is None and client_ca is not None:
        raise errors.UsageError("--client-ca is for TLS: use it with --tls DIR")
    if tls is None and not where.is_local:
        raise errors.UsageError(
            f"{option} {listen} can be reached from other machines, and without TLS anyone on the way could read the "
            "disks and the token: use --tls DIR, or listen on 127.0.0.1 or a unix socket"
        )
    with serving(app, where, tls_context(tls, client_ca) if tls is not None else None) as url:
        yield url


def parse(text: str, option: str = "--listen") -> Where:
    """Parse HOST:PORT, or unix:PATH. option: its name, for messages. UsageError."""
    if text.startswith("unix:"):
        path = os.path.abspath(text[len("unix:") :])
        if text == "unix:" or not unix_socket.fits(path):
            raise errors.UsageError(f"{option} {text}: give a path of at most {unix_socket.PATH_MAX} bytes")
        return Where(path=path)
    match = _ADDRESS.fullmatch(text)
    if not match or int(match[3]) > 65535 or not _can_be_a_host(match[1] or match[2]):
        raise errors.UsageError(f"{option} {text}: write HOST:PORT, an IPv6 address in brackets, or unix:PATH")
    return Where(host=match[1] or match[2], port=int(match[3]))


def _can_be_a_host(name: str) -> bool:
    try:
        return bool(name.encode("idna"))  # as a resolver does, whose error has no number
    except UnicodeError:
        return False


def tls_context(folder: str, client_ca: Optional[str]) -> ssl.SSLContext:
    """Return a context from server-cert.pem and server-key.pem in a folder. UsageError.

    client_ca: a file of CA certificates; clients must have a certificate of one of them.
    """

    def encrypted() -> str:  # OpenSSL would ask at the terminal
        raise errors.UsageError(
            f"--tls {folder}: server-key.pem is encrypted: openssl pkey writes it without a passphrase"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(
            os.path.join(folder, "server-cert.pem"), os.path.join(folder, "server-key.pem"), password=encrypted
        )
    except OSError as error:  # ssl.SSLError is one
        raise errors.UsageError(
            f"--tls {folder}: server-cert.pem and server-key.pem cannot be used: {error.strerror or error}"
        ) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise errors.UsageError(f"--client-ca {client_ca}: {error.strerror or error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextmanager
def serving(app: Callable[..., Any], where: Where, tls: Optional[ssl.SSLContext] = None) -> Iterator[str]:
    """Serve a WSGI application as long as the block lasts; yield the URL of its root. MissingSoftware, OutputError.

    The URL of a unix socket has localhost as its host.
    """
    try:
        from . import server
    except ImportError as error:
        raise errors.MissingSoftware(f"HTTP needs Python's cheroot: pip install 'nbdpull[http]' ({error})") from None
    if where.path and os.path.lexists(where.path):  # also if a server that was killed left it
        raise errors.OutputExists(f"socket {where.path} exists: remove it or choose another")
    made = server.Server(app, where.path or (where.host, where.port), tls)
    with translated("listen at", where.path or f"{where.host}:{where.port}"):
        made.begin()
    try:
        yield f"{'https' if tls else 'http'}://{_authority(where, made.port)}"
    finally:
        made.end()
        if where.path:
            with suppress(OSError):
                os.unlink(where.path)


def _authority(where: Where, port: int) -> str:
    if where.path:
        return "localhost"
    return f"[{where.host}]:{port}" if ":" in where.host else f"{where.host}:{port}"
