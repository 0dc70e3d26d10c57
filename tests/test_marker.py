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


def test_a_store_without_a_marker_can_be_created_again(tmp_path):
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


def test_leftovers_of_dead_runs_are_removed_with_the_marker(tmp_path):
    """Otherwise it would look as if those key files opened the store."""
    root = tmp_path / "store"
    (root / layout.KEYS).mkdir(parents=True)
    for where, wrapped in key_changes.new([AGE1, SSH], None).files:
        (root / where).write_bytes(wrapped)
    store = made(root, AGE1)
    assert [each.recipient for each in key_files.listed(store)] == [AGE1] and len(store.files(layout.KEYS)) == 2


def test_only_one_of_two_concurrent_creators_leaves_its_keys(tmp_path, monkeypatch):
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
def test_invalid_markers(store, change):
    document = json.loads(store.read(layout.MARKER))
    del document["digest"]
    replaced(store, layout.MARKER, layout.seal({**document, **change}))
    with pytest.raises(errors.Damaged, match=r"nbdpull\.json: not the marker of a store"):
        marker.open_store(store.root)


def test_a_marker_without_its_seal_is_refused(store):
    document = json.loads(store.read(layout.MARKER))
    del document["digest"], document["sealed"]
    replaced(store, layout.MARKER, layout.seal(document))
    with pytest.raises(errors.Damaged, match="not the marker of a store"):
        marker.open_store(store.root)
