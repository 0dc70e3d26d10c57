"""The keys of a sealed store, and what a store does with its bytes."""

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nbdpull.core import errors
from nbdpull.crypto import keys, seal
from nbdpull.crypto.keys import StoreKeys

MASTER = bytes(range(32))
KEYS = keys.of_master(MASTER)
DIGEST = b"d" * 32


def test_each_key_is_hkdf_of_the_master_key():
    for purpose in ("data", "index", "names", "mac"):
        hkdf = HKDF(SHA256(), 32, None, f"nbdpull/2 sealed {purpose}".encode())
        assert getattr(KEYS, purpose) == hkdf.derive(MASTER)
    assert KEYS.id == HKDF(SHA256(), 32, None, b"nbdpull/2 sealed id").derive(MASTER)[:16].hex()


def test_no_key_is_shown():
    for shown in (repr(KEYS), str(KEYS), f"{KEYS}"):
        assert shown == f"<keys of master key {KEYS.id}>"


def test_a_master_key_has_32_bytes():
    assert len(keys.new_master()) == 32 and keys.new_master() != keys.new_master()
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        keys.of_master(MASTER[1:])


def test_a_store_that_is_not_sealed_changes_nothing():
    plain = seal.PLAIN
    plain.require()
    assert plain.frame(b"x", DIGEST) == plain.opened_frame(b"x", DIGEST) == b"x"
    assert plain.piece(b"x", "page") == plain.opened_piece(b"x", "page") == b"x"
    assert (plain.secret(DIGEST), plain.mac(b"x"), plain.id, plain.overhead) == (DIGEST, None, None, 0)


def test_a_frame_opens_as_what_it_is_only():
    sealed = seal.Sealed(KEYS)
    frame, page = sealed.frame(b"x", DIGEST), sealed.piece(b"x", "page")
    assert len(frame) == len(page) == 1 + sealed.overhead
    assert sealed.opened_frame(frame, DIGEST) == sealed.opened_piece(page, "page") == b"x"
    for wrong in [
        lambda: sealed.opened_frame(frame, b"e" * 32),
        lambda: sealed.opened_frame(page, b"page"),
        lambda: sealed.opened_piece(page, "records"),
        lambda: sealed.opened_piece(frame, DIGEST.decode()),
        lambda: seal.Sealed(keys.of_master(bytes(32))).opened_frame(frame, DIGEST),
    ]:
        with pytest.raises(ValueError, match="does not open"):
            wrong()


def test_digests_and_macs_are_of_the_key():
    one, other = seal.Sealed(KEYS), seal.Sealed(keys.of_master(bytes(32)))
    found = {one.secret(DIGEST), other.secret(DIGEST), one.mac(DIGEST), other.mac(DIGEST), DIGEST}
    assert len(found) == 5 and {len(each) for each in found} == {32}
    assert one.secret(DIGEST) == seal.Sealed(KEYS).secret(DIGEST)


def every(store_seal):
    return [
        lambda: store_seal.frame(b"x", DIGEST),
        lambda: store_seal.opened_frame(b"x", DIGEST),
        lambda: store_seal.piece(b"x", "page"),
        lambda: store_seal.opened_piece(b"x", "page"),
        lambda: store_seal.secret(DIGEST),
    ]


def test_a_missing_key_is_reported():
    locked = seal.Locked("0123", "/backup/store")
    for each in [locked.require, *every(locked)]:
        with pytest.raises(errors.KeyNeeded, match="/backup/store is sealed: name an identity"):
            each()
    assert locked.mac(b"x") is None and locked.id == "0123"


def test_some_keys_only():
    some = seal.Sealed(StoreKeys("0123", None, None, None, None))
    for each in [*every(some), lambda: some.mac(b"x")]:
        with pytest.raises(errors.KeyNeeded, match="is not for"):
            each()
