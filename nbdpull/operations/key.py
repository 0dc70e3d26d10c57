"""Key: list, change, test and export the keys that open a sealed store.

Must not know: how a key is wrapped, where key files are.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Callable, Optional

from ..core import errors, members
from ..core.choices import KeyAction
from ..core.errors import Check, Report
from ..crypto import identity_files
from ..crypto.recipients import AGE, SSH
from ..repository import key_changes, key_files, keyring, marker
from ..repository.key_files import KeyFile
from ..storage.base import Store
from .options.stores import KeyOptions as Options

_NOBODY = "say what should open the {}: --recipient age1…, --recipient 'ssh-ed25519 …', or --passphrase-file FILE"
_KEPT = (
    "the master key is the same as before: anyone who could open the store and kept a copy of it, or of the key files, "
    "can read whatever they get of it, including what is written from now on; to shut them out, start a new store"
)


@dataclass(frozen=True)
class Tried:
    """The test of one identity.

    identity: the file's name in messages. key: name of the key file that it opened, or None. problem: why it does not
    open the store, None if it does. only: ids of the master keys that the file restricts itself to; None if the
    identity cannot open any other.
    """

    identity: str
    key: Optional[str]
    problem: Optional[errors.NbdpullError]
    only: Optional[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Result:
    """The keys of a store.

    master: id of the store's master key. keys: all key files that exist now. tried: the result of a test. exported: the
    lines of a file for age, the result of an export.
    """

    master: str
    keys: list[KeyFile]
    changed: bool = False
    tried: list[Tried] = field(default_factory=list)
    exported: Optional[str] = None
    warnings: list[str] = field(default_factory=list)


def key(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """List, add, remove, replace, test or export keys.

    StoreError if the store is not sealed; KeyNeeded if the identities do not open it; UsageError, Damaged, OutputError,
    MissingSoftware.
    """
    _require_fitting(options)
    store = marker.open_store(options.store)
    keys = key_files.listed(store)
    master = marker.master_of(store) or ""
    if options.action == KeyAction.LIST:
        return Result(master, keys)
    if options.action == KeyAction.TEST:
        tried, open_to_all = _tried(store, options.identities), _open_to_all(options.identities)
        return Result(master, keys, tried=tried, warnings=[*open_to_all, *key_files.warnings(store)])
    if options.action == KeyAction.EXPORT:
        return Result(master, keys, exported=_exported(store, options))
    _CHANGES[options.action](store, options)
    gone = options.action != KeyAction.ADD
    warnings = [_KEPT, *key_files.warnings(store)] if gone else []
    return Result(master, key_files.listed(store), changed=True, warnings=warnings)


_TAKES = {
    KeyAction.ADD: ("recipients", "passphrase_file", "label"),
    KeyAction.ROTATE: ("recipients", "passphrase_file", "label", "force"),
    KeyAction.EXPORT: ("recipients", "passphrase_file"),
    KeyAction.REMOVE: ("key", "force"),
}
_WRITTEN = {"recipients": "--recipient", "passphrase_file": "--passphrase-file", "label": "--label", "key": "KEY",
            "force": "--force"}  # fmt: skip


def _require_fitting(options: Options) -> None:
    """Raise UsageError if an option is given that the action does not take, or one that it needs is missing."""
    takes = _TAKES.get(options.action, ())
    for name, written in _WRITTEN.items():
        if getattr(options, name) and name not in takes:
            raise errors.UsageError(f"key {options.action} takes no {written}")
    if flaw := members.flaw_of_text(options.label):
        raise errors.UsageError(f"--label {flaw}")
    if "recipients" in takes and not (options.recipients or options.passphrase_file):
        raise errors.UsageError(_NOBODY.format("export" if options.action == KeyAction.EXPORT else "store"))
    if options.action == KeyAction.REMOVE and not options.key:
        raise errors.UsageError("name the key to remove: nbdpull key remove DIR KEY; see nbdpull key list")
    if options.action == KeyAction.EXPORT and options.recipients and options.passphrase_file:
        raise errors.UsageError("an export takes a passphrase or recipients, not both: leave out --recipient")


def passphrase(path: Optional[str]) -> Optional[bytes]:
    """Return the passphrase in a file, None without a path; UsageError."""
    return identity_files.new_passphrase(path) if path else None


def _opened(store: Store, options: Options) -> keyring.Opened:
    return keyring.open_master(store, identity_files.given(options.identities))


def _add(store: Store, options: Options) -> None:
    opened = _opened(store, options)
    key_changes.add(store, opened, options.recipients, passphrase(options.passphrase_file), options.label)


def _rotate(store: Store, options: Options) -> None:
    tried = identity_files.given(options.identities)
    opened, proof = keyring.open_master(store, tried), None if options.force else tried
    key_changes.rotate(store, opened, options.recipients, passphrase(options.passphrase_file), options.label, proof)


def _remove(store: Store, options: Options) -> None:
    found = key_files.found(store, options.key or "")
    if options.force:
        key_changes.remove(store, [found.name])
        return
    tried = identity_files.given(options.identities)
    key_changes.require_true(store, keyring.open_master(store, tried), found)
    key_changes.remove(store, [found.name], tried)


_CHANGES: dict[str, Callable[[Store, Options], None]] = {
    KeyAction.ADD: _add,
    KeyAction.REMOVE: _remove,
    KeyAction.ROTATE: _rotate,
}


def _tried(store: Store, named: list[str]) -> list[Tried]:
    files = identity_files.meant(named)
    if not files:
        keyring.open_master(store, [])  # its error says how to name an identity
    return [_try(store, path, name) for path, name in files]


def _open_to_all(named: list[str]) -> list[str]:
    return [
        f"everybody on this machine can read {name}: chmod 600 {shlex.quote(path)}"
        for path, name in identity_files.meant(named)
        if identity_files.is_open_to_all(path)
    ]


def _try(store: Store, path: str, name: str) -> Tried:
    try:
        opened = keyring.open_master(store, identity_files.read(path, name))
        takes_any = opened.identity.kind in (AGE, SSH)  # anyone with the public key can wrap another master key
        return Tried(name, opened.key_file, None, opened.identity.only if takes_any else None)
    except (errors.KeyNeeded, errors.Damaged, errors.UsageError) as error:
        return Tried(name, None, error)


def _exported(store: Store, options: Options) -> str:
    opened = _opened(store, options)
    return key_changes.exported(opened, options.recipients, passphrase(options.passphrase_file))
