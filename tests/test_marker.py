"""The marker of a sealed store: it is written after the key files, and says that everything is sealed."""

import json

import pytest
from key_store import AGE1, AGE2, SSH, identities, made, replaced

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.repository import key_changes, key_files, keyring, marker


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "store", AGE1, SSH)


def test_one_that_died_before_the_marker_can_be_made_again(tmp_path):
    root = tmp_path / "store"
    (root / layout.KEYS).mkdir(parents=True)
    [left] = [each for each in key_changes.new([AGE1], None).files if each[0].endswith(".age")]
    (root / left[0]).write_bytes(left[1])
    with pytest.raises(errors.StoreError, match="is not empty"):
        marker.open_or_create(str(root))
    store = made(root, AGE1)
    assert keyring.keys_of(store, identities("age1")).id == marker.master_of(store), (
        "the one of another key is no hindrance"
    )


def test_what_dead_runs_left_is_gone_when_the_marker_is_there(tmp_path):
    """Otherwise it would look as if those key files opened the store."""
    root = tmp_path / "store"
    (root / layout.KEYS).mkdir(parents=True)
    for where, wrapped in key_changes.new([AGE1, SSH], None).files:
        (root / where).write_bytes(wrapped)
    store = made(root, AGE1)
    assert [each.recipient for each in key_files.listed(store)] == [AGE1] and len(store.files(layout.KEYS)) == 2


def test_of_two_that_make_a_store_at_once_one_leaves_its_keys(tmp_path, monkeypatch):
    root, real = tmp_path / "store", marker.put_keys

    def put(store, files):
        monkeypatch.setattr(marker, "put_keys", real)
        real(store, files)
        made(root, AGE2)

    monkeypatch.setattr(marker, "put_keys", put)
    store = made(root, AGE1)
    assert [each.recipient for each in key_files.listed(store)] == [AGE2]
    assert keyring.keys_of(store, identities("age2")).id == marker.master_of(store)


@pytest.mark.parametrize(
    "change",
    [
        {"sealed": {"cipher": "ROT13", "key": "0" * 32}},
        {"sealed": {"cipher": "XAES-256-GCM", "key": "0" * 31}},
        {"sealed": {"cipher": "XAES-256-GCM"}},
        {"sealed": True},
        {"requires": []},
    ],
)
def test_a_marker_that_is_none(store, change):
    document = json.loads(store.read(layout.MARKER))
    del document["digest"]
    replaced(store, layout.MARKER, layout.seal({**document, **change}))
    with pytest.raises(errors.Damaged, match=r"nbdpull\.json: not the marker of a store"):
        marker.open_store(store.root)


def test_a_marker_from_which_the_seal_was_taken_is_none(store):
    document = json.loads(store.read(layout.MARKER))
    del document["digest"], document["sealed"]
    replaced(store, layout.MARKER, layout.seal(document))
    with pytest.raises(errors.Damaged, match="not the marker of a store"):
        marker.open_store(store.root)
