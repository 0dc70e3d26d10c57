"""Which identities are used, and what a new passphrase may be."""

import os

import pytest
from identities import data, path

from nbdpull.core import errors
from nbdpull.crypto import identity_files


@pytest.fixture
def no_identity_given(monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def test_sources_of_identities(no_identity_given, monkeypatch, tmp_path):
    assert identity_files.given([]) == []
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert identity_files.given([]) == [], "a unit may have other credentials"
    (tmp_path / "nbdpull.identity").write_bytes(data("age1"))
    [found] = identity_files.given([])
    assert (found.secret, found.name) == (data("age1").strip(), "nbdpull.identity (a credential)")
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", path("age2"))
    [found] = identity_files.given([])
    assert (found.secret, found.name) == (data("age2").strip(), f"{path('age2')} (NBDPULL_IDENTITY_FILE)")
    [found] = identity_files.given([path("ed25519")])
    assert found.name == path("ed25519"), "what is named counts alone"


def test_an_identity_that_cannot_be_read(no_identity_given, monkeypatch, tmp_path):
    for named, why in ((tmp_path / "no", "No such file"), (tmp_path, "Is a directory"), ("a\0b", "a character")):
        with pytest.raises(errors.UsageError, match=f"cannot read the identity .*: .*{why}"):
            identity_files.given([str(named)])
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", "/nowhere")
    with pytest.raises(
        errors.UsageError, match=r"cannot read the identity /nowhere \(NBDPULL_IDENTITY_FILE\): No such"
    ):
        identity_files.given([])


def test_an_identity_from_a_pipe_is_read_once(tmp_path):
    """bash makes a pipe of <(age -d my.key.age): pull --prune and drill open a store twice."""
    for name in ("age1", "age2"):
        reading, writing = os.pipe()
        os.write(writing, data(name))
        os.close(writing)
        for _ in range(3):
            [found] = identity_files.given([f"/dev/fd/{reading}"])
            assert found.secret == data(name).strip()
        os.close(reading)


@pytest.mark.parametrize(
    "text, why",
    [
        ("age1 is the first age", "would take for a key"),
        ("ssh-keys are nice", "would take for a key"),
        ("ecdsa-is-a-curve", "would take for a key"),
        ("-----BEGIN me", "would take for a key"),
        ("AGE-SECRET-KEY-x", "would take for a key"),
        ("age-plugin-horse", "would take for a key"),
        ("NBDPULL-MASTER-KEY-1-mine", "would take for a key"),
        ("an AGE ENCRYPTED FILE of mine", "would take for a key"),
        ("age-encryption.org/v1 it is", "would take for a key"),
        ("short!?", "fewer than 8 characters"),
        ("üüüüüüü", "fewer than 8 characters"),
        ("", "is empty"),
    ],
)
def test_unsuitable_new_passphrases(tmp_path, text, why):
    """What --passphrase-file accepts must work with --identity later."""
    for end in ("", "\n", "\r\n"):
        (tmp_path / "new").write_bytes((text + end).encode())
        with pytest.raises(errors.UsageError, match=why) as caught:
            identity_files.new_passphrase(str(tmp_path / "new"))
        assert not text or text not in str(caught.value)


@pytest.mark.parametrize("text", ["correct horse", " blanks count ", "# no comment", "my ssh-key", "üüüüüüüü"])
def test_a_new_passphrase_works_as_an_identity(tmp_path, text):
    (tmp_path / "new").write_text(text + "\n")
    made = identity_files.new_passphrase(str(tmp_path / "new"))
    assert [(each.kind, each.secret) for each in identity_files.given([str(tmp_path / "new")])] == [
        ("passphrase", made)
    ]
