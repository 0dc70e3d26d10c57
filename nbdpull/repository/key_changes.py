"""Who can open a sealed store, changed: copies of its master key made, added, removed, taken to another store.

Owns: that nobody who is to open the store is shut out, and which notes are made. Must not know: which identities a user
named, how age wraps.
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
from . import immutable, key_files, keyring, marker
from .key_files import KeyFile
from .keyring import Opened
from .marker import NewSeal


def new(words: Sequence[str], passphrase: Optional[bytes]) -> NewSeal:
    """That of a new master key, which all of these open. UsageError, MissingSoftware: also of what is needed to seal
    with it."""
    master = keys.new_master()
    made = keys.of_master(master)
    Sealed(made).frame(b"", b"")  # wrapping takes other software; the first pull would be late to say so
    return NewSeal(made.id, _files(master, words, passphrase, ""))


def _files(master: bytes, words: Sequence[str], passphrase: Optional[bytes], label: str) -> list[tuple[str, bytes]]:
    """Of one copy for each; a note before its copy, which alone counts."""
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
    """Of a key file that no store has had."""
    return secrets.token_hex(4)


def _put(store: Store, files: list[tuple[str, bytes]]) -> None:
    """Key files that are to be there as long as the points that need them."""
    immutable.begin(store)
    marker.put_keys(store, files)


def add(store: Store, opened: Opened, words: Sequence[str], passphrase: Optional[bytes], label: str) -> list[str]:
    """Let more open the store; the names of the new key files. UsageError of one who does already."""
    notes = [key_files.note(store, name, data, keys.of_master(opened.master)) for name, data in key_files.sound(store)]
    known = {note.recipient for note in notes if note}  # a forged one lets nobody in, and is to shut nobody out
    for word in words:
        if word in known:
            raise errors.UsageError(f"recipient {members.short(word)} opens the store already: see nbdpull key list")
    files = _files(opened.master, words, passphrase, label)
    _put(store, files)
    return [path.rpartition("/")[2][: -len(key_files.WRAPPED)] for path, _ in files if path.endswith(key_files.WRAPPED)]


def require_true(store: Store, opened: Opened, key: KeyFile) -> None:
    """Damaged where what a list tells of a key was written by somebody who has not the master key."""
    is_told = any(key._replace(name="", by_passphrase=False))
    wrapped, _ = key_files.read(store, key.name)
    if is_told and key_files.note(store, key.name, wrapped, keys.of_master(opened.master)) is None:
        raise errors.Damaged(
            f"{store.path(key_files.note_path(key.name))}: not made with the key of this store: it was changed or "
            "forged, and whose key it is beside nobody knows; to remove that one, name it by its first word, and add "
            "--force"
        )


def rotate(
    store: Store,
    opened: Opened,
    words: Sequence[str],
    passphrase: Optional[bytes],
    label: str,
    proof: Optional[Sequence[Identity]] = None,
) -> None:
    """Let these open the store, and nobody else who needs a key file for it. The master key stays. proof: identities,
    one of which opens it afterwards, else UsageError; None: nobody is there to try. Errors as of add, remove; where it
    dies, more can open the store than before, and none less."""
    before, files = key_files.names(store), _files(opened.master, words, passphrase, label)
    if proof is not None and not _is_opened(files, proof):
        raise errors.UsageError(
            f"{store.root} would not open any more for {keyring.what(proof)}: name its recipient, too, or an identity "
            "that opens one of the new keys, or add --force"
        )
    _put(store, files)
    remove(store, before)


def _is_opened(files: Iterable[tuple[str, bytes]], tried: Sequence[Identity]) -> bool:
    """Whether one of them opens a new key file, or needs none."""
    if any(each.kind == MASTER for each in tried):
        return True
    return any(age.unwrap(data, path, tried) for path, data in files if path.endswith(key_files.WRAPPED))


def exported(opened: Opened, words: Sequence[str], passphrase: Optional[bytes]) -> str:
    """The master key as text, wrapped for these: lines of a file of age, which the store does not have. What it holds
    is an identity. UsageError, MissingSoftware."""
    text = keys.text_of(opened.master).encode() + b"\n"
    return age.armored(age.wrap(text, words) if passphrase is None else age.wrap_by_passphrase(text, passphrase))


def remove(store: Store, gone: Sequence[str], proof: Optional[Sequence[Identity]] = None) -> None:
    """Remove key files by their names, but never the last that may open it; UsageError, OutputError, Busy.

    That one is a file of age does not tell that the master key is in it: an init that died leaves such files, and a
    thief makes them. proof: identities, one of which opens what stays, else UsageError; None: nobody is there to try.
    """
    with store.locked("", "try again"):
        sound = dict(key_files.sound(store))
        if proof is not None:
            _require_opened(store, proof, gone)
        if not sound.keys() - set(gone):
            raise errors.UsageError(
                f"{store.root}: nobody could open it any more: add another key first (nbdpull key add)"
            )
        for name in gone:
            store.delete(key_files.path_of(name))
        if not key_files.names(store):  # where a lock keeps nobody out, another one removed the rest meanwhile
            _put(store, [(key_files.path_of(_new_name()), sound[name]) for name in gone if name in sound])
            raise errors.Busy(f"{store.root}: another nbdpull removed all other keys meanwhile: none of these was")
        for name in gone:
            store.delete(key_files.note_path(name))


def _require_opened(store: Store, proof: Sequence[Identity], gone: Sequence[str]) -> None:
    files = [each for each in proof if each.kind != MASTER]  # the master key itself opens it whatever stays
    try:
        keyring.open_master(store, files, without=gone)
    except (errors.KeyNeeded, errors.Damaged) as error:
        names = ", ".join(each.whose for each in key_files.listed(store) if each.name in gone)
        raise errors.UsageError(
            f"without {names} nothing that is at hand opens {store.root}, add --force if that is meant: {error}"
        ) from None


def copied(source: Store) -> Optional[NewSeal]:
    """That of a store that is to have the same master key, which the same open; None where `source` is not sealed. What
    cannot be read is left out."""
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
    """Let those open a store, too, whose key files another of the same master key has; OutputError. Nobody is shut
    out."""
    there = dest.files(layout.KEYS)
    lacking = [(path, data) for path, data in seal.files if path.rpartition("/")[2] not in there]
    if lacking:
        _put(dest, lacking)
