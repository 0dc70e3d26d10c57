"""The key files of a sealed store: copies of its one master key, each wrapped for somebody who may open the store.

A copy is an age file, and a document beside it states for whom it is. Only the copy counts; the document is a note, and
only those who have the master key can check whether it is true.

Owns: where the files are, and what can be said about them without a key. Must not know: which of them open
(keyring.py), how they change (key_changes.py), or how age wraps a key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ..core import errors, members
from ..crypto import age
from ..crypto.keys import StoreKeys
from ..crypto.recipients import AGE, PASSPHRASE, SSH
from ..crypto.seal import Sealed
from ..format import layout
from ..storage.base import Store
from . import marker

WRAPPED = ".age"  # suffix of the copies
PLAIN = "the store is not sealed: it has no keys; nbdpull init makes a new store that is"


@dataclass(frozen=True)
class Note:
    """A note about a key file. sha256: that of the age file that the note describes."""

    sha256: str
    when: str
    who: str
    recipient: Optional[str]
    label: str = ""


class KeyFile(NamedTuple):
    """A key file as listed. name: of the file, without its suffix; recipient: as text, None for a passphrase or if
    unknown; when, who: when it was made and by whom, "" if there is no note about this file."""

    name: str
    by_passphrase: bool
    recipient: Optional[str]
    label: str
    when: str
    who: str

    @property
    def kind(self) -> str:
        """Kind of the identity that opens the file; "unknown" without a note."""
        if self.by_passphrase:
            return PASSPHRASE
        return "unknown" if self.recipient is None else AGE if self.recipient.startswith("age") else SSH

    @property
    def of(self) -> str:
        """A name for its owner, for people: a label, the comment of an ssh key, or the end of the recipient."""
        if self.label or self.by_passphrase or self.recipient is None:
            return self.label or ("a passphrase" if self.by_passphrase else "not noted")
        kind, _, rest = self.recipient.partition(" ")
        digits, _, comment = rest.partition(" ")
        return f"{kind} {comment or '…' + digits[-12:]}" if digits else f"{kind[:12]}…{kind[-4:]}"

    @property
    def whose(self) -> str:
        """The file as named in messages."""
        return f"{self.name} ({self.of})"


def listed(store: Store) -> list[KeyFile]:
    """Return the key files of a store, oldest first. Needs no key. StoreError if the store is not sealed."""
    if marker.master_of(store) is None:
        raise errors.StoreError(f"{store.root}: {PLAIN}")
    found = [_listed(store, name) for name in names(store)]
    return sorted(found, key=lambda each: (each.when, each.name))


def path_of(name: str) -> str:
    return f"{layout.KEYS}/{name}{WRAPPED}"


def note_path(name: str) -> str:
    return f"{layout.KEYS}/{name}.json"


def names(store: Store) -> list[str]:
    return [name[: -len(WRAPPED)] for name in store.files(layout.KEYS) if name.endswith(WRAPPED)]


def _listed(store: Store, name: str) -> KeyFile:
    by_passphrase, about = False, None
    with suppress(errors.Damaged):
        data, path = read(store, name)
        by_passphrase = age.takes_passphrase(data, path)
        about = note(store, name, data)
    if about is None:
        return KeyFile(name, by_passphrase, None, "", "", "")
    return KeyFile(name, by_passphrase, about.recipient, about.label, about.when, about.who)


def digest(data: bytes) -> str:
    """Return the digest by which a note identifies its key file."""
    return hashlib.sha256(data).hexdigest()


def note(store: Store, name: str, wrapped: bytes, key: Optional[StoreKeys] = None) -> Optional[Note]:
    """Return the note about a key file with these bytes; None if there is none, or if it is about another file. key: if
    given, return only a note whose author had the master key."""
    about, data = _noted(store, name)
    if about is None or about.sha256 != digest(wrapped):
        return None
    return about if key is None or layout.has_mac(data, Sealed(key).mac) else None


def described(store: Store, name: str) -> Optional[Note]:
    """Return the note beside a key file, whichever file it is about; None if there is none that can be read."""
    return _noted(store, name)[0]


def _noted(store: Store, name: str) -> tuple[Optional[Note], bytes]:
    path = note_path(name)
    try:
        data = store.read(path, layout.MAX_NOTE)
        return members.build(Note, layout.unseal(data, store.path(path))), data
    except (errors.Failure, ValueError):
        return None, b""


def read(store: Store, name: str) -> tuple[bytes, str]:
    """Return (bytes of the file, its name in messages). Damaged."""
    path = path_of(name)
    return store.read(path, age.MAX_FILE), store.path(path)


def sound(store: Store) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of each key file that is a valid age file."""
    for name in names(store):
        with suppress(errors.Damaged):
            data, path = read(store, name)
            age.takes_passphrase(data, path)
            yield name, data


def may_be(path: str, data: bytes) -> bool:
    """Return whether these bytes can be the content of the file at a path below `layout.KEYS`."""
    if path.endswith(WRAPPED):
        with suppress(errors.Damaged):
            age.takes_passphrase(data, path)
            return True
    return not path.endswith(WRAPPED)


def none_left(store: Store) -> str:
    return (
        f"{store.path(layout.KEYS)}: no key file that can be read is there; bring them back from a copy of the store, "
        "or name the master key (nbdpull key export) with --identity"
    )


def warnings(store: Store) -> list[str]:
    """Return what the owner should know about the keys of a store, one text each; none if the store is not sealed."""
    if marker.master_of(store) is None:
        return []
    counted = {name for name, _ in sound(store)}
    there = [each for each in listed(store) if each.name in counted]
    if not there:
        return [none_left(store)]
    if len(there) == 1:
        return [
            f"only {there[0].whose} opens {store.root}: if it is lost, so are the backups; add another one with "
            "nbdpull key add, or keep the master key with nbdpull key export"
        ]
    return []


def found(store: Store, named: str) -> KeyFile:
    """Return the key file with that name, recipient or label. UsageError if there is none, or more than one."""
    there = listed(store)
    fitting = [each for each in there if named in (each.name, each.recipient, each.label)]
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(each.whose for each in fitting or there)
    why = "matches several keys" if fitting else "is not one of its keys"
    raise errors.UsageError(f"{store.root}: {members.short(named)} {why}; name one by the first word: {shown}")
