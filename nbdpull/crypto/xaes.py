"""XAES-256-GCM (https://c2sp.org/XAES-256-GCM): AES-256-GCM with nonces of 24 bytes, so that random ones never meet.

Owns: one sealed piece of bytes as nonce, ciphertext and tag. The only module that knows the library `cryptography`,
which the extra nbdpull[seal] brings; imported where it is used only. Must not know: whose keys, what is sealed.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

from ..core import errors

KEY_SIZE = 32
NONCE_SIZE = 24
TAG_SIZE = 16
OVERHEAD = NONCE_SIZE + TAG_SIZE  # bytes by which a sealed piece is longer

_MISSING = (
    "sealed stores need Python's cryptography: install python3-cryptography (Debian, Fedora), or pip install "
    "'nbdpull[seal]'"
)


def seal(key: bytes, data: bytes, context: bytes = b"") -> bytes:
    """Return `data` sealed with a key of 32 bytes: it opens with the same key and context only. Data may have 2^31 - 1
    bytes. MissingSoftware."""
    nonce = os.urandom(NONCE_SIZE)
    return nonce + encrypted(key, nonce, data, context)


def opened(key: bytes, sealed: bytes, context: bytes = b"") -> bytes:
    """Return what was sealed. ValueError of anything else, of another key or context, or cut. MissingSoftware."""
    if len(sealed) < OVERHEAD:
        raise ValueError("it is too short to be sealed")
    nonce, library = sealed[:NONCE_SIZE], _library()
    try:
        found: bytes = _cipher(library, key, nonce).decrypt(nonce[12:], sealed[NONCE_SIZE:], context)
    except library.invalid_tag:
        raise ValueError("it does not open with the key of the store") from None
    return found


def encrypted(key: bytes, nonce: bytes, data: bytes, context: bytes) -> bytes:
    """Ciphertext and tag. Only for a nonce that was never used with this key."""
    found: bytes = _cipher(_library(), key, nonce).encrypt(nonce[12:], data, context)
    return found


def _cipher(library: _Library, key: bytes, nonce: bytes) -> Any:
    """AES-256-GCM with the key that the first half of a nonce makes of another."""
    mask, encryptor = _mask(key), _encryptor(library, key)
    head = b"X\0" + nonce[:12]
    blocks = [int.from_bytes(bytes([0, number]) + head, "big") ^ mask for number in (1, 2)]
    return library.gcm(encryptor.update(b"".join(block.to_bytes(16, "big") for block in blocks)))


@functools.lru_cache(64)
def _mask(key: bytes) -> int:
    """The one subkey K1 of CMAC that is needed: all blocks are whole."""
    block = int.from_bytes(_encryptor(_library(), key).update(bytes(16)), "big")
    doubled = block << 1
    return doubled ^ (1 << 128 | 0x87) if doubled >> 128 else doubled


def _encryptor(library: _Library, key: bytes) -> Any:
    """One for each use: two threads must not meet in one."""
    return library.cipher(library.aes(key), library.ecb()).encryptor()


class _Library(NamedTuple):
    gcm: Any
    cipher: Any
    aes: Any
    ecb: Any
    invalid_tag: type[Exception]


@functools.lru_cache(1)
def _library() -> _Library:
    """What is used of it; it takes a tenth of a second to import."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise errors.MissingSoftware(f"{_MISSING} ({error})") from None
    return _Library(AESGCM, Cipher, algorithms.AES, modes.ECB, InvalidTag)
