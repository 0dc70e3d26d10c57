"""The addresses of servers: a port that nothing else uses, and whether something listens there. Knows no server."""

import socket

_reserved = []


def free_port():
    """Return a TCP port of 127.0.0.1 for a new server: the kernel assigns it to nobody else while this process lives.

    A socket remains bound to it. The server's socket can be bound to it, too, and listen: servers set SO_REUSEADDR.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _reserved.append(holder)
    return holder.getsockname()[1]


def is_listening(address):
    """Return whether a connection is accepted. address: the path of a Unix socket, or a port of 127.0.0.1."""
    unix = not isinstance(address, int)
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as client:
        return client.connect_ex(str(address) if unix else ("127.0.0.1", address)) == 0
