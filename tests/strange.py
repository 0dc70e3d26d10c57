"""Invalid content of a store: kinds of files, documents, frames. No reader accepts any of it."""

import hashlib
import os
import random
import socket
import stat

import zstandard
from stores import flipped

from nbdpull.format import layout


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        before = os.getcwd()
        os.chdir(path.parent)  # a path of a socket must be short
        try:
            one.bind(path.name)
        finally:
            os.chdir(before)


FILES = {
    "link": lambda path: path.symlink_to(path.parent / "elsewhere"),
    "dangling link": lambda path: path.symlink_to("/nonexistent/x"),
    "link to itself": lambda path: path.symlink_to(path),
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "folder": os.mkdir,
}
if os.geteuid() == 0:
    FILES["device"] = lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero


def resealed(text):
    """Return a document with a correct seal from any text in place of JSON."""
    blank = text.encode("utf-8", "surrogatepass") + b',\n "digest": "%s"\n}\n'
    digest = hashlib.sha256(blank % (b"0" * 64)).hexdigest().encode()
    return blank % digest


JSON = [  # more members, of which a reader must refuse each
    '"a": 1, "a": 2',
    '"a": {"b": 1, "b": 1}',
    '"format": "nbdpull/2"',
    '"a": NaN',
    '"a": Infinity',
    '"a": [-Infinity]',
    '"a": 1e400',
    '"a": 18446744073709551616',
    f'"a": {"9" * 1_000_000}',
    f'"a": 0.{"9" * 1_000_000}',
    r'"a": "\ud800"',
    r'"\udc80": 1',
    r'"a": "\udc80\ud800"',
    '"a": "\ud800"',  # as bytes that are not UTF-8
    '"a": "\x1b"',  # a control character that is not escaped
    f'"a": {"[" * 100_000}{"]" * 100_000}',
    '"a": ' + '{"a":' * 100_000 + "1" + "}" * 100_000,
    '"a": 1}, {"b": 2',
]


def compressed(data):
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


DICTIONARY = zstandard.train_dictionary(2000, [random.Random(n).randbytes(500) + b"abc" * 50 for n in range(200)])

SKIPPABLE = layout.skippable(layout.HEADER_MAGIC, b"anything")


def with_window(data, log):
    """Return a frame without a content size, as in a stream, whose decompression needs a window of 2**log bytes."""
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=log, write_checksum=True)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return stream.compress(data) + stream.flush()


# What else than one whole frame, with a checksum and without a dictionary, a file or a frame in it can be.
NO_FRAMES = {
    "nothing": lambda data: b"",
    "cut": lambda data: compressed(data)[:-1],
    "cut in its checksum": lambda data: compressed(data)[:-4],
    "cut in a block": lambda data: compressed(data)[:-10],
    "more after it": lambda data: compressed(data) + b"x",
    "two frames": lambda data: compressed(data[:80]) + compressed(data[80:]),
    "a skippable frame": lambda data: SKIPPABLE,
    "a skippable frame before": lambda data: SKIPPABLE + compressed(data),
    "a skippable frame after": lambda data: compressed(data) + SKIPPABLE,
    "without a checksum": zstandard.compress,
    "another checksum": lambda data: flipped(compressed(data), len(compressed(data)) - 1),
    "with a dictionary": lambda data: zstandard.ZstdCompressor(dict_data=DICTIONARY, write_checksum=True).compress(
        data
    ),
    "a size of 2^60": lambda data: b"\x28\xb5\x2f\xfd\xe4" + (1 << 60).to_bytes(8, "little") + compressed(data)[6:],
    "a window of 2^27": lambda data: with_window(data, 27),
    "a window of 2^31": lambda data: with_window(data, 31),
    "of an old format": lambda data: b"\x27\xb5\x2f\xfd" + compressed(data)[4:],
}
