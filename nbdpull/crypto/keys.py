"""The keys of a sealed store: one master key, and the key derived from it for each purpose.

Owns: how they follow from the master key. A key is never shown, not even by `repr`. Must not know: how the master key
is kept and who can open it, what is sealed with which key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Optional

from ..core import errors

MASTER_SIZE = 32  # bytes
MASTER_TEXT = "NBDPULL-MASTER-KEY-1-"  # prefix of the line that represents a master key for people
_ID_SIZE = 16  # bytes


def new_master() -> bytes:
    """Return a new master key."""
    return secrets.token_bytes(MASTER_SIZE)


def text_of(master: bytes) -> str:
    """Return a master key as a line that can be printed and typed, with check digits against typing errors."""
    return f"{MASTER_TEXT}{master.hex()}-{_check_digits(master)}"


def from_text(text: str) -> bytes:
    """Return the master key in such a line; ValueError, which does not reveal it."""
    digits, _, check = text[len(MASTER_TEXT) :].partition("-")
    try:
        master = bytes.fromhex(digits)
    except ValueError:
        raise ValueError("it has a character other than 0-9 and a-f") from None
    if not text.startswith(MASTER_TEXT) or len(master) != MASTER_SIZE or check != _check_digits(master):
        raise ValueError("it has a wrong or missing character")
    return master


def _check_digits(master: bytes) -> str:
    return hashlib.sha256(MASTER_TEXT.encode() + master).hexdigest()[:8]


@dataclass(frozen=True, repr=False)
class StoreKeys:
    """The keys of a store.

    id: identifies the master key, in hex; not secret. data: for frames; index: for pages and small files; names: for
    digests of what is secret; mac: for manifests and markers. Each has 32 bytes; None: the holder of these keys lacks
    that one.
    """

    id: str
    data: Optional[bytes]
    index: Optional[bytes]
    names: Optional[bytes]
    mac: Optional[bytes]

    def __repr__(self) -> str:
        return f"<keys of master key {self.id}>"


def of_master(master: bytes) -> StoreKeys:
    """Derive all keys from a master key; ValueError unless it has 32 bytes."""
    if len(master) != MASTER_SIZE:
        raise ValueError(f"a master key has {MASTER_SIZE} bytes, not {len(master)}")
    identity = _derived(master, "id")[:_ID_SIZE].hex()
    return StoreKeys(identity, *(_derived(master, purpose) for purpose in ("data", "index", "names", "mac")))


def _derived(master: bytes, purpose: str) -> bytes:
    """Return HKDF-SHA256 (RFC 5869) without salt; the result is one block long."""
    middle = hmac.new(bytes(hashlib.sha256().digest_size), master, hashlib.sha256).digest()
    return hmac.new(middle, f"nbdpull/2 sealed {purpose}".encode() + b"\x01", hashlib.sha256).digest()


def required(key: Optional[bytes], purpose: str) -> bytes:
    """Return a key of StoreKeys that must exist; KeyNeeded if it does not."""
    if key is None:
        raise errors.KeyNeeded(
            f"the available key of the store is not for {purpose}; use an identity that has that key"
        )
    return key
