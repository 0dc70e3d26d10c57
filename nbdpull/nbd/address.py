"""How an NBD server is reached.

Owns: the kinds of addresses; a plain str is the path of a unix socket. Must not know: how a connection is made.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Union


class Tcp(NamedTuple):
    """A server that is reached by TCP.

    certificates: directory with ca-cert.pem and, if the server asks for them, client-cert.pem and client-key.pem; TLS
    is then required, and the server's certificate must be valid for `host`.
    """

    host: str
    port: int
    certificates: Optional[str] = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Kept(NamedTuple):
    """A server that has to hang up first.

    address: path of a unix socket, or a Tcp without certificates; keeper: a socket_keeper.SocketKeeper, or an object
    with its `keep` and `abandon`.
    """

    address: Union[str, Tcp]
    keeper: Any


Server = Union[str, Tcp]
Address = Union[Server, Kept]
