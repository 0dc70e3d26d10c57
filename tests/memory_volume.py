"""Volumes in memory, and a client of the HTTP application that needs no server."""

import io
import logging
import random
import urllib.parse
from contextlib import contextmanager

from nbdpull.core import errors
from nbdpull.serving.http import app, auth, data

TOKEN = "a-token-of-ours"
BLOCK = 512


class Memory:
    """A Volume in memory. kinds: one word per block: data, zero or clean."""

    def __init__(self, kinds, mode, seed=1, tail=0):
        self.name, self.mode, self.size = "vda", mode, len(kinds) * BLOCK - tail
        chance = random.Random(seed)
        self.content = b"".join(bytes(BLOCK) if kind == "zero" else chance.randbytes(BLOCK) for kind in kinds)[
            : self.size
        ]
        self.kinds, self._with_threads = kinds, chance.choice([False, True])
        self.fails_from = None

    def extents(self, start=0):
        for offset, length, kind in merged(self.kinds, start, self.size):
            if kind != "clean":
                yield offset, length, kind

    def read_into(self, offset, buffer):
        if self.fails_from is not None and offset + len(buffer) > self.fails_from:
            raise errors.SourceError("the disk cannot be read")
        buffer[:] = self.content[offset : offset + len(buffer)]

    def filling(self, offset, buffer):
        yield True
        self.read_into(offset, buffer)

    def pieces(self, begin, end):
        if self._with_threads:
            return data.by_threads(self.read_into, begin, end, threads=2)
        return data.in_two_steps(self.filling, begin, end)


def merged(kinds, start, stop):
    """Return [(offset, length, kind)] with neighbours of one kind merged; working byte by byte would give the same."""
    found = []
    for number in range(start // BLOCK, -(-stop // BLOCK)):
        first, last = max(start, number * BLOCK), min(stop, (number + 1) * BLOCK)
        if found and found[-1][2] == kinds[number]:
            found[-1] = (found[-1][0], found[-1][1] + last - first, kinds[number])
        elif first < last:
            found.append((first, last - first, kinds[number]))
    return found


def some(chance, mode, blocks=40):
    kinds = []
    while len(kinds) < blocks:
        kind = chance.choice(["data", "zero"] + (["clean"] if mode == "incremental" else []))
        kinds += [kind] * chance.randrange(1, 8)
    return Memory(kinds[:blocks], mode, chance.random(), tail=chance.randrange(BLOCK))


def client(*routes):
    """Return call(method, url, body=b"", **headers) -> (status, headers in lower case, body)."""
    asked = app.App(routes, auth.Token(TOKEN.encode()))

    def call(method, url, body=b"", token=TOKEN, **headers):
        path, _, query = url.partition("?")
        environ = {"REQUEST_METHOD": method, "PATH_INFO": urllib.parse.unquote_to_bytes(path).decode("latin-1"),
                   "QUERY_STRING": query, "wsgi.input": io.BytesIO(body)}  # fmt: skip
        environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
        if token is not None:
            environ["HTTP_X_KUBEVIRT_EXPORT_TOKEN"] = token
        begun = []
        pieces = asked(environ, lambda status, expected: begun.append((status, expected)))
        content = b"".join(bytes(piece) for piece in pieces)
        [(status, expected)] = begun
        return int(status[:3]), {name.lower(): value for name, value in expected}, content

    return call


@contextmanager
def heard(caplog):
    """Capture all log messages of nbdpull.http, whatever an earlier command line in this process has configured."""
    caplog.set_level(logging.DEBUG, "nbdpull.http")
    logging.getLogger("nbdpull.http").addHandler(caplog.handler)
    try:
        yield caplog
    finally:
        logging.getLogger("nbdpull.http").removeHandler(caplog.handler)
