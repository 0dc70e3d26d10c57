"""A whole backup whose bytes are dropped, as a program: by the API with a sink that drops them, or by `pull`.

`to_nothing.py api DOMAIN URI`, or `to_nothing.py pull` and the arguments of nbdpull. The pull neither digests nor
compresses, and so stores empty frames, in a store that cannot be used: it does only what the API does, too. Must not
know: what is measured.
"""

import sys

import nbdpull


class Dropped:
    """A sink, which is also that of each of its disks."""

    size = 0

    def open(self, disk):
        return self

    def data(self, offset, view):
        self.size += len(view)

    def zero(self, offset, length):
        pass

    def close(self):
        pass

    def commit(self, token):
        pass

    def abort(self):
        pass


def api(domain, uri):
    sink = Dropped()
    nbdpull.backup(nbdpull.Options(domain, uri=uri, checkpoint=False), sink)
    return 0 if sink.size else "nothing was read"


class NoDigest:
    def __init__(self, data):
        pass

    def digest(self):
        return bytes(32)


def pull(*arguments):
    from nbdpull.cli import main
    from nbdpull.format import writer

    writer.blake3 = NoDigest
    writer.Encoder._compressed = lambda self, buffer, level: (b"", level)
    return main.main(["pull", *arguments])


if __name__ == "__main__":
    sys.exit({"api": api, "pull": pull}[sys.argv[1]](*sys.argv[2:]))
