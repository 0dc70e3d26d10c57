"""XAES-256-GCM, by the vectors of its specification (https://c2sp.org/XAES-256-GCM)."""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from nbdpull.core import errors
from nbdpull.crypto import xaes

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"
KEY = bytes(range(32))


@pytest.mark.parametrize(
    ("key", "context", "expected"),
    [  # the most significant bit of the block that K1 is made of is 0, and 1
        (1, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (3, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
)
def test_vectors(key, context, expected):
    key = bytes([key]) * 32
    assert xaes.encrypted(key, NONCE, b"XAES-256-GCM", context) == NONCE + bytes.fromhex(expected)
    assert xaes.opened(key, NONCE + bytes.fromhex(expected), context) == b"XAES-256-GCM"


def test_accumulated_random_vectors():
    """10,000 of them, of which the specification has the digest of all ciphertexts."""
    stream, at = hashlib.shake_128(b"").digest(1 << 22), 0

    def taken(count):
        nonlocal at
        at += count
        assert at <= len(stream)
        return stream[at - count : at]

    found = hashlib.shake_128()
    for _ in range(10_000):
        key, nonce = taken(32), taken(24)
        data = taken(taken(1)[0])
        context = taken(taken(1)[0])
        sealed = xaes.encrypted(key, nonce, data, context)
        found.update(sealed[24:])
    assert xaes.opened(key, sealed, context) == data
    assert found.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


@pytest.mark.parametrize("data", [b"", b"x", bytes(1 << 20), bytes(3 << 20)])
def test_a_round_trip(data):
    sealed = xaes.seal(KEY, data, b"context")
    assert len(sealed) == len(data) + xaes.OVERHEAD
    assert xaes.opened(KEY, sealed, b"context") == data


def test_threads_do_not_meet():
    def work(number):
        data = bytes([number]) * (1 << 16)
        return all(xaes.opened(KEY, xaes.seal(KEY, data)) == data for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_a_nonce_is_never_used_twice():
    assert len({xaes.seal(KEY, b"same")[: xaes.NONCE_SIZE] for _ in range(1000)}) == 1000


def test_modified_ciphertexts_do_not_open():
    sealed = xaes.seal(KEY, b"some data", b"context")
    flipped = [bytes(b ^ (at == n) for n, b in enumerate(sealed)) for at in range(len(sealed))]
    cut = [sealed[:length] for length in range(len(sealed))]
    for wrong in [*flipped, *cut, sealed + b"\0", b"\0" + sealed]:
        with pytest.raises(ValueError, match="does not open|too short"):
            xaes.opened(KEY, wrong, b"context")
    for key, context in [(KEY, b""), (KEY, b"other"), (bytes(32), b"context")]:
        with pytest.raises(ValueError, match="does not open with the key of the store"):
            xaes.opened(key, sealed, context)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    xaes._library.cache_clear()
    try:
        with pytest.raises(errors.MissingSoftware, match="python3-cryptography"):
            xaes.seal(KEY, b"")
    finally:
        xaes._library.cache_clear()
