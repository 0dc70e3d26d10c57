"""For whom a master key is wrapped, and who opens it: the words and files of age and of OpenSSH.

Owns: which word is a recipient, which kind of identity a file contains, and which of them are unusable. Must not know:
how a secret is wrapped, what it is for.
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

from ..core import errors, members
from . import keys

AGE, SSH, PASSPHRASE, MASTER = "age", "ssh", "passphrase", "master"

_AGE_WORD = re.compile(r"age1[02-9ac-hj-np-z]{58}\Z")
_AGE_IDENTITY = re.compile(rb"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}\Z")
_ONLY = re.compile(rb"#\s*nbdpull: only for master key ([0-9a-f]{32})\Z")
# What somebody may have meant to be such a line: no comment of age-keygen, nor of its public key, looks like these.
_NEARLY = re.compile(rb"(?i)nbdpull\s*:|nbdpull\W+only|only\W+for\b.*\bkey|master\W*key|\b[0-9a-f]{24,}\b")
_SSH_TYPES = ("ssh-ed25519", "ssh-rsa")
_PEM = re.compile(rb"\s*-----BEGIN (?P<label>[A-Z ]+)-----\n(?P<body>.*)\n-----END (?P=label)-----\s*\Z", re.DOTALL)
_SSH_MAGIC = b"openssh-key-v1\0"
_MAX_IDENTITY = 1 << 16  # bytes of a file
_MAX_PASSPHRASE = 1024  # bytes: age reads it from a terminal, whose lines are short
_MEND = "write age1…, ssh-ed25519 … or ssh-rsa …"


class Identity(NamedTuple):
    """A key or passphrase that opens a key file.

    kind: AGE, SSH, PASSPHRASE or MASTER. secret: an AGE-SECRET-KEY-…, a file of OpenSSH, the passphrase, or the bytes
    of the master key itself. name: of the file that it is from, for messages. only: ids of the master keys that it is
    meant for, according to its file; empty: for any.
    """

    kind: str
    secret: bytes
    name: str
    only: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.kind} identity of {self.name}>"

    @property
    def what(self) -> str:
        """The identity, for messages."""
        named = {AGE: "an age key", SSH: "an ssh key", PASSPHRASE: "a passphrase", MASTER: "a master key"}
        return f"{self.name} ({named[self.kind]})"


def kind_of(word: str) -> str:
    """Return AGE or SSH; UsageError for a word that is not a recipient, or not a usable one."""
    if "SECRET-KEY" in word.upper() or "PRIVATE KEY" in word:
        raise errors.UsageError("a recipient is a public key, but that was a secret one; make a new key: it was shown")
    if word.startswith("age1"):
        if not _AGE_WORD.match(word):
            raise unusable(word)
        return AGE
    kind, _, rest = word.partition(" ")
    if kind in _SSH_TYPES:
        if _ssh_type(rest.partition(" ")[0]) != kind:
            raise unusable(word)
        return SSH
    if kind.startswith(("ssh-", "ecdsa-", "sk-")):
        raise errors.UsageError(f"recipient {members.short(word)}: age does not support {kind} keys; {_MEND}")
    raise unusable(word)


def unusable(word: str) -> errors.UsageError:
    """Return the error for a word that is not a recipient."""
    return errors.UsageError(f"recipient {members.short(word)} is invalid or mistyped; {_MEND}")


def _ssh_type(blob: str) -> str:
    """Return the type in the middle word of a public key; "" if it is not one."""
    try:
        return _text(base64.b64decode(blob, validate=True), 0).decode("ascii")
    except ValueError:
        return ""


def identities(data: bytes, name: str) -> list[Identity]:
    """Return the identities in a file.

    These are keys of age, one a line; or a private key of OpenSSH; or a master key; or a passphrase on the only line.
    UsageError if it is none of them, or needs a passphrase itself.
    """
    if len(data) > _MAX_IDENTITY:
        raise errors.UsageError(f"{name} is not an identity: it has more than {_MAX_IDENTITY} bytes")
    if b"AGE ENCRYPTED FILE" in data or data.startswith(b"age-encryption.org/"):
        raise errors.UsageError(f"{name} is encrypted, and nbdpull never prompts: name one that age -d has decrypted")
    bare = b"".join(line for line in data.splitlines(keepends=True) if not line.lstrip().startswith(b"#"))
    if bare.lstrip().startswith(b"-----BEGIN "):
        return [Identity(SSH, _ssh_private(bare, name), name, _only(data, name))]
    lines = [line.strip() for line in data.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    if any(line.upper().startswith((b"AGE-SECRET-KEY-", b"AGE-PLUGIN-")) for line in lines):
        return [_age_identity(line, name)._replace(only=_only(data, name)) for line in lines]
    if len(lines) == 1 and lines[0].startswith(keys.MASTER_TEXT.encode()):
        return [Identity(MASTER, _master(lines[0], name), name)]
    if lines and lines[0].startswith((b"age1", b"ssh-", b"ecdsa-")):
        raise errors.UsageError(f"{name} is a public key: an identity is the secret key that belongs to it")
    return [Identity(PASSPHRASE, passphrase(data, name), name)]


def _only(data: bytes, name: str) -> tuple[str, ...]:
    """Return the master key ids in comments that are meant for us; a mistyped one must not be ignored."""
    comments = [line.strip() for line in data.splitlines() if line.lstrip().startswith(b"#")]
    found = [_ONLY.match(line) for line in comments if _NEARLY.search(line)]
    if not all(found):
        raise errors.UsageError(
            f"{name} has an invalid line for nbdpull: write # nbdpull: only for master key ID, with 32 digits 0-9 and "
            "a-f, or a comment that mentions no master key"
        )
    return tuple(match[1].decode() for match in found if match)


def _age_identity(line: bytes, name: str) -> Identity:
    if line.startswith(b"AGE-PLUGIN-"):
        raise errors.UsageError(f"{name} needs a plugin of age, which nbdpull does not run")
    if not _AGE_IDENTITY.match(line):
        raise errors.UsageError(f"{name} has a line that is not an age identity: write AGE-SECRET-KEY-1…, one a line")
    return Identity(AGE, line, name)


def _master(line: bytes, name: str) -> bytes:
    try:
        return keys.from_text(line.decode(errors="replace"))
    except ValueError as error:
        raise errors.UsageError(f"{name} is not a master key: {error}") from None


def passphrase(data: bytes, name: str) -> bytes:
    """Return the passphrase in a file: its only line, without the line end. UsageError."""
    found = data[:-1] if data.endswith(b"\n") else data
    found = found[:-1] if found.endswith(b"\r") else found
    if not found:
        raise errors.UsageError(f"{name} is empty: a passphrase is expected, on one line")
    try:
        text = found.decode()
    except UnicodeDecodeError:
        raise errors.UsageError(
            f"{name} is neither a key of age or ssh nor a passphrase: it is not UTF-8 text"
        ) from None
    if len(found) > _MAX_PASSPHRASE or not text.isprintable():
        raise errors.UsageError(
            f"{name} is neither a key of age or ssh nor a passphrase, which is one line of at most "
            f"{_MAX_PASSPHRASE} bytes, without control characters"
        )
    return found


def _ssh_private(data: bytes, name: str) -> bytes:
    """Return the same bytes; UsageError if age cannot use them."""
    found = _PEM.match(data)
    if not found:
        raise errors.UsageError(f"{name} is damaged: it is not a complete ssh key")
    label = found["label"]
    if label == b"OPENSSH PRIVATE KEY":
        cipher, kind = _openssh(b"".join(found["body"].split()), name)
    elif label == b"RSA PRIVATE KEY":
        cipher, kind = "a passphrase" if b"ENCRYPTED" in data else "none", "ssh-rsa"
    elif b"ENCRYPTED" in label:
        cipher, kind = "a passphrase", "ssh-rsa"
    else:
        raise errors.UsageError(f"{name} is not a key that age supports; name an ssh-ed25519, ssh-rsa or age key")
    if cipher != "none":
        raise errors.UsageError(
            f"{name} is an ssh key with a passphrase, and nbdpull never prompts: name one without (ssh-keygen -p on a "
            "copy), or an age identity"
        )
    if kind not in _SSH_TYPES:
        raise errors.UsageError(f"{name} is an ssh key of type {kind}: age supports only {' and '.join(_SSH_TYPES)}")
    return data


def _openssh(body: bytes, name: str) -> tuple[str, str]:
    """Return (cipher, type of the key) of a private key in OpenSSH's own format."""
    try:
        raw = base64.b64decode(body, validate=True)
        if not raw.startswith(_SSH_MAGIC):
            raise ValueError
        at = len(_SSH_MAGIC)
        cipher = _text(raw, at)
        for _ in range(3):  # cipher, kdf, its options
            at += 4 + len(_text(raw, at))
        public = _text(raw, at + 4)
        return _shown(cipher), _shown(_text(public, 0))
    except ValueError:
        raise errors.UsageError(f"{name} is damaged: it is not a complete ssh key") from None


def _shown(word: bytes) -> str:
    """Return a word for a message; ValueError."""
    return members.short(word.decode("ascii")).strip("'")


def _text(data: bytes, at: int) -> bytes:
    """Return a string of ssh's wire format; ValueError."""
    length = int.from_bytes(data[at : at + 4], "big")
    found = data[at + 4 : at + 4 + length]
    if len(data) < at + 4 + length:
        raise ValueError("cut short")
    return found
