"""Which words are recipients, which files are identities, and the message for all others."""

import pytest
from identities import data, recipient

from nbdpull.core import errors
from nbdpull.crypto import recipients


@pytest.mark.parametrize("name, kind", [("age1", "age"), ("ed25519", "ssh"), ("rsa", "ssh")])
def test_a_recipient(name, kind):
    assert recipients.kind_of(recipient(name)) == kind
    assert recipients.kind_of(" ".join(recipient(name).split()[:2])) == kind, "without its comment"


@pytest.mark.parametrize(
    "word, said",
    [
        ("", "recipient '' is invalid"),
        ("vm1", "recipient 'vm1' is invalid or mistyped; write age1…, ssh-ed25519 … or ssh-rsa …"),
        ("age1short", "'age1short' is invalid"),
        (recipient("age1").upper(), "is invalid"),
        (recipient("age1") + "q", "is invalid"),
        (recipient("ecdsa"), "age does not support ecdsa-sha2-nistp256 keys"),
        ("ssh-dss AAAA", "age does not support ssh-dss keys"),
        ("ssh-ed25519", "is invalid"),
        ("ssh-ed25519 AAAA", "is invalid"),
        ("ssh-ed25519 ü", "is invalid"),
        (recipient("rsa").replace("ssh-rsa ", "ssh-ed25519 "), "is invalid"),
        (recipient("ed25519").replace("AAAAC3", "AAAAC4"), "is invalid"),
    ],
)
def test_invalid_recipients(word, said):
    with pytest.raises(errors.UsageError) as caught:
        recipients.kind_of(word)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["age1", "ed25519"])
def test_a_secret_key_as_a_recipient_is_not_shown(name):
    secret = data(name).decode()
    with pytest.raises(errors.UsageError, match="that was a secret one") as caught:
        recipients.kind_of(secret)
    assert secret.split()[-1][:20] not in str(caught.value)


def found(given, name="key"):
    return [(each.kind, each.secret) for each in recipients.identities(given, name)]


def test_an_identity_of_age():
    one, other = data("age1").strip(), data("age2").strip()
    assert found(one) == [("age", one)]
    assert found(b"# created: today\n\n" + one + b"\r\n# public key: age1\n" + other + b"\n") == [
        ("age", one),
        ("age", other),
    ]


def test_master_keys_of_an_identity():
    ids = ["0123456789abcdef" * 2, "f" * 32]
    text = "".join(f"# nbdpull: only for master key {each}\n" for each in ids).encode() + data("age1")
    assert [each.only for each in recipients.identities(text, "key")] == [tuple(ids)]
    assert recipients.identities(data("age1"), "key")[0].only == ()


ID = "0123456789abcdef" * 2
MISTYPED = [
    ": only for master key " + ID[1:],
    ": for master key " + ID,
    " only for master key " + ID,
    "; only for master key " + ID,
    ": only for master keys " + ID,
    ": only for master key " + ID.upper(),
    ":only for master key " + ID,
]


@pytest.mark.parametrize("line", [f"# {name}{rest}" for name in ("nbdpull", "NBDpull", "npdpull") for rest in MISTYPED])
def test_a_mistyped_line_is_not_ignored(line):
    for given in (f"{line}\n".encode() + data("age1"), data("ed25519") + line.encode()):
        with pytest.raises(errors.UsageError, match="key has an invalid line for nbdpull: write # nbdpull: only"):
            recipients.identities(given, "key")


def test_other_comments_say_nothing():
    comments = b"# created: 2026-11-27T18:09:18+00:00\n# public key: " + recipient("age1").encode()
    text = comments + b"\n# of nbdpull, on host1: for nights only\n" + data("age1")
    assert [each.only for each in recipients.identities(text, "key")] == [()]


def test_the_master_key_of_an_ssh_key():
    """The line comes after it: ssh itself reads no file that begins with a comment."""
    line = f"# nbdpull: only for master key {ID}\n".encode()
    for given in (data("ed25519") + line, line + data("ed25519")):
        [found] = recipients.identities(given, "key")
        assert (found.kind, found.secret, found.only) == ("ssh", data("ed25519"), (ID,))


@pytest.mark.parametrize("name", ["ed25519", "rsa", "rsa-pem"])
def test_an_identity_of_ssh(name):
    assert found(data(name)) == [("ssh", data(name))]


@pytest.mark.parametrize("given", [b"a pass phrase", b"a pass phrase\n", b"a pass phrase\r\n"])
def test_a_passphrase(given):
    assert found(given) == [("passphrase", b"a pass phrase")]
    assert found(" ü \n".encode()) == [("passphrase", " ü ".encode())], "blanks count"


@pytest.mark.parametrize(
    "given, said",
    [
        (b"", "key is empty"),
        (b"\n", "key is empty"),
        (b"one\ntwo\n", "key is neither a key of age or ssh nor a passphrase, which is one line"),
        (b"\x03\n", "without control characters"),
        (b"a\x7f", "without control characters"),
        (b"x" * 1025, "at most 1024 bytes"),
        (b"x" * (1 << 17), "more than 65536 bytes"),
        (b"\xff\xfe", "not UTF-8"),
        (data("age1").strip()[:-1], "a line that is not an age identity"),
        (data("age1").strip().lower(), "a line that is not an age identity"),
        (data("age1") + b"more", "a line that is not an age identity"),
        (b"AGE-PLUGIN-YUBIKEY-1QQ", "needs a plugin of age"),
        (data("by-keys.age"), "key is encrypted"),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", "key is encrypted"),
        (recipient("age1").encode(), "key is a public key"),
        (recipient("ed25519").encode(), "key is a public key"),
        (data("locked"), "key is an ssh key with a passphrase"),
        (data("rsa-pem-locked"), "key is an ssh key with a passphrase"),
        (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "key is an ssh key with a passphrase",
        ),
        (data("ecdsa"), "an ssh key of type ecdsa-sha2-nistp256"),
        (b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "not a key that age supports"),
        (data("ed25519")[:100], "key is damaged"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "key is damaged"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----", "key is damaged"),
    ],
)
def test_invalid_identities(given, said):
    with pytest.raises(errors.UsageError) as caught:
        recipients.identities(given, "key")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert "SECRET-KEY-1" not in str(caught.value).replace("AGE-SECRET-KEY-1…", "")


def test_an_identity_shows_no_secret():
    for name in ("age1", "ed25519", "passphrase"):
        [identity] = recipients.identities(data(name), "my key")
        assert repr(identity) == f"<{identity.kind} identity of my key>" == str(identity) == f"{identity}"
        assert identity.what.startswith("my key (a")


def test_any_truncated_ssh_key_is_reported_in_one_line():
    whole = data("ed25519")
    for length in range(len(b"-----BEGIN "), len(whole) - 2):
        with pytest.raises(errors.UsageError):
            recipients.identities(whole[:length], "key")
