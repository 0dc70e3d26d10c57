"""copy and compare on the command line, between stores with different keys, and stores that are not sealed."""

import os
from functools import partial

import pytest
import stores
from command import answered, answered_last, said
from identities import path, recipient
from sealed import KIB, Vm, filled

from nbdpull.crypto import identity_files
from nbdpull.pulling import journal_files

MINE, THEIRS = ("--identity", path("age1")), ("--dest-identity", path("age2"))


@pytest.fixture(autouse=True)
def no_identity_given(monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    return partial(answered_last, capsys)


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    """The Vm of a sealed store that age1 opens."""
    return filled(tmp_path_factory.mktemp("sealed") / "store")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    found = Vm(tmp_path_factory.mktemp("plain") / "store")
    found.add_disk("vda", 256 * KIB)
    for number in range(2):
        found.write("vda", 100 * KIB * number, b"guest" * 1000)
        found.pull()
    return found


@pytest.fixture
def dest(tmp_path):
    """A store with a key of its own, which age2 opens."""
    said("init", tmp_path / "dest", "--recipient", recipient("age2"))
    return tmp_path / "dest"


def copied(found):
    return [each["point"] for each in found["domains"][0]["copied"]]


def restored(root, tmp_path, *identity):
    said("restore", root, "-o", tmp_path / "out", "--format", "raw", *identity)
    return (tmp_path / "out/vda.raw").read_bytes()


def test_from_key_to_key(vm, dest, tmp_path, run, capsys):
    ids = [point.id for point in vm.points]
    words = ["copy", vm.root, dest, *MINE, *THEIRS]
    code, found, _ = run(*words, "--dry-run")
    assert code == 0 and copied(found) == ids and not (dest / "vm1").exists()
    code, found, _ = run("compare", vm.root, dest)
    assert code == 13 and found["domains"][0]["behind_points"] == 2 and found["domains"][0]["behind_bytes"] > 0
    code, found, errors = run(*words)
    assert (code, copied(found), errors) == (0, ids, "")
    code, found, _ = run(*words)
    assert code == 0 and copied(found) == [] and found["domains"][0]["same"] == ids
    code, found, _ = run("compare", vm.root, dest)
    assert code == 0 and found["domains"][0]["behind_points"] == 0
    assert restored(dest, tmp_path, "--identity", path("age2")) == vm.images[ids[1]]["vda"]
    said("verify", dest, "--identity", path("age2"))
    for verb in ("list", "status", "usage"):
        said(verb, dest)
    twin = tmp_path / "twin"
    assert run("copy", dest, twin)[0] == 0, "a store like any other: of its own key no copy needs one"
    [chunk] = dest.glob(f"vm1/{ids[1]}/vda.0000.zst")
    with stores.damaged(chunk, stores.flipped(chunk.read_bytes(), chunk.stat().st_size // 2)):
        assert answered(capsys, "verify", dest, "--identity", path("age2"))[0] == 11
        said("verify", dest, "--identity", path("age2"), "--heal-from", twin)
        said("verify", dest, "--identity", path("age2"))
    [text] = dest.glob(f"vm1/{ids[0]}/domain.xml")
    with stores.damaged(text, stores.flipped(text.read_bytes(), 30)):
        words = ["verify", dest, "--identity", path("age2"), "--heal-from", vm.root]
        code, found, _ = run(*words)
        assert code == 11 and "it has another key: name an identity that opens it" in str(found["warnings"])
        assert run(*words, *MINE)[1]["healed"] == [{"domain": "vm1", "path": f"{ids[0]}/domain.xml"}]
    said("prune", dest, "--keep-last", 1, "--now", "--force", "--identity", path("age2"))
    assert restored(dest, tmp_path / "again", "--identity", path("age2")) == vm.images[ids[1]]["vda"]


def test_a_key_that_cannot_be_remembered(vm, dest, run, monkeypatch, capsys):
    monkeypatch.setenv("NBDPULL_STATE_DIR", "/proc/nbdpull")  # where nobody can make a folder
    code, found, _ = run("copy", vm.root, dest, *MINE, *THEIRS)
    [warning] = found["warnings"]
    assert code == 0 and f"cannot remember that {dest} is sealed with key" in warning
    code, _, errors = answered(capsys, "copy", vm.root, dest, *MINE, *THEIRS, "--quiet")
    assert (code, errors) == (0, f"nbdpull: warning: {warning}\n")


def test_both_keys_are_needed(vm, dest, capsys):
    for words, where in (
        (THEIRS, f"{vm.root} is sealed: name an identity"),
        (MINE, f"{dest} does not open for {path('age1')}"),
        ((), f"{vm.root} is sealed: name an identity"),
    ):
        code, _, complaints = answered(capsys, "copy", vm.root, dest, *words)
        assert code == 16 and where in complaints and complaints.count("\n") == 1
        assert not (dest / "vm1").exists()


def test_into_a_sealed_store(plain, dest, tmp_path, run):
    code, _, complaints = run("copy", plain.root, dest)
    assert code == 16 and "--dest-identity FILE" in complaints, "--identity is refused: the other store is not sealed"
    code, found, _ = run("copy", plain.root, dest, *THEIRS)
    assert code == 0 and len(copied(found)) == 2
    assert restored(dest, tmp_path, "--identity", path("age2")) == plain.images[plain.points[1].id]["vda"]


def test_a_destination_that_should_be_sealed(plain, tmp_path, capsys):
    """Its marker may have been replaced."""
    said("init", tmp_path / "dest")
    code, _, complaints = answered(capsys, "copy", plain.root, tmp_path / "dest", *THEIRS)
    assert code == 10 and "dest is not sealed, but there is an identity" in complaints
    assert not (tmp_path / "dest/vm1").exists()


def test_out_of_a_sealed_store(vm, plain, dest, tmp_path, run, capsys):
    out = tmp_path / "plain"
    said("init", out)
    code, _, complaints = answered(capsys, "copy", vm.root, out, *MINE)
    assert code == 10 and complaints == (
        f"nbdpull: {vm.root} is sealed, and {out} is not: whoever can read {out} could read what is copied; add "
        "--unseal if you want that, or name a new directory, which becomes a store with the same key\n"
    )
    for name in (out, tmp_path / "new"):
        assert answered(capsys, "copy", vm.root, name, "--unseal")[0] == 16
        code, found, _ = run("copy", vm.root, name, "--unseal", *MINE)
        assert code == 0 and len(copied(found)) == 2
        assert restored(name, tmp_path / f"of-{name.name}") == vm.images[vm.points[1].id]["vda"]
    assert run("compare", vm.root, out)[0] == 0
    assert answered(capsys, "copy", plain.root, out, "--unseal")[::2] == (
        2, f"nbdpull: --unseal: {plain.root} is not sealed\n"
    )  # fmt: skip
    code, _, complaints = answered(capsys, "copy", vm.root, dest, "--unseal", *MINE)
    assert code == 2 and f"--unseal: {dest} is sealed" in complaints


def test_a_planted_key(vm, dest, tmp_path, capsys):
    """The existing points were made with another key: nothing is sealed for the attacker."""
    said("copy", vm.root, dest, *MINE, *THEIRS)
    thief = tmp_path / "thief"
    said("init", thief, "--recipient", recipient("age2"))
    (dest / "nbdpull.json").write_bytes((thief / "nbdpull.json").read_bytes())
    for each in dest.glob("@keys/*"):
        each.unlink()
    for each in thief.glob("@keys/*"):
        (dest / "@keys" / each.name).write_bytes(each.read_bytes())
    os.unlink(os.path.join(journal_files.folder(), "known-stores"))  # another host would not have it, either
    before = stores.files(dest)
    code, _, complaints = answered(capsys, "copy", vm.root, dest, "--point", "all", *MINE, *THEIRS)
    assert code == 11 and "not made with the key of this store" in complaints
    assert stores.files(dest) == before


def test_a_planted_store(plain, dest, tmp_path, capsys):
    """For the right recipient, but without points that would reveal it: this host has sealed for another key there. Or
    it is not sealed at all."""
    said("copy", plain.root, dest, *THEIRS)
    for name, words in (("thief", ("--recipient", recipient("age2"))), ("plain", ())):
        said("init", tmp_path / name, *words)
        dest.rename(tmp_path / f"away-{name}")
        (tmp_path / name).rename(dest)
        code, _, complaints = answered(capsys, "copy", plain.root, dest, *(THEIRS if words else ()))
        assert code == 11 and f"{dest} was sealed with key" in complaints and complaints.count("\n") == 1
        assert not (dest / "vm1").exists()
    dest.rename(tmp_path / "away")
    code, _, complaints = answered(capsys, "copy", plain.root, dest)
    assert code == 11 and "nothing is there" in complaints and not dest.exists()


def test_a_destination_that_is_no_store_yet(vm, plain, tmp_path, capsys):
    """It would get the key of DIR, or none: only init can decide which one it gets."""
    for source, mine in ((vm, MINE), (plain, ())):
        code, _, complaints = answered(capsys, "copy", source.root, tmp_path / "new", *mine, *THEIRS)
        assert code == 2 and complaints == (
            f"nbdpull: {tmp_path}/new is not a store yet, and a copy does not create one with another key: first run "
            f"nbdpull init {tmp_path}/new --recipient …, or name no identity for it ({path('age2')})\n"
        )
        assert not (tmp_path / "new").exists()
