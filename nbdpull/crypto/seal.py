"""What a store does to bytes before they are written, and after they are read: nothing, or sealing them.

Every store has a Seal, so no other module asks whether a store is sealed. Owns: which key and context each kind of
bytes is sealed with. Must not know: what these bytes are, where they are, who can open the master key.
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
    """The seal of a store that is not sealed: all bytes remain unchanged.

    id: of the master key, None in a store that is not sealed; opens: whether the stored bytes can be read; overhead:
    bytes that sealing adds.
    """

    id: Optional[str] = None
    opens = True
    overhead = 0

    def require(self) -> None:
        """Raise KeyNeeded if the content of the store can be neither read nor written."""

    def frame(self, data: bytes, digest: bytes) -> bytes:
        """Return a frame as it is stored. digest: of its content; the frame opens only with that."""
        return data

    def frame_again(self, data: bytes, digest: bytes, damaged: bytes) -> bytes:
        """Return a frame as it was stored, if `damaged`, what is left of it, still has its nonce. Let nobody see the
        result before it is known to be what was stored: the nonce may belong to another frame."""
        return data

    def opened_frame(self, data: bytes, digest: bytes) -> bytes:
        """Return the frame; ValueError if it is not one of that digest."""
        return data

    def piece(self, data: bytes, kind: str) -> bytes:
        """Return what is neither frame nor document as it is stored; it opens only as a piece of the same kind.

        Equal bytes always give equal results, so that existing pieces can be recognized by their digest, and made
        again.
        """
        return data

    def opened_piece(self, data: bytes, kind: str) -> bytes:
        """Return the piece; ValueError if it is not of that kind."""
        return data

    def secret(self, digest: bytes) -> bytes:
        """Return 32 bytes to publish instead of a digest: nobody can use them to confirm a guess."""
        return digest

    def shown(self, sizes: list[_T]) -> list[_T]:
        """Return the sizes of frames that everybody may see."""
        return sizes

    def mac(self, data: bytes) -> Optional[bytes]:
        """Return 32 bytes that only a holder of the key can make from a document; None if there is no key for it."""
        return None


PLAIN = Seal()


class Locked(Seal):
    """The seal of a sealed store without its key. Documents can be read, and files removed or copied unchanged."""

    opens = False

    def __init__(self, key_id: str, where: str) -> None:
        """where: the name of the store in messages."""
        self.id, self._where = key_id, where
        self.overhead = xaes.OVERHEAD

    def require(self) -> None:
        raise errors.KeyNeeded(f"{self._where} is sealed: name an identity that opens it with --identity FILE")

    def frame(self, data: bytes, digest: bytes) -> bytes:
        self.require()
        return data

    opened_frame = frame

    def frame_again(self, data: bytes, digest: bytes, damaged: bytes) -> bytes:
        self.require()
        return data

    def piece(self, data: bytes, kind: str) -> bytes:
        self.require()
        return data

    opened_piece = piece

    def secret(self, digest: bytes) -> bytes:
        self.require()
        return digest

    def shown(self, sizes: list[_T]) -> list[_T]:
        return []


class Sealed(Seal):
    """The seal of a sealed store, with its StoreKeys. KeyNeeded if these lack the one that is needed."""

    overhead = xaes.OVERHEAD

    def __init__(self, store_keys: StoreKeys) -> None:
        self.id, self._keys = store_keys.id, store_keys

    def frame(self, data: bytes, digest: bytes) -> bytes:
        return xaes.seal(self._data, data, digest)

    def frame_again(self, data: bytes, digest: bytes, damaged: bytes) -> bytes:
        return xaes.encrypted(self._data, damaged[: xaes.NONCE_SIZE], data, digest)

    def opened_frame(self, data: bytes, digest: bytes) -> bytes:
        return xaes.opened(self._data, data, digest)

    def piece(self, data: bytes, kind: str) -> bytes:
        """Seal a piece. Its nonce is made from everything that is sealed: only equal bytes have the same nonce."""
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
