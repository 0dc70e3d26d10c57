"""Changes to who can open a sealed store: making, adding, removing and transferring copies of its master key.

Owns: that no intended user is locked out, and which notes are written. Must not know: which identities a user named, or
how age wraps a key.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Optional

from ..core import errors, members
from ..crypto import age, keys
from ..crypto.recipients import MASTER, Identity
from ..crypto.seal import Sealed
from ..format import findings, layout
from ..storage.base import Store
from . import drafts, immutable, key_files, keyring, marker
from .key_files import KeyFile
from .keyring import Opened
from .marker import NewSeal


def new(words: Sequence[str], passphrase: Optional[bytes]) -> NewSeal:
    """Return the seal for a new master key that all of these can open. UsageError, MissingSoftware: also if the
    software for sealing with the key is missing."""
    master = keys.new_master()
    made = keys.of_master(master)
    Sealed(made).frame(b"", b"")  # wrapping needs other software; the first pull would be too late to report that
    return NewSeal(made.id, _files(master, words, passphrase, ""))


def _files(master: bytes, words: Sequence[str], passphrase: Optional[bytes], label: str) -> list[tuple[str, bytes]]:
    """Return the files of one copy for each recipient: a note, followed by the copy, which is the file that counts."""
    age.require_recipients(words)
    mac = Sealed(keys.of_master(master)).mac
    wrapped: list[tuple[Optional[str], bytes]] = [(word, age.wrap(master, [word])) for word in dict.fromkeys(words)]
    if passphrase is not None:
        wrapped.append((None, age.wrap_by_passphrase(master, passphrase)))
    found = []
    for word, data in wrapped:
        name = _new_name()
        note: layout.Document = {
            "format": layout.FORMAT,
            "requires": [],
            **findings.now(),
            "recipient": word,
            "label": label,
            "sha256": key_files.digest(data),
        }
        found += [(key_files.note_path(name), layout.seal_with_mac(note, mac)), (key_files.path_of(name), data)]
    return found


def _new_name() -> str:
    """Return a name for a key file that no store has used."""
    return secrets.token_hex(4)


def _put(store: Store, files: list[tuple[str, bytes]]) -> None:
    """Write key files that must exist as long as the points that need them."""
    immutable.begin(store)
    marker.put_keys(store, files)


def add(store: Store, opened: Opened, words: Sequence[str], passphrase: Optional[bytes], label: str) -> list[str]:
    """Let more recipients open the store; return the names of the new key files. UsageError if one can open it
    already."""
    notes = [key_files.note(store, name, data, keys.of_master(opened.master)) for name, data in key_files.sound(store)]
    known = {note.recipient for note in notes if note}  # a forged note lets nobody in, and must not keep anybody out
    for word in words:
        if word in known:
            raise errors.UsageError(f"recipient {members.short(word)} opens the store already: see nbdpull key list")
    files = _files(opened.master, words, passphrase, label)
    _put(store, files)
    return [path.rpartition("/")[2][: -len(key_files.WRAPPED)] for path, _ in files if path.endswith(key_files.WRAPPED)]


def require_true(store: Store, opened: Opened, key: KeyFile) -> None:
    """Raise Damaged if the note shown for a key was written by somebody who does not have the master key."""
    has_note = any(key._replace(name="", by_passphrase=False))
    wrapped, _ = key_files.read(store, key.name)
    if has_note and key_files.note(store, key.name, wrapped, keys.of_master(opened.master)) is None:
        raise errors.Damaged(
            f"{store.path(key_files.note_path(key.name))}: not made with the key of this store: it was changed or "
            "forged, so the owner of the key is unknown; to remove that key, name it by its first word, and add --force"
        )


def rotate(
    store: Store,
    opened: Opened,
    words: Sequence[str],
    passphrase: Optional[bytes],
    label: str,
    proof: Optional[Sequence[Identity]],
) -> None:
    """Let these recipients open the store, and lock out all others who need a key file. The master key does not change.

    proof: identities, one of which must open the store afterwards, else UsageError; None: do not check. Errors as for
    add and remove. If this is interrupted, more recipients can open the store than before, and none fewer.
    """
    before, files = key_files.names(store), _files(opened.master, words, passphrase, label)
    if proof is not None and not _is_opened(files, proof):
        raise errors.UsageError(
            f"{store.root} would not open any more for {keyring.what(proof)}: name its recipient, too, or an identity "
            "that opens one of the new keys, or add --force"
        )
    _put(store, files)
    remove(store, before)


def _is_opened(files: Iterable[tuple[str, bytes]], tried: Sequence[Identity]) -> bool:
    """Return whether one of the identities opens a new key file, or needs none."""
    if any(each.kind == MASTER for each in tried):
        return True
    return any(age.unwrap(data, path, tried) for path, data in files if path.endswith(key_files.WRAPPED))


def exported(opened: Opened, words: Sequence[str], passphrase: Optional[bytes]) -> str:
    """Return the master key as text, wrapped for these recipients, as an armored age file that is not kept in the
    store. Its content is an identity. UsageError, MissingSoftware."""
    text = keys.text_of(opened.master).encode() + b"\n"
    return age.armored(age.wrap(text, words) if passphrase is None else age.wrap_by_passphrase(text, passphrase))


def remove(store: Store, gone: Sequence[str], proof: Optional[Sequence[Identity]] = None) -> None:
    """Remove key files by name, but never the last one that may open the store. UsageError, OutputError, Busy.

    A valid age file need not contain the master key: an init that died leaves such files, and a thief can make them.
    proof: identities, one of which must open what remains, else UsageError; None: do not check.
    """
    with store.locked("", "try again"):
        sound = dict(key_files.sound(store))
        if not sound.keys() - set(gone):
            raise errors.UsageError(
                f"{store.root}: nobody could open it any more: add another key first (nbdpull key add)"
            )
        if proof is not None:
            _require_opened(store, proof, gone)
        for name in gone:
            store.delete(key_files.path_of(name))
        if not key_files.names(store):  # without locks, another run has removed the rest meanwhile
            _put(store, [(key_files.path_of(_new_name()), sound[name]) for name in gone if name in sound])
            raise errors.Busy(f"{store.root}: another nbdpull removed all other keys meanwhile, so these remain")
        for name in gone:
            store.delete(key_files.note_path(name))
        drafts.remove_of_store(store, [*map(key_files.path_of, gone), *map(key_files.note_path, gone)])


def _require_opened(store: Store, proof: Sequence[Identity], gone: Sequence[str]) -> None:
    files = [each for each in proof if each.kind != MASTER]  # the master key itself opens it whatever remains
    try:
        keyring.open_master(store, files, without=gone)
    except (errors.KeyNeeded, errors.Damaged) as error:
        names = ", ".join(each.whose for each in key_files.listed(store) if each.name in gone)
        raise errors.UsageError(
            f"without {names}, no given identity opens {store.root}; add --force to go ahead nevertheless: {error}"
        ) from None


def copied(source: Store) -> Optional[NewSeal]:
    """Return the seal of a store that is to have the same master key as `source`, for the same recipients; None if
    `source` is not sealed. What cannot be read is left out."""
    master = marker.master_of(source)
    if master is None:
        return None
    files = []
    for name, wrapped in key_files.sound(source):
        note = key_files.note_path(name)
        with suppress(errors.Damaged):
            files.append((note, source.read(note, layout.MAX_NOTE)))
        files.append((key_files.path_of(name), wrapped))
    return NewSeal(master, files)


def bring(seal: NewSeal, dest: Store) -> None:
    """Add the key files that `dest` lacks, so that the recipients of another store with the same master key can open
    it, too. Nobody is locked out. OutputError."""
    there = dest.files(layout.KEYS)
    lacking = [(path, data) for path, data in seal.files if path.rpartition("/")[2] not in there]
    if lacking:
        _put(dest, lacking)
