"""The key files of a sealed store: where they are, who may read them, and what the notes beside them say."""

import grp
import json
import os
import stat

import pytest
from key_store import AGE1, AGE2, SSH, exchanged, identities, key_path, made, replaced

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.repository import key_changes, key_files, keyring, marker, series_choice


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "store", AGE1, SSH)


def test_the_folder_is_that_of_no_domain(store):
    assert layout.domain_name(layout.KEYS) is None
    assert series_choice.all_series(store) == []
    for name in (layout.KEYS, "keys", "%40keys"):
        assert layout.folder_name(name) != layout.KEYS


def test_the_files_are_those_of_the_format_and_only_their_owner_reads_them(store):
    names = os.listdir(store.path(layout.KEYS))
    assert sorted(names) == sorted(f"{each.name}{end}" for each in key_files.listed(store) for end in (".age", ".json"))
    modes = {stat.S_IMODE(os.stat(store.path(layout.KEYS, name)).st_mode) for name in names}
    assert modes == {0o600} and stat.S_IMODE(os.stat(store.path(layout.KEYS)).st_mode) == 0o700
    result = json.loads(store.read(key_path(store, 0, ".json")))
    assert set(result) == {"format", "requires", "when", "who", "recipient", "label", "sha256", "mac", "digest"}
    document = json.loads(store.read(layout.MARKER))
    assert document["requires"] == ["sealed"]
    assert document["sealed"] == {"cipher": "XAES-256-GCM", "key": marker.master_of(store)}


@pytest.mark.parametrize("group, folder, file", [(None, 0o700, 0o600), ("mine", 0o750, 0o640)])
def test_key_files_are_readable_by_those_who_can_read_the_store(tmp_path, group, folder, file):
    """Whatever the umask."""
    before = os.umask(0)
    try:
        store = made(tmp_path / "store", AGE1, group=group and grp.getgrgid(os.getgid()).gr_name)
        key_changes.add(store, keyring.open_master(store, identities("age1")), [AGE2], None, "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(store.path(layout.KEYS)).st_mode) == folder
    names = os.listdir(store.path(layout.KEYS))
    assert {stat.S_IMODE(os.stat(store.path(layout.KEYS, name)).st_mode) for name in names} == {file} and len(
        names
    ) == 4


def test_warnings_about_key_files(store, tmp_path):
    assert key_files.warnings(store) == [] == key_files.warnings(marker.open_or_create(str(tmp_path / "plain")))
    one, other = key_files.listed(store)
    key_changes.remove(store, [one.name])
    assert [text[: text.index(":")] for text in key_files.warnings(store)] == [f"only {other.whose} opens {store.root}"]
    replaced(store, key_path(store), b"damaged")
    assert [text.partition(": ")[2][:37] for text in key_files.warnings(store)] == [
        "no key file that can be read is there"
    ]
    store.remove_folder(layout.KEYS)
    assert [text.partition(": ")[2][:37] for text in key_files.warnings(store)] == [
        "no key file that can be read is there"
    ]


def test_no_file_of_the_store_has_the_master_key(store):
    master = keyring.open_master(store, identities("age1")).master
    for folder, _, names in os.walk(store.root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                found = file.read()
            assert master not in found and master.hex().encode() not in found


@pytest.mark.parametrize("new", [b"", b"{}", b"x" * (1 << 17), layout.seal({"format": layout.FORMAT, "when": 1})])
def test_a_note_that_cannot_be_read_is_ignored(store, new):
    for where in [key_path(store, number, ".json") for number in (0, 1)]:
        replaced(store, where, new)
    assert {each.recipient for each in key_files.listed(store)} == {None}
    assert keyring.keys_of(store, identities("age1"))


def test_a_note_counts_for_the_file_only_that_it_is_about(store):
    before = {each.recipient: each.name for each in key_files.listed(store)}
    exchanged(store, (".age",))
    assert [(each.recipient, each.label, each.when) for each in key_files.listed(store)] == [(None, "", "")] * 2
    with pytest.raises(errors.UsageError, match="is not one of its keys"):
        key_files.found(store, AGE1)
    exchanged(store, (".json",))
    assert {each.recipient for each in key_files.listed(store)} == set(before), "a name proves nothing, and matters not"


def test_one_is_found_by_name_label_or_recipient(store):
    key_changes.add(store, keyring.open_master(store, identities("age1")), [AGE2], None, "safe")
    wanted = next(each for each in key_files.listed(store) if each.recipient == AGE2)
    assert [key_files.found(store, named) for named in (wanted.name, "safe", AGE2)] == [wanted] * 3
    with pytest.raises(
        errors.UsageError, match=rf"'nobody' is not one of its keys; name one by .*{wanted.name} \(safe\)"
    ):
        key_files.found(store, "nobody")
