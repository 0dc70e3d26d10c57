"""Damaged key files that another store has intact: verify warns of them, and --heal-from brings them back."""

import shutil

import pytest
from identities import path
from key_store import AGE1, AGE2, SSH, exchanged, forged, identities, key_path, made, replaced

from nbdpull.core import errors
from nbdpull.operations.verify import Options, verify
from nbdpull.repository import key_changes, key_files, key_healing, keyring, marker


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "store", AGE1, SSH)


@pytest.fixture
def copy(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "copy")
    return tmp_path / "copy"


def of_age1(store, end=".age"):
    [one] = [each for each in key_files.listed(store) if each.recipient == AGE1]
    return f"@keys/{one.name}{end}"


def content(store):
    return {name: store.read(f"@keys/{name}") for name in store.files("@keys")}


def healed(store, copy, *names):
    found = verify(Options(store.root, identities=[path(name) for name in names], heal_from=copy and str(copy)))
    return [each.path for each in found.healed], [each for each in found.warnings if "has no points" not in each]


def flip(store, where):
    data = bytearray(store.read(where))
    data[-10] ^= 1
    replaced(store, where, bytes(data))


def test_every_file_comes_back_although_no_key_opens(store, copy):
    before = content(store)
    bad = [key_path(store, number) for number in (0, 1)]
    for where in bad:
        flip(store, where)
    with pytest.raises(errors.NbdpullError):
        keyring.open_master(store, identities("age1"))
    paths, warnings = healed(store, copy, "age1")
    assert {*paths} == {*bad} and warnings == [] and content(store) == before
    note = key_path(store, 1, ".json")
    flip(store, note)
    assert healed(store, copy, "age1") == ([note], []) and content(store) == before
    assert healed(store, copy, "ed25519") == ([], [])


def test_without_a_copy_there_is_a_warning(store):
    where = of_age1(store)
    replaced(store, where, b"?")
    [warning] = healed(store, None, "ed25519")[1]
    assert warning.startswith(f"{store.path(where)} is damaged: bring it back") and "--heal-from" in warning


@pytest.mark.parametrize("how", ["damaged", "forged", "gone", "of another key"])
def test_what_the_copy_does_not_have_whole_stays_as_it_is(store, copy, tmp_path, how):
    where = of_age1(store)
    other = {"damaged": b"?", "forged": forged(), "gone": None, "of another key": b""}[how]
    if how == "of another key":
        copy = made(tmp_path / "other", AGE1).root
    elif other is None:
        (copy / where).unlink()
    else:
        (copy / where).write_bytes(other)
    flip(store, where)
    before = content(store)
    paths, [warning] = healed(store, copy, "ed25519")
    assert paths == [] and content(store) == before
    assert warning.startswith(f"{store.path(where)} is damaged: {copy} does not have it intact")


def test_two_files_that_were_swapped_are_put_back(store, copy):
    before = content(store)
    exchanged(store, [".age"])
    assert len(healed(store, copy, "age1")[0]) == 2 and content(store) == before


def test_a_key_that_was_removed_does_not_come_back(store, copy):
    key_changes.remove(store, [of_age1(store)[6:-4]])
    key_changes.add(store, keyring.open_master(store, identities("ed25519")), [AGE2], None, "")
    before = content(store)
    assert healed(store, copy, "ed25519") == ([], []) and content(store) == before


def test_a_store_that_is_not_sealed_has_no_key_files(tmp_path):
    assert key_healing.damaged(marker.open_or_create(str(tmp_path / "plain"))) == []
