"""Where servers are reached: a port that nobody else is given, and whether somebody listens. Knows no server."""

import socket

_reserved = []


def free_port():
    """A TCP port of 127.0.0.1 for a server to be started: the kernel gives it to nobody else while this process lives.

    A socket stays bound to it. That of a server may be bound to it, too, and listen: servers set SO_REUSEADDR.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _reserved.append(holder)
    return holder.getsockname()[1]


def is_listening(address):
    """Whether a connection is taken. address: the path of a unix socket, or a port of 127.0.0.1."""
    unix = not isinstance(address, int)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as client:
        return client.connect_ex(str(address) if unix else ("127.0.0.1", address)) == 0
