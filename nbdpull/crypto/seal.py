"""What a store does with bytes before they are written, and after they are read: nothing, or sealing them.

Every store has one of these, so nobody asks whether a store is sealed. Owns: which key and context each kind of bytes
is sealed with. Must not know: what these bytes are, where they are, who can open the master key.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Optional, TypeVar

from ..core import errors
from . import keys, xaes
from .keys import StoreKeys

_T = TypeVar("_T")


class Seal:
    """Of a store that is not sealed: all bytes stay as they are.

    id: of the master key, None in a store that is not sealed; opens: whether what is stored can be read; overhead:
    bytes by which what is sealed is longer.
    """

    id: Optional[str] = None
    opens = True
    overhead = 0

    def require(self) -> None:
        """KeyNeeded where what the store holds can be neither read nor written."""

    def frame(self, data: bytes, digest: bytes) -> bytes:
        """A frame as it is stored. digest: of what it holds; the frame opens with that only."""
        return data

    def opened_frame(self, data: bytes, digest: bytes) -> bytes:
        """The frame; ValueError where it is not one of that digest."""
        return data

    def piece(self, data: bytes, kind: str) -> bytes:
        """What is neither frame nor document as it is stored; of the same bytes always the same, so that what is there
        already can be known by its digest, and made again. It opens as what is of the same kind only."""
        return data

    def opened_piece(self, data: bytes, kind: str) -> bytes:
        """The piece; ValueError where it is none of that kind."""
        return data

    def secret(self, digest: bytes) -> bytes:
        """32 bytes in the place of a digest that may be seen by all: from it, nobody can confirm a guess."""
        return digest

    def shown(self, sizes: list[_T]) -> list[_T]:
        """Those of the sizes of frames that may be seen by all."""
        return sizes

    def mac(self, data: bytes) -> Optional[bytes]:
        """32 bytes that only who has the key can make of a document; None where there is no key for it."""
        return None


PLAIN = Seal()


class Locked(Seal):
    """Of a sealed store whose key is not at hand. Documents can be read, and files removed or copied as they are."""

    opens = False

    def __init__(self, key_id: str, where: str) -> None:
        """where: how a message names the store."""
        self.id, self._where = key_id, where
        self.overhead = xaes.OVERHEAD

    def require(self) -> None:
        raise errors.KeyNeeded(f"{self._where} is sealed: name an identity that opens it with --identity FILE")

    def frame(self, data: bytes, digest: bytes) -> bytes:
        self.require()
        return data

    opened_frame = frame

    def piece(self, data: bytes, kind: str) -> bytes:
        self.require()
        return data

    def opened_piece(self, data: bytes, kind: str) -> bytes:
        self.require()
        return data

    def secret(self, digest: bytes) -> bytes:
        self.require()
        return digest

    def shown(self, sizes: list[_T]) -> list[_T]:
        return []


class Sealed(Seal):
    """Of a sealed store, with its StoreKeys. KeyNeeded where these lack the one that is needed."""

    overhead = xaes.OVERHEAD

    def __init__(self, store_keys: StoreKeys) -> None:
        self.id, self._keys = store_keys.id, store_keys

    def frame(self, data: bytes, digest: bytes) -> bytes:
        return xaes.seal(self._data, data, digest)

    def opened_frame(self, data: bytes, digest: bytes) -> bytes:
        return xaes.opened(self._data, data, digest)

    def piece(self, data: bytes, kind: str) -> bytes:
        """Its nonce is made of all that is sealed: only the same bytes have the same one."""
        nonce = self._keyed(f"nonce {kind}\0".encode() + data)[: xaes.NONCE_SIZE]
        return xaes.encrypted(self._index, nonce, data, kind.encode())

    def opened_piece(self, data: bytes, kind: str) -> bytes:
        return xaes.opened(self._index, data, kind.encode())

    def secret(self, digest: bytes) -> bytes:
        return self._keyed(b"digest " + digest)

    def shown(self, sizes: list[_T]) -> list[_T]:
        return []

    def mac(self, data: bytes) -> Optional[bytes]:
        return hmac.new(keys.required(self._keys.mac, "manifests"), data, hashlib.sha256).digest()

    def _keyed(self, data: bytes) -> bytes:
        return hmac.new(keys.required(self._keys.names, "digests"), data, hashlib.sha256).digest()

    @property
    def _data(self) -> bytes:
        return keys.required(self._keys.data, "data of disks")

    @property
    def _index(self) -> bytes:
        return keys.required(self._keys.index, "indexes and files")
