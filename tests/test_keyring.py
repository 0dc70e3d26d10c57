"""Who opens a sealed store, and that no other master key is ever used."""

import pytest
from identities import data, path
from key_store import AGE1, AGE2, SSH, forged, identities, key_path, made, replaced

from nbdpull.core import errors
from nbdpull.crypto import age, identity_files, keys
from nbdpull.format import layout
from nbdpull.repository import key_changes, key_files, keyring, marker


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "store", AGE1, SSH)


def test_only_its_recipients_open_it(store):
    one, other = (keyring.open_master(store, identities(name)) for name in ("age1", "ed25519"))
    assert one.master == other.master and one.key_file != other.key_file
    assert keyring.keys_of(store, identities("age1")) == keys.of_master(one.master)
    assert repr(one) == f"<the master key by <age identity of {path('age1')}>>"
    assert keys.of_master(one.master).id == marker.master_of(store)
    with pytest.raises(errors.KeyNeeded) as caught:
        keyring.keys_of(store, identities("age2", "passphrase"))
    message, names = str(caught.value), [each.name for each in key_files.listed(store)]
    assert message.startswith(
        f"{store.root} does not open for {path('age2')} (an age key), {path('passphrase')} (a passph"
    )
    assert "backup@host)" in message and all(name in message for name in names)


def test_without_an_identity_it_says_how_to_name_one(store):
    with pytest.raises(
        errors.KeyNeeded, match=r"store is sealed: name an identity .* --identity FILE, or NBDPULL_IDEN"
    ):
        keyring.keys_of(store, [])


def test_a_store_that_is_not_sealed_needs_none(tmp_path):
    store = marker.open_or_create(str(tmp_path / "plain"))
    assert marker.master_of(store) is None
    assert store.folders() == []
    for call in (key_files.listed, lambda found: keyring.keys_of(found, identities("age1"))):
        with pytest.raises(errors.StoreError, match="plain: the store is not sealed"):
            call(store)


def test_the_master_key_itself_opens_it_without_any_key_file(store, tmp_path):
    opened = keyring.open_master(store, identities("age1"))
    (tmp_path / "paper").write_text(keys.text_of(opened.master) + "\n")
    store.remove_folder(layout.KEYS)
    again = keyring.open_master(store, identity_files.given([str(tmp_path / "paper")]))
    assert (again.master, again.key_file) == (opened.master, None)
    with pytest.raises(errors.Damaged, match="no key file that can be read is there; bring them back"):
        keyring.keys_of(store, identities("age1"))
    key_changes.add(store, again, [AGE2], None, "")
    assert keyring.open_master(store, identities("age2")).master == opened.master


def test_another_master_key_is_refused(store, tmp_path):
    (tmp_path / "paper").write_text(keys.text_of(bytes(32)))
    with pytest.raises(errors.Damaged, match=r"paper: does not hold the master key of this store"):
        keyring.keys_of(store, identity_files.given([str(tmp_path / "paper")]))


@pytest.mark.e2e  # as test_age: scrypt takes a second each time
def test_a_passphrase_opens_it(tmp_path):
    store = made(tmp_path / "store", passphrase=b"correct horse")
    [key] = key_files.listed(store)
    assert (key.by_passphrase, key.recipient) == (True, None) and "passphrase" in key.whose
    assert keyring.open_master(store, identities("age1", "passphrase")).key_file == key.name


def test_a_forged_key_file_is_refused_by_its_id(store):
    for number in (0, 1):
        replaced(store, key_path(store, number), forged())
    with pytest.raises(
        errors.Damaged, match=rf"{layout.KEYS}/\w+\.age: does not hold the master key .*swapped or forged"
    ):
        keyring.keys_of(store, identities("age1"))


def test_an_identity_that_says_which_master_key_it_is_for(store, tmp_path):
    """In a store without points, everything else can be replaced."""
    mine, other = marker.master_of(store), made(tmp_path / "other", AGE1)
    (tmp_path / "key").write_text(f"# nbdpull: only for master key {mine}\n{data('age1').decode()}")
    tried = identity_files.given([str(tmp_path / "key")])
    assert keyring.keys_of(store, tried).id == mine
    with pytest.raises(
        errors.Damaged, match=rf"other is sealed with master key \w+, and .*key says .* only for {mine}:"
    ):
        keyring.keys_of(other, tried)
    assert keyring.keys_of(other, identities("age1")).id == marker.master_of(other)


def test_an_unusable_identity_beside_a_good_one_does_no_harm(store):
    for number in range(1, 5):
        store.publish(f"{layout.KEYS}/{number}0000000.age", forged())
    store.publish(f"{layout.KEYS}/00000000.age", age.wrap(b"x" * 31, [AGE1]))
    store.publish(f"{layout.KEYS}/0fffffff.age", b"nothing")
    wanted = marker.master_of(store)
    assert all(keyring.keys_of(store, identities(name)).id == wanted for name in ("age1", "ed25519"))


def test_a_key_file_that_holds_no_key(store):
    for number in (0, 1):
        replaced(store, key_path(store, number), age.wrap(b"x" * 31, [AGE1]))
    with pytest.raises(errors.Damaged, match=r"\.age: does not hold the master key of this store"):
        keyring.keys_of(store, identities("age1"))


@pytest.mark.parametrize("new", [b"", b"\0" * 300, b"age-encryption.org/v1\n", b"x" * (age.MAX_FILE + 1)])
def test_damaged_ones_are_named(store, new):
    for where in [key_path(store, number) for number in (0, 1)]:
        replaced(store, where, new)
    with pytest.raises(errors.Damaged, match=r"@keys/\w+\.age: (not a file of age|the file has more than)"):
        keyring.keys_of(store, identities("age1"))
    assert len(key_files.listed(store)) == 2


def test_a_changed_byte_anywhere_in_a_key_file_opens_nothing_else(store):
    mine = [number for number, each in enumerate(key_files.listed(store)) if each.recipient == AGE1]
    where = key_path(store, *mine)
    whole, wanted = store.read(where), marker.master_of(store)
    for at in range(0, len(whole), 3):
        replaced(store, where, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((errors.KeyNeeded, errors.Damaged)):
            keyring.keys_of(store, identities("age1"))
    assert keyring.keys_of(store, identities("ed25519")).id == wanted
