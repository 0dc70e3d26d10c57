"""age through the library pyrage, which needs Python 3.10. Only this module knows it, and imports it only when used.

Must not know: which words are recipients, what calls it.
"""

from __future__ import annotations

import functools
from typing import Any, Optional

from .recipients import AGE, SSH, Identity


def is_there() -> bool:
    return _library() is not None


@functools.lru_cache(1)
def _library() -> Any:
    try:
        import pyrage
        from pyrage import passphrase, ssh, x25519  # noqa: F401, as attributes of it
    except ImportError:
        return None
    return pyrage


def is_recipient(word: str, kind: str) -> bool:
    try:
        _recipient(word, kind)
    except _library().RecipientError:
        return False
    return True


def _recipient(word: str, kind: str) -> Any:
    library = _library()
    return (library.x25519 if kind == AGE else library.ssh).Recipient.from_str(word)


def is_identity(identity: Identity) -> bool:
    try:
        _identity(identity)
    except _library().IdentityError:
        return False
    return True


def _identity(identity: Identity) -> Any:
    library = _library()
    if identity.kind == SSH:
        return library.ssh.Identity.from_buffer(identity.secret)
    return library.x25519.Identity.from_str(identity.secret.decode())


def wrapped(secret: bytes, words: list[tuple[str, str]]) -> bytes:
    found: bytes = _library().encrypt(secret, [_recipient(word, kind) for word, kind in words])
    return found


def wrapped_by_passphrase(secret: bytes, passphrase: bytes) -> bytes:
    found: bytes = _library().passphrase.encrypt(secret, passphrase.decode())
    return found


def unwrapped(data: bytes, identity: Identity) -> Optional[bytes]:
    library = _library()
    try:
        if identity.kind in (AGE, SSH):
            found: bytes = library.decrypt(data, [_identity(identity)])
        else:
            found = library.passphrase.decrypt(data, identity.secret.decode())
    except library.DecryptError:
        return None
    return found
