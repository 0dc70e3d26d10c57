"""Who gets access to a sealed store and who loses it, and the keys of its copies."""

import contextlib
import hashlib
import json
import os

import pytest
from key_store import AGE1, AGE2, SSH, exchanged, forged, identities, key_path, made, replaced

from nbdpull.core import errors
from nbdpull.crypto import age
from nbdpull.format import findings, layout
from nbdpull.repository import key_changes, key_files, keyring, marker


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "store", AGE1, SSH)


def test_a_note_that_was_written_without_the_master_key(store):
    opened = keyring.open_master(store, identities("age1"))
    for each in key_files.listed(store):
        key_changes.require_true(store, opened, each)
    exchanged(store, (".age",), resealed=True)
    for each in key_files.listed(store):
        assert each.recipient
        with pytest.raises(
            errors.Damaged, match=rf"{each.name}\.json: not made with the key of this store: .* --force"
        ):
            key_changes.require_true(store, opened, each)
        note = json.loads(store.read(f"{layout.KEYS}/{each.name}.json"))
        del note["mac"], note["digest"]
        replaced(store, f"{layout.KEYS}/{each.name}.json", layout.seal({**note, "when": "", "who": ""}))
        with pytest.raises(errors.Damaged, match="not made with the key"):
            key_changes.require_true(store, opened, key_files.found(store, each.recipient))
    store.remove_file(key_path(store, 0, ".json"))
    key_changes.require_true(store, opened, next(each for each in key_files.listed(store) if not each.recipient))


def test_an_identity_that_opens_the_store_can_admit_another(store):
    opened = keyring.open_master(store, identities("ed25519"))
    [name] = key_changes.add(store, opened, [AGE2], None, "safe")
    assert keyring.open_master(store, identities("age2")) == (opened.master, *identities("age2"), name)
    assert [(each.recipient, each.label) for each in key_files.listed(store) if each.name == name] == [(AGE2, "safe")]
    with pytest.raises(errors.UsageError, match="opens the store already"):
        key_changes.add(store, opened, [AGE2], None, "")


def test_a_forged_note_admits_nobody_and_locks_nobody_out(store):
    about = {"format": layout.FORMAT, "requires": [], **findings.now(), "recipient": AGE2, "label": ""}
    for name, wrapped in (("00000000", b"junk"), ("00000001", forged((AGE2,)))):
        note = {**about, "sha256": hashlib.sha256(wrapped).hexdigest()}
        store.publish(f"{layout.KEYS}/{name}.json", layout.seal(note))
        store.publish(f"{layout.KEYS}/{name}.age", wrapped)
    opened = keyring.open_master(store, identities("age1"))
    key_changes.add(store, opened, [AGE2], None, "")
    assert keyring.open_master(store, identities("age2")).master == opened.master


def test_a_recipient_whose_key_file_is_damaged_can_be_added_again(store):
    opened, mine = keyring.open_master(store, identities("ed25519")), key_files.found(store, AGE1).name
    replaced(store, f"{layout.KEYS}/{mine}.age", b"damaged")
    key_changes.add(store, opened, [AGE1], None, "")
    assert keyring.open_master(store, identities("age1")).master == opened.master


def test_the_last_key_file_is_kept(store):
    one, other = key_files.listed(store)
    key_changes.remove(store, [one.name])
    assert key_files.listed(store) == [other] and len(store.files(layout.KEYS)) == 2
    with pytest.raises(errors.UsageError, match="nobody could open it any more"):
        key_changes.remove(store, [other.name])
    assert key_files.listed(store) == [other]


def test_damaged_key_files_do_not_count_as_the_last(store):
    one, other = key_files.listed(store)
    replaced(store, f"{layout.KEYS}/{one.name}.age", b"damaged")
    with pytest.raises(errors.UsageError, match="nobody could open it any more"):
        key_changes.remove(store, [other.name])
    key_changes.remove(store, [one.name])
    assert key_files.listed(store) == [other]


def test_two_concurrent_removals_without_locks(store, monkeypatch):
    one, other = key_files.listed(store)
    master, real = keyring.open_master(store, identities("age1", "ed25519")).master, store.delete

    def delete(path):
        monkeypatch.setattr(store, "delete", real)
        key_changes.remove(store, [other.name])
        real(path)

    monkeypatch.setattr(store, "locked", lambda *args: contextlib.nullcontext())
    monkeypatch.setattr(store, "delete", delete)
    with pytest.raises(errors.Busy, match="another nbdpull removed all other keys meanwhile"):
        key_changes.remove(store, [one.name])
    assert (
        len(key_files.listed(store)) == 1 and keyring.open_master(store, identities("age1", "ed25519")).master == master
    )


def test_two_concurrent_removals(store):
    """Neither waits: together they could remove the last one."""
    with store.locked("", "x"), pytest.raises(errors.Busy):
        key_changes.remove(store, [key_files.listed(store)[0].name])


def test_a_copy_of_a_store_opens_for_the_same(store, tmp_path):
    assert key_changes.copied(marker.open_or_create(str(tmp_path / "plain"))) is None
    other = marker.open_or_create(str(tmp_path / "copy"), seal=key_changes.copied(store))
    assert marker.master_of(other) == marker.master_of(store) and marker.uuid_of(other) != marker.uuid_of(store)
    assert key_files.listed(other) == key_files.listed(store)
    assert keyring.keys_of(other, identities("age1")) == keyring.keys_of(store, identities("age1"))


def test_a_copy_that_died_before_its_marker_can_be_made_again(store, tmp_path):
    """Wherever it died in its key files."""
    seal = key_changes.copied(store)
    for count in range(1, len(seal.files) + 1):
        root = tmp_path / f"copy{count}"
        (root / layout.KEYS).mkdir(parents=True)
        for where, wrapped in seal.files[:count]:
            (root / where).write_bytes(wrapped)
        other = marker.open_or_create(str(root), seal=seal)
        assert key_files.listed(other) == key_files.listed(store) and marker.master_of(other) == marker.master_of(store)
    (root / layout.MARKER).unlink()
    (root / where).write_bytes(b"another")
    with pytest.raises(errors.OutputExists):
        marker.open_or_create(str(root), seal=seal)


def test_a_copy_gets_the_keys_that_it_lacks_and_loses_none(store, tmp_path):
    other = marker.open_or_create(str(tmp_path / "copy"), seal=key_changes.copied(store))
    opened = keyring.open_master(store, identities("age1"))
    [new] = key_changes.add(store, opened, [AGE2], None, "")
    key_changes.remove(store, [each.name for each in key_files.listed(store) if each.name != new])
    store.publish(f"{layout.KEYS}/ffffffff.age", b"x" * (age.MAX_FILE + 1))
    store.remove_file(f"{layout.KEYS}/{new}.json")
    key_changes.bring(key_changes.copied(store), other)
    assert len(key_files.listed(other)) == 3 and f"{new}.age" in other.files(layout.KEYS)
    assert all(
        keyring.open_master(other, identities(name)).master == opened.master for name in ("age1", "age2", "ed25519")
    )
    before = os.listdir(other.path(layout.KEYS))
    key_changes.bring(key_changes.copied(store), other)
    assert os.listdir(other.path(layout.KEYS)) == before
