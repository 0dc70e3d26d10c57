"""A sealed store without points, for tests of opening it: two recipients, and an attacker's changes to its files."""

import hashlib
import json

from identities import path, recipient

from nbdpull.crypto import identity_files
from nbdpull.format import layout
from nbdpull.repository import key_changes, key_files, marker

AGE1, AGE2, SSH = recipient("age1"), recipient("age2"), recipient("ed25519")


def identities(*names):
    return identity_files.given([path(name) for name in names])


def made(root, *words, passphrase=None, **options):
    return marker.open_or_create(str(root), seal=key_changes.new(words, passphrase), **options)


def key_path(store, number=0, end=".age"):
    return f"{layout.KEYS}/{key_files.listed(store)[number].name}{end}"


def replaced(store, where, new):
    """Replace the content of a file of a store, as an attacker does."""
    with open(store.path(where), "wb") as file:
        file.write(new)


def forged(words=(AGE1,)):
    """Return a key file made by an attacker, who chose its master key, for the recipients of a store: these are
    public."""
    return next(data for name, data in key_changes.new(words, None).files if name.endswith(".age"))


def exchanged(store, ends, resealed=False):
    """Exchange the files of two keys."""
    one, other = (f"{layout.KEYS}/{each.name}" for each in key_files.listed(store))
    for end in ends:
        first, second = store.read(one + end), store.read(other + end)
        replaced(store, one + end, second)
        replaced(store, other + end, first)
    if resealed:
        for where in (one, other):
            note = json.loads(store.read(where + ".json"))
            del note["digest"]
            note["sha256"] = hashlib.sha256(store.read(where + ".age")).hexdigest()
            replaced(store, where + ".json", layout.seal({**note, "mac": note.pop("mac")}))
