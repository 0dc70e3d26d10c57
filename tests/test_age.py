"""Secrets wrapped by age: by pyrage and by the program, each of which opens what the other made."""

import os
import subprocess
import sys

import pytest
from identities import data, path, recipient

from nbdpull.core import errors
from nbdpull.crypto import age, age_library, age_program

pytestmark = pytest.mark.e2e  # the program age; and scrypt, of a second

SECRET = bytes(range(32))
WAYS = {"library": age_library, "program": age_program} if sys.version_info >= (3, 10) else {"program": age_program}
KEYS = ["age1", "ed25519", "rsa"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(age, "_way", lambda: WAYS[request.param])
    return request.param


def by(monkeypatch, name):
    monkeypatch.setattr(age, "_way", lambda: WAYS[name])


def identity(*names):
    return [each for name in names for each in age.identities(data(name), name)]


def opened(wrapped, *names):
    found = age.unwrap(wrapped, "k.age", identity(*names))
    return found and (found.secret, found.identity.name)


def test_the_library_is_preferred():
    assert age._way() is WAYS.get("library", age_program)


def test_each_recipient_opens_it_by_either_way(way, monkeypatch):
    wrapped = age.wrap(SECRET, [recipient(name) for name in KEYS])
    for other in WAYS:
        by(monkeypatch, other)
        assert [opened(wrapped, name) for name in KEYS] == [(SECRET, name) for name in KEYS]
        assert opened(wrapped, "age2", "passphrase", "ed25519", "rsa") == (SECRET, "ed25519"), "the first that does"
        assert opened(wrapped, "age2") is None and opened(wrapped) is None


def test_a_passphrase_opens_it_by_the_other_way(way, monkeypatch):
    wrapped = age.wrap_by_passphrase(SECRET, "päss phrase".encode())
    by(monkeypatch, [*WAYS][-1] if way == "library" else [*WAYS][0])
    assert age.takes_passphrase(wrapped, "k.age")
    assert age.unwrap(wrapped, "k.age", age.identities("päss phrase\n".encode(), "p")).secret == SECRET


def test_a_passphrase_file(way):
    """With a low work factor: the other ones take a second."""
    wrapped = data("by-passphrase.age")
    assert opened(wrapped, "age1", "passphrase") == (SECRET, "passphrase")
    assert age.unwrap(wrapped, "k.age", age.identities(b"correct horse battery\n", "p")) is None
    assert opened(wrapped, "age1", "ed25519") is None


def test_a_file_of_keys_made_by_age(way):
    assert opened(data("by-keys.age"), "age2", "ed25519") == (b"0123456789abcdef" * 2, "ed25519")


def test_no_changed_byte_opens(monkeypatch):
    by(monkeypatch, [*WAYS][0])
    whole, [mine] = data("by-keys.age"), identity("age1")
    for at in range(0, len(whole), 1 if "library" in WAYS else 40):
        changed = bytearray(whole)
        changed[at] ^= 1
        for each in (bytes(changed), whole[:at]):
            try:
                assert age.unwrap(each, "k.age", [mine]) is None
            except errors.Damaged as error:
                assert str(error) == "k.age: not a file of age"


@pytest.mark.parametrize("given", [b"", b"age", b"\0" * 500, b"age-encryption.org/v1\n-> X25519\n"])
def test_files_not_made_by_age(given):
    with pytest.raises(errors.Damaged, match=r"^dir/k\.age: not a file of age$"):
        age.unwrap(given, "dir/k.age", [])


def test_a_mistyped_recipient_is_named(way):
    word = recipient("age2")
    wrong = word[:-1] + ("q" if word[-1] != "q" else "p")
    with pytest.raises(errors.UsageError, match=f"^recipient '{wrong}' is invalid or mistyped"):
        age.wrap(SECRET, [recipient("age1"), wrong, recipient("ed25519")])


def test_a_mistyped_identity_is_named_and_not_shown(way):
    secret = data("age1").strip()
    wrong = secret[:-1] + (b"Q" if secret[-1:] != b"Q" else b"P")
    with pytest.raises(errors.UsageError) as caught:
        age.identities(wrong, "my.key")
    assert str(caught.value) == "my.key is not a valid age identity: it has a wrong character"


def test_neither_is_installed(monkeypatch, tmp_path):
    by(monkeypatch, "program")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        errors.MissingSoftware, match=r"^age is not installed: install age .*pip install 'nbdpull\[seal\]'"
    ):
        age.wrap(SECRET, [recipient("age1")])
    with pytest.raises(errors.MissingSoftware):
        age.unwrap(data("by-passphrase.age"), "k.age", identity("passphrase"))


@pytest.mark.skipif(sys.version_info < (3, 10), reason="it needs Python 3.10")
def test_without_pyrage_the_program_does_it():
    code = (
        "import sys; sys.modules['pyrage'] = None\n"
        "from nbdpull.crypto import age, age_program; print(age._way() is age_program)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_the_program_gets_no_secret_by_arguments_environment_or_files(monkeypatch, tmp_path):
    """A program in the place of age records everything that it is given."""
    log = tmp_path / "told"
    fake = tmp_path / "bin" / "age"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\n{{ echo "$@"; env; ls -l /proc/self/fd/; }} >>{log}\ncat >/dev/null\nexit 1\n')
    fake.chmod(0o755)
    (tmp_path / "bin" / "age-keygen").symlink_to(fake)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(age, "_way", lambda: age_program)
    from nbdpull.crypto.recipients import identities

    for name, wrapped in (("age1", "by-keys.age"), ("ed25519", "by-keys.age"), ("passphrase", "by-passphrase.age")):
        assert age.unwrap(data(wrapped), "k.age", identities(data(name), path(name))) is None
    with pytest.raises(errors.OutputError, match="^age failed"):
        age.wrap_by_passphrase(b"the-master-key", b"correct horse")
    text = log.read_text()
    assert text.count("-d") >= 3
    for secret in (
        data("age1").decode().strip(),
        "correct horse",
        "the-master-key",
        data("ed25519").decode().split()[5],
    ):
        assert secret not in text
    assert "memfd:" in text and path("age1") not in text and path("ed25519") not in text
