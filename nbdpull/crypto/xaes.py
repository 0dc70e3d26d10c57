"""XAES-256-GCM (https://c2sp.org/XAES-256-GCM): AES-256-GCM with nonces of 24 bytes, so that random ones never collide.

Owns: one sealed piece of bytes as nonce, ciphertext and tag. Only this module knows the library `cryptography`, which
the extra nbdpull[seal] installs, and imports it only when used. Must not know: whose keys, what is sealed.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from typing import Any, NamedTuple, Optional

from ..core import errors

NONCE_SIZE = 24
TAG_SIZE = 16
OVERHEAD = NONCE_SIZE + TAG_SIZE  # bytes that sealing adds

_MISSING = (
    "sealed stores need Python's cryptography: install python3-cryptography (Debian, Fedora), or pip install "
    "'nbdpull[seal]'"
)


def seal(key: bytes, data: bytes, context: bytes = b"") -> bytes:
    """Return `data` sealed with a key of 32 bytes: it opens only with the same key and context.

    Data may have up to 2^31 - 1 bytes. MissingSoftware.
    """
    return encrypted(key, os.urandom(NONCE_SIZE), data, context)


def encrypted(key: bytes, nonce: bytes, data: bytes, context: bytes) -> bytes:
    """Do the same as `seal` with a given nonce, which must never be used again with this key for other bytes."""
    encryptor = _gcm(key, nonce, None).encryptor()
    encryptor.authenticate_additional_data(context)
    sealed = _room(len(data) + OVERHEAD)
    with sealed.getbuffer() as room:
        room[:NONCE_SIZE] = nonce
        end = NONCE_SIZE + encryptor.update_into(data, room[NONCE_SIZE:])
        encryptor.finalize()
        room[end : end + TAG_SIZE] = encryptor.tag
    sealed.truncate(end + TAG_SIZE)
    return sealed.getvalue()


def opened(key: bytes, sealed: bytes, context: bytes = b"") -> bytes:
    """Return the unsealed bytes.

    ValueError for anything else, for another key or context, or if cut. MissingSoftware.
    """
    if len(sealed) < OVERHEAD:
        raise ValueError("it is too short to be sealed")
    decryptor = _gcm(key, sealed[:NONCE_SIZE], sealed[-TAG_SIZE:]).decryptor()
    decryptor.authenticate_additional_data(context)
    unsealed = _room(len(sealed) - OVERHEAD)
    with unsealed.getbuffer() as room:
        end = decryptor.update_into(memoryview(sealed)[NONCE_SIZE:-TAG_SIZE], room)
        try:
            decryptor.finalize()
        except _library().invalid_tag:
            raise ValueError("it does not open with the key of the store") from None
    unsealed.truncate(end)
    return unsealed.getvalue()


_MAX_KEYS = 4  # of a thread: those for frames and for indexes, of a store that is read and one that is written
_thread = threading.local()


def _room(size: int) -> io.BytesIO:
    """Return a buffer of that size, and of what the library requires beyond it. Its bytes are handed out without a
    copy."""
    return io.BytesIO(bytes(size + TAG_SIZE))


def _gcm(key: bytes, nonce: bytes, tag: Optional[bytes]) -> Any:
    """Return AES-256-GCM with the key that is derived from another key and the first half of a nonce."""
    library, mask, head = _library(), _mask(key), b"X\0" + nonce[:12]
    blocks = [int.from_bytes(bytes([0, number]) + head, "big") ^ mask for number in (1, 2)]
    own = _threads_own(key).update(b"".join(block.to_bytes(16, "big") for block in blocks))
    return library.cipher(library.aes(own), library.gcm(nonce[12:], tag))


def _threads_own(key: bytes) -> Any:
    """Return the encryptor that this thread reuses for a key: making one takes as long as half of a small piece. ECB of
    whole blocks keeps no state from one call to the next."""
    if not hasattr(_thread, "encryptors"):
        _thread.encryptors = {}
    encryptors: dict[bytes, Any] = _thread.encryptors
    if key not in encryptors:
        if len(encryptors) == _MAX_KEYS:
            encryptors.clear()
        encryptors[key] = _encryptor(_library(), key)
    return encryptors[key]


@functools.lru_cache(64)
def _mask(key: bytes) -> int:
    """Return K1, the only subkey of CMAC that is needed: all blocks are whole."""
    block = int.from_bytes(_encryptor(_library(), key).update(bytes(16)), "big")
    doubled = block << 1
    return doubled ^ (1 << 128 | 0x87) if doubled >> 128 else doubled


def _encryptor(library: _Library, key: bytes) -> Any:
    """Return a new encryptor: two threads must not share one."""
    return library.cipher(library.aes(key), library.ecb()).encryptor()


class _Library(NamedTuple):
    cipher: Any
    aes: Any
    ecb: Any
    gcm: Any
    invalid_tag: type[Exception]


@functools.lru_cache(1)
def _library() -> _Library:
    """Return what we use of the library; importing it takes a tenth of a second."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    except ImportError as error:
        raise errors.MissingSoftware(f"{_MISSING} ({error})") from None
    return _Library(Cipher, algorithms.AES, modes.ECB, modes.GCM, InvalidTag)
