"""The files with a user's identities: the default ones, and how they are read.

Owns: the variable, and systemd's credential. Must not know: what they open.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ..core import errors
from . import age, recipients
from .recipients import PASSPHRASE, Identity

VARIABLE = "NBDPULL_IDENTITY_FILE"
CREDENTIAL = "nbdpull.identity"
_CREDENTIALS = "CREDENTIALS_DIRECTORY"  # systemd sets it for a unit with LoadCredential=
_MAX = 1 << 17  # bytes; more than any identity has
_from_pipes: dict[tuple[int, int], bytes] = {}  # by device and inode: --identity <(age -d my.key.age) is read once
_SHORTEST = 8  # characters of a new passphrase: an attacker who has the store can try all shorter ones


def given(named: Sequence[str]) -> list[Identity]:
    """Return the identities in the files that the user named, else in that of the variable, else in the credential.

    None if there is none of these. UsageError, MissingSoftware.
    """
    return [identity for path, name in meant(named) for identity in read(path, name)]


def read(path: str, name: str) -> list[Identity]:
    """Return the identities in one file. UsageError, MissingSoftware."""
    return age.identities(_read(path, name), name)


def meant(named: Sequence[str]) -> list[tuple[str, str]]:
    """Return (path, its name for messages) for each file to read."""
    if named:
        return [(path, path) for path in named]
    default = os.environ.get(VARIABLE)
    if default:
        return [(default, f"{default} ({VARIABLE})")]
    folder = os.environ.get(_CREDENTIALS)
    credential = os.path.join(folder, CREDENTIAL) if folder else ""
    return [(credential, f"{CREDENTIAL} (a credential)")] if credential and os.path.exists(credential) else []


def is_open_to_all(path: str) -> bool:
    """Return whether everybody who can reach the file can read it."""
    try:
        return bool(os.stat(path).st_mode & 0o004)
    except (OSError, ValueError):
        return False


def new_passphrase(path: str) -> bytes:
    """Return the passphrase in a file, its only line, for a new key.

    UsageError, also if the same file would not open that key again, as an identity, or if the passphrase is too short.
    """
    data = _read(path, path)
    found = recipients.passphrase(data, path)
    try:
        opens = [(each.kind, each.secret) for each in recipients.identities(data, path)] == [(PASSPHRASE, found)]
    except errors.UsageError:
        opens = False
    if not opens:
        raise errors.UsageError(
            f"{path} has a passphrase that --identity would take for a key, or part of one: choose another"
        )
    if len(found.decode()) < _SHORTEST:
        raise errors.UsageError(
            f"{path} has a passphrase of fewer than {_SHORTEST} characters: whoever has the store could guess it"
        )
    return found


def _read(path: str, name: str) -> bytes:
    """Read a file. A verb that opens a store twice, such as a pull that prunes, gets the same content from a pipe."""
    try:
        status = os.stat(path)
        pipe = (status.st_dev, status.st_ino) if stat.S_ISFIFO(status.st_mode) else None
        if pipe in _from_pipes:
            return _from_pipes[pipe]
        with open(path, "rb") as file:
            data = file.read(_MAX)
        if pipe:
            _from_pipes[pipe] = data
        return data
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "its name has a character that no file name can have"
        raise errors.UsageError(f"cannot read the identity {name}: {why}") from None
