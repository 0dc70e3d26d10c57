"""A secret wrapped for recipients, as files of age (https://age-encryption.org/v1): by pyrage, or else the program age.

Both write and read the same files. Owns: which of them is used, and how to recognize a file of age. Must not know: what
the secret is, where its files are.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NamedTuple, Optional

from ..core import errors
from . import age_library, age_program, recipients
from .recipients import AGE, PASSPHRASE, SSH, Identity

_HEADER = re.compile(rb"age-encryption\.org/v1\n((?:-> [!-~ ]+\n(?:[A-Za-z0-9+/]{0,64}\n)*)+)--- [A-Za-z0-9+/]{43}\n")
_STANZA = re.compile(rb"^-> (\S+)", re.MULTILINE)
MAX_FILE = 1 << 16  # bytes; the file of a key with a hundred recipients takes a fifth of that


class Opened(NamedTuple):
    secret: bytes
    identity: Identity

    def __repr__(self) -> str:
        return f"<what {self.identity!r} opened>"


def _way() -> ModuleType:
    return age_library if age_library.is_there() else age_program


def require_recipients(words: Iterable[str]) -> None:
    """Raise UsageError for the first word that is not a recipient. MissingSoftware."""
    for word in words:
        if not _way().is_recipient(word, recipients.kind_of(word)):
            raise recipients.unusable(word)


def wrap(secret: bytes, words: Sequence[str]) -> bytes:
    """Wrap a secret so that each of these recipients alone can open it. UsageError, MissingSoftware."""
    require_recipients(words)
    found: bytes = _way().wrapped(secret, [(word, recipients.kind_of(word)) for word in words])
    return found


def wrap_by_passphrase(secret: bytes, passphrase: bytes) -> bytes:
    """Wrap a secret with a passphrase. This takes a second, so that guessing takes long. MissingSoftware."""
    found: bytes = _way().wrapped_by_passphrase(secret, passphrase)
    return found


def identities(data: bytes, name: str) -> list[Identity]:
    """Return recipients.identities, and check that each is valid. UsageError, MissingSoftware."""
    found = recipients.identities(data, name)
    for each in found:
        if each.kind in (AGE, SSH) and not _way().is_identity(each):
            raise errors.UsageError(f"{name} is not a valid {each.kind} identity: it has a wrong character")
    return found


def armored(data: bytes) -> str:
    """Return a file of age as lines of text, which age reads as well."""
    body = base64.encodebytes(data).replace(b"\n", b"")
    lines = [body[at : at + 64].decode() for at in range(0, len(body), 64)]
    return "\n".join(["-----BEGIN AGE ENCRYPTED FILE-----", *lines, "-----END AGE ENCRYPTED FILE-----", ""])


def takes_passphrase(data: bytes, path: str) -> bool:
    """Return whether a file opens with a passphrase, rather than with keys. Damaged if it is not a file of age."""
    header = _HEADER.match(data)
    if not header:
        raise errors.Damaged(f"{path}: not a file of age")
    return _STANZA.findall(header[1]) == [b"scrypt"]


def unwrap(data: bytes, path: str, tried: Iterable[Identity]) -> Optional[Opened]:
    """Return the secret, opened by the first identity that can; None if none can.

    In that case the file is for others, or was changed: without an identity that opens it, these cases look the same.
    Raises Damaged if it is not a file of age, and MissingSoftware.
    """
    by_passphrase = takes_passphrase(data, path)
    for each in tried:
        if each.kind in ((PASSPHRASE,) if by_passphrase else (AGE, SSH)):
            secret = _way().unwrapped(data, each)
            if secret is not None:
                return Opened(secret, each)
    return None
