"""The key files of a sealed store: copies of its one master key, each wrapped for some who may open it.

A store is sealed if its marker says so, by the id of the master key. A copy is a file of age, and a document beside it
tells for whom it is; the first counts, the second is a note, and only who has the master key knows whether it is true.
What opens and holds another key than the marker's was swapped or forged, and is never used.

Owns: where they are, which of them open, what is said where none does. Must not know: what is sealed with the keys,
how age wraps.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ..core import errors, members
from ..crypto import age, keys
from ..crypto.keys import StoreKeys
from ..crypto.recipients import AGE, MASTER, PASSPHRASE, SSH, Identity
from ..crypto.seal import Sealed
from ..format import findings, layout
from ..storage.base import Store
from . import marker
from .marker import NewSeal

_WRAPPED, _NOTE = ".age", ".json"
_NAMED_BY = "name an identity that opens it: --identity FILE, or NBDPULL_IDENTITY_FILE"
PLAIN = "the store is not sealed: it has no keys; nbdpull init makes a new store that is"


@dataclass(frozen=True)
class _Note:
    """sha256: of the file of age that it is about."""

    sha256: str
    when: str
    who: str
    recipient: Optional[str]
    label: str = ""


class KeyFile(NamedTuple):
    """name: of the file, without its end. recipient: a word, None: a passphrase, or not known. when, who: of its
    making; "" where no note is there that is about this file."""

    name: str
    by_passphrase: bool
    recipient: Optional[str]
    label: str
    when: str
    who: str

    @property
    def kind(self) -> str:
        """Of the identity that opens it; "unknown" where there is no note."""
        if self.by_passphrase:
            return PASSPHRASE
        return "unknown" if self.recipient is None else AGE if self.recipient.startswith("age") else SSH

    @property
    def of(self) -> str:
        """Whose it is, for people: a label, the comment of an ssh key, or the end of the digits."""
        if self.label or self.by_passphrase or self.recipient is None:
            return self.label or ("a passphrase" if self.by_passphrase else "not noted")
        kind, _, rest = self.recipient.partition(" ")
        digits, _, comment = rest.partition(" ")
        return f"{kind} {comment or '…' + digits[-12:]}" if digits else f"{kind[:12]}…{kind[-4:]}"

    @property
    def whose(self) -> str:
        """For messages."""
        return f"{self.name} ({self.of})"


class Opened(NamedTuple):
    """key_file: which one was opened; None: the identity is the master key itself."""

    master: bytes
    identity: Identity
    key_file: Optional[str]

    def __repr__(self) -> str:
        return f"<the master key by {self.identity!r}>"


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
        path = _new_path()
        note: layout.Document = {
            "format": layout.FORMAT,
            "requires": [],
            **findings.now(),
            "recipient": word,
            "label": label,
            "sha256": _sha256(data),
        }
        found += [(path + _NOTE, layout.seal_with_mac(note, mac)), (path + _WRAPPED, data)]
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _new_path() -> str:
    """Of a key file that no store has had, without its end."""
    return f"{layout.KEYS}/{secrets.token_hex(4)}"


def listed(store: Store) -> list[KeyFile]:
    """Those of a store, the oldest first. Needs no key. StoreError where it is not sealed."""
    if marker.master_of(store) is None:
        raise errors.StoreError(f"{store.root}: {PLAIN}")
    found = [_listed(store, name) for name in _names(store)]
    return sorted(found, key=lambda each: (each.when, each.name))


def _names(store: Store) -> list[str]:
    return [name[: -len(_WRAPPED)] for name in store.files(layout.KEYS) if name.endswith(_WRAPPED)]


def _listed(store: Store, name: str) -> KeyFile:
    by_passphrase, note = False, None
    with suppress(errors.Damaged):
        data, path = _read(store, name)
        by_passphrase = age.takes_passphrase(data, path)
        note = _note(store, name, data)
    if note is None:
        return KeyFile(name, by_passphrase, None, "", "", "")
    return KeyFile(name, by_passphrase, note.recipient, note.label, note.when, note.who)


def _note(store: Store, name: str, wrapped: bytes, opened: Optional[Opened] = None) -> Optional[_Note]:
    """What is noted of a file of these bytes; None where nothing is, or it is about another file. opened: to prove that
    nobody wrote it who has not the master key."""
    path = f"{layout.KEYS}/{name}{_NOTE}"
    try:
        data = store.read(path, layout.MAX_NOTE)
        note = members.build(_Note, layout.unseal(data, store.path(path)))
    except (errors.NbdpullError, ValueError):
        return None
    if note.sha256 != _sha256(wrapped):
        return None
    return note if opened is None or layout.has_mac(data, Sealed(keys.of_master(opened.master)).mac) else None


def require_true(store: Store, opened: Opened, key: KeyFile) -> None:
    """Damaged where what a list tells of a key was written by somebody who has not the master key."""
    is_told = any(key._replace(name="", by_passphrase=False))
    if is_told and _note(store, key.name, _read(store, key.name)[0], opened) is None:
        raise errors.Damaged(
            f"{store.path(layout.KEYS, key.name + _NOTE)}: not made with the key of this store: it was changed or "
            "forged, and whose key it is beside nobody knows; to remove that one, name it by its first word, and add "
            "--force"
        )


def _read(store: Store, name: str) -> tuple[bytes, str]:
    """(Its bytes, how a message names it)"""
    path = f"{layout.KEYS}/{name}{_WRAPPED}"
    return store.read(path, age.MAX_FILE), store.path(path)


def warnings(store: Store) -> list[str]:
    """What its owner should know of the keys of a store, one text each; none of one that is not sealed."""
    if marker.master_of(store) is None:
        return []
    sound = {name for name, _ in _sound(store)}
    there = [each for each in listed(store) if each.name in sound]
    if not there:
        return [_none_left(store)]
    if len(there) == 1:
        return [
            f"only {there[0].whose} opens {store.root}: if it is lost, the backups are; add another one with nbdpull "
            "key add, or keep the master key with nbdpull key export"
        ]
    return []


def keys_of(store: Store, tried: Sequence[Identity]) -> StoreKeys:
    """Of a sealed store. KeyNeeded where nobody opens it, Damaged where only forged or damaged copies are there.
    StoreError where it is not sealed. MissingSoftware."""
    return keys.of_master(open_master(store, tried).master)


def unlocked(root: str, master: Optional[bytes]) -> Store:
    """The Store at a place; a master key that was opened before unlocks it."""
    store = marker.open_store(root)
    if master is not None:
        marker.unlock(store, keys.of_master(master))
    return store


def open_master(store: Store, tried: Sequence[Identity], without: Collection[str] = ()) -> Opened:
    """The master key of a sealed store, by the first identity that opens a copy. without: names of some that are not to
    be counted on. Errors as of keys_of; StoreError where it is not sealed."""
    wanted = marker.master_of(store)
    if wanted is None:
        raise errors.StoreError(f"{store.root}: {PLAIN}")
    if not tried:
        raise errors.KeyNeeded(f"{store.root} is sealed: {_NAMED_BY}")
    flaws: list[errors.Damaged] = []
    for opened in _attempts(store, [name for name in _names(store) if name not in without], tried, flaws):
        if len(opened.master) == keys.MASTER_SIZE and keys.of_master(opened.master).id == wanted:
            _require_meant(store, opened.identity, wanted)
            return opened
        flaws.append(_foreign(store, opened, wanted))
    if flaws:
        raise flaws[0]
    raise _nobody(store, tried)


def _require_meant(store: Store, identity: Identity, master: str) -> None:
    """Whoever can replace a marker can wrap the key that it names for a recipient, so that a first pull would be sealed
    for him: only who has the identity can say that it is the right one."""
    if identity.only and master not in identity.only:
        raise errors.Damaged(
            f"{store.root} is sealed with master key {master}, and {identity.name} says that it is only for "
            f"{', '.join(identity.only)}: it is another store, or its marker was replaced"
        )


def _attempts(
    store: Store, names: list[str], tried: Sequence[Identity], flaws: list[errors.Damaged]
) -> Iterable[Opened]:
    """What opens, master keys first, and what takes a second, passphrases, last. flaws: gets what is damaged."""
    yield from (Opened(bytes(each.secret), each, None) for each in tried if each.kind == MASTER)
    last: list[tuple[str, bytes, str]] = []
    for name in names:
        try:
            data, path = _read(store, name)
            if age.takes_passphrase(data, path):
                last.append((name, data, path))
                continue
        except errors.Damaged as error:
            flaws.append(error)
            continue
        yield from _attempt(name, data, path, tried)
    for each in last:
        yield from _attempt(*each, tried)


def _attempt(name: str, data: bytes, path: str, tried: Sequence[Identity]) -> Iterable[Opened]:
    found = age.unwrap(data, path, tried)
    if found:
        yield Opened(found.secret, found.identity, name)


def _foreign(store: Store, opened: Opened, wanted: str) -> errors.Damaged:
    where = store.path(layout.KEYS, opened.key_file + _WRAPPED) if opened.key_file else opened.identity.name
    return errors.Damaged(
        f"{where}: does not hold the master key of this store ({wanted}): it was swapped or forged, or is of "
        "another store"
    )


def _none_left(store: Store) -> str:
    return (
        f"{store.path(layout.KEYS)}: no key file that can be read is there; bring them back from a copy of the store, "
        "or name the master key (nbdpull key export) with --identity"
    )


def _nobody(store: Store, tried: Sequence[Identity]) -> errors.NbdpullError:
    there = listed(store)
    if not there:
        return errors.Damaged(_none_left(store))
    return errors.KeyNeeded(
        f"{store.root} does not open for {_what(tried)}; it is sealed for {', '.join(each.whose for each in there)}"
    )


def _what(tried: Sequence[Identity]) -> str:
    return ", ".join(dict.fromkeys(each.what for each in tried))


def add(store: Store, opened: Opened, words: Sequence[str], passphrase: Optional[bytes], label: str) -> list[str]:
    """Let more open the store; the names of the new key files. UsageError of one who does already."""
    notes = [_note(store, name, data, opened) for name, data in _sound(store)]
    known = {note.recipient for note in notes if note}  # a forged one lets nobody in, and is to shut nobody out
    for word in words:
        if word in known:
            raise errors.UsageError(f"recipient {members.short(word)} opens the store already: see nbdpull key list")
    files = _files(opened.master, words, passphrase, label)
    marker.put_keys(store, files)
    return [path.rpartition("/")[2][: -len(_WRAPPED)] for path, _ in files if path.endswith(_WRAPPED)]


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
    before, files = _names(store), _files(opened.master, words, passphrase, label)
    if proof is not None and not _is_opened(files, proof):
        raise errors.UsageError(
            f"{store.root} would not open any more for {_what(proof)}: name its recipient, too, or an identity that "
            "opens one of the new keys, or add --force"
        )
    marker.put_keys(store, files)
    remove(store, before)


def _is_opened(files: Iterable[tuple[str, bytes]], tried: Sequence[Identity]) -> bool:
    """Whether one of them opens a new key file, or needs none."""
    if any(each.kind == MASTER for each in tried):
        return True
    return any(age.unwrap(data, path, tried) for path, data in files if path.endswith(_WRAPPED))


def exported(opened: Opened, words: Sequence[str], passphrase: Optional[bytes]) -> str:
    """The master key as text, wrapped for these: lines of a file of age, which the store does not have. What it holds
    is an identity. UsageError, MissingSoftware."""
    text = keys.text_of(opened.master).encode() + b"\n"
    return age.armored(age.wrap(text, words) if passphrase is None else age.wrap_by_passphrase(text, passphrase))


def found(store: Store, named: str) -> KeyFile:
    """The key file of that name, recipient or label; UsageError where there is none, or several."""
    there = listed(store)
    fitting = [each for each in there if named in (each.name, each.recipient, each.label)]
    if len(fitting) == 1:
        return fitting[0]
    told = ", ".join(each.whose for each in fitting or there)
    why = "is the name of several" if fitting else "is none of its keys"
    raise errors.UsageError(f"{store.root}: {members.short(named)} {why}; name one by the first word: {told}")


def remove(store: Store, gone: Sequence[str], proof: Optional[Sequence[Identity]] = None) -> None:
    """Remove key files by their names, but never the last that may open it; UsageError, OutputError, Busy.

    That one is a file of age does not tell that the master key is in it: an init that died leaves such files, and a
    thief makes them. proof: identities, one of which opens what stays, else UsageError; None: nobody is there to try.
    """
    with store.locked("", "try again"):
        sound = dict(_sound(store))
        if proof is not None:
            _require_opened(store, proof, gone)
        if not sound.keys() - set(gone):
            raise errors.UsageError(
                f"{store.root}: nobody could open it any more: add another key first (nbdpull key add)"
            )
        for name in gone:
            store.delete(f"{layout.KEYS}/{name}{_WRAPPED}")
        if not _names(store):  # where a lock keeps nobody out, another one removed the rest meanwhile
            marker.put_keys(store, [(f"{_new_path()}{_WRAPPED}", sound[name]) for name in gone if name in sound])
            raise errors.Busy(f"{store.root}: another nbdpull removed all other keys meanwhile: none of these was")
        for name in gone:
            store.delete(f"{layout.KEYS}/{name}{_NOTE}")


def _require_opened(store: Store, proof: Sequence[Identity], gone: Sequence[str]) -> None:
    files = [each for each in proof if each.kind != MASTER]  # the master key itself opens it whatever stays
    try:
        open_master(store, files, without=gone)
    except (errors.KeyNeeded, errors.Damaged) as error:
        names = ", ".join(each.whose for each in listed(store) if each.name in gone)
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
    for name, wrapped in _sound(source):
        note = f"{layout.KEYS}/{name}{_NOTE}"
        with suppress(errors.Damaged):
            files.append((note, source.read(note, layout.MAX_NOTE)))
        files.append((f"{layout.KEYS}/{name}{_WRAPPED}", wrapped))
    return NewSeal(master, files)


def _sound(store: Store) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each key file that is a file of age."""
    for name in _names(store):
        with suppress(errors.Damaged):
            data, path = _read(store, name)
            age.takes_passphrase(data, path)
            yield name, data


def bring(seal: NewSeal, dest: Store) -> None:
    """Let those open a store, too, whose key files another of the same master key has; OutputError. Nobody is shut
    out."""
    there = dest.files(layout.KEYS)
    lacking = [(path, data) for path, data in seal.files if path.rpartition("/")[2] not in there]
    if lacking:
        marker.put_keys(dest, lacking)
