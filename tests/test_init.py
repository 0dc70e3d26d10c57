"""init: an empty store in a place, on the command line."""

import grp
import json
import os
import stat

import pytest
from command import answered, answered_json, said

from nbdpull.repository import marker
from nbdpull.storage import s3_client


def test_a_new_directory_becomes_an_empty_store(tmp_path, capsys):
    where = tmp_path / "a" / "b"
    assert answered(capsys, "init", where) == (0, f"{where} is an empty store now\n", "")
    assert os.listdir(where) == ["nbdpull.json"]
    assert stat.S_IMODE(where.stat().st_mode) == 0o700
    assert json.loads(said("list", where, "--json")) == []


def test_the_json_names_the_store(tmp_path, capsys):
    code, output, errors = answered_json(capsys, "init", tmp_path)
    uuid = marker.uuid_of(marker.open_store(str(tmp_path)))
    assert (code, output, errors) == (0, {"uuid": uuid, "master": None, "object_store": None, "immutable": None}, "")


def test_an_existing_store_stays_unchanged(tmp_path, capsys):
    said("init", tmp_path)
    before = (tmp_path / "nbdpull.json").read_bytes()
    complaint = f"nbdpull: {tmp_path} is a store already; nothing was changed\n"
    assert answered(capsys, "init", tmp_path)[::2] == (10, complaint)
    assert (tmp_path / "nbdpull.json").read_bytes() == before


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("")
    complaint = f"nbdpull: {tmp_path} is not empty, and is not an nbdpull store; choose an empty or a new directory\n"
    assert answered(capsys, "init", tmp_path)[::2] == (10, complaint)
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_a_group_that_may_read(tmp_path, capsys):
    group = grp.getgrgid(os.getgid()).gr_name
    assert answered(capsys, "init", tmp_path / "store", "--group", group)[0] == 0
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o750
    code, _, errors = answered(capsys, "init", tmp_path / "other", "--group", "no-such-group")
    assert (code, errors) == (2, "nbdpull: --group no-such-group: this machine has no group of that name\n")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("may", [True, False])
def test_an_inconclusive_trial_is_reported(locking_store, monkeypatch, capsys, may):
    """Whoever may not remove versions is refused by a server that heeds no lock, too."""
    real = s3_client.Bucket.tried
    monkeypatch.setattr(s3_client.Bucket, "tried", lambda bucket, call, **what: (
        ("AccessDenied", {}) if call == "delete_object" and "VersionId" in what and not may else
        real(bucket, call, **what)
    ))  # fmt: skip
    for words in (["init", locking_store.url], ["policy", locking_store.url]):
        code, _, complaints = answered(capsys, *words, "--immutable-for", "30d")
        assert code == 0 and ("whether the server heeds locks was not proved" in complaints) == (not may)
