"""init and key of sealed stores on the command line: who opens a store, and how that is changed, tested and kept."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import PROJECT, answered, answered_json, environment, said
from documents import blocks, section
from identities import data, path, recipient
from stores import Vm

from nbdpull.cli import main as cli
from nbdpull.crypto import age, identity_files, keys, recipients, xaes
from nbdpull.format import layout
from nbdpull.repository import key_changes, key_files, keyring, marker

AGE1, AGE2, SSH = recipient("age1"), recipient("age2"), recipient("ed25519")
BY_AGE1, BY_AGE2, BY_SSH = (("--identity", path(name)) for name in ("age1", "age2", "ed25519"))


@pytest.fixture(autouse=True)
def no_identity_given(monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path):
    said("init", tmp_path / "store", "--recipient", AGE1, "--recipient", SSH)
    return tmp_path / "store"


@pytest.fixture
def run(capsys, root):
    """Run `key ACTION store …`; return (exit code, output, standard error)."""
    return lambda action, *words: answered(capsys, "key", action, root, *words)


def names(root):
    return {each.recipient: each.name for each in key_files.listed(marker.open_store(str(root)))}


# -- init -------------------------------------------------------------------------------------------------------------


def test_init_seals_for_the_named_recipients(tmp_path, capsys):
    code, output, errors = answered(capsys, "init", tmp_path / "s", "--recipient", AGE1, "--recipient", SSH)
    master = marker.master_of(marker.open_store(str(tmp_path / "s")))
    assert (code, errors) == (0, "")
    assert output.splitlines()[0] == f"{tmp_path / 's'} is an empty store now, sealed with master key {master}"
    assert "you lose the backups" in output and set(names(tmp_path / "s")) == {AGE1, SSH}
    code, result, _ = answered_json(capsys, "init", tmp_path / "t", "--recipient", AGE2)
    assert result["master"] == marker.master_of(marker.open_store(str(tmp_path / "t"))) != master


def test_init_without_recipients_does_not_seal(tmp_path, capsys):
    assert answered_json(capsys, "init", tmp_path / "s")[1]["master"] is None
    for action in ("list", "test", "export"):
        words = ("--recipient", AGE1) if action == "export" else ()
        code, output, errors = answered(capsys, "key", action, tmp_path / "s", *words)
        assert (code, output) == (10, "") and "the store is not sealed: it has no keys" in errors


def test_init_by_a_passphrase(tmp_path, capsys, monkeypatch):
    """test_age.py tests the work factor of a passphrase."""
    monkeypatch.setattr(age, "wrap_by_passphrase", lambda secret, passphrase: data("by-passphrase.age"))
    assert answered(capsys, "init", tmp_path / "s", "--passphrase-file", path("passphrase"))[0] == 0
    code, result, _ = answered_json(capsys, "key", "list", tmp_path / "s")
    assert [(each["kind"], each["recipient"]) for each in result["keys"]] == [("passphrase", None)]
    (tmp_path / "empty").touch()
    code, _, errors = answered(capsys, "init", tmp_path / "t", "--passphrase-file", tmp_path / "empty")
    assert (code, errors) == (2, f"nbdpull: {tmp_path / 'empty'} is empty: a passphrase is expected, on one line\n")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("word", ["nobody", AGE1[:-1] + "?", recipient("ecdsa"), ""])
def test_init_creates_nothing_for_an_invalid_recipient(tmp_path, capsys, word):
    code, _, errors = answered(capsys, "init", tmp_path / "s", "--recipient", AGE1, "--recipient", word)
    assert code == 2 and errors.startswith("nbdpull: recipient '") and len(errors.splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_init_creates_no_store_that_could_not_be_sealed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    xaes._library.cache_clear()
    code, _, errors = answered(capsys, "init", tmp_path / "s", "--recipient", AGE1)
    assert code == 8 and errors.startswith("nbdpull: sealed stores need Python's cryptography: install")
    assert not (tmp_path / "s").exists()
    xaes._library.cache_clear()


def test_a_secret_key_as_a_recipient_is_not_shown(tmp_path, capsys):
    code, _, errors = answered(capsys, "init", tmp_path / "s", "--recipient", data("age1").decode().strip())
    assert code == 2 and "AGE-SECRET-KEY" not in errors


# -- list, add, remove, rotate ----------------------------------------------------------------------------------------


def test_list_needs_no_identity(run, root):
    code, output, errors = run("list")
    assert (code, errors) == (0, "")
    first, headings, *rows = output.splitlines()
    assert first == f"master key {marker.master_of(marker.open_store(str(root)))}, which these keys open:"
    assert headings.split() == ["KEY", "WHOSE", "SINCE"]
    assert sorted(row.split()[0] for row in rows) == sorted(names(root).values())
    assert f"{AGE1[:12]}…{AGE1[-4:]}" in output and "ssh-ed25519 backup@host" in output
    assert max(map(len, output.splitlines())) <= 80


def test_add_admits_another_recipient(run, root):
    assert run("add", "--recipient", AGE2, "--label", "safe", *BY_SSH)[::2] == (0, "")
    code, output, _ = run("test", *BY_AGE2)
    assert code == 0 and output.startswith(f"{path('age2')} opens {root}: key {names(root)[AGE2]}; for any master key")
    assert "safe" in run("list")[1]


@pytest.mark.parametrize(
    "label, flaw", [("x" * 4097, "has more than 4096 characters"), ("\udce9", "is not text in UTF-8")]
)
def test_invalid_labels(run, root, label, flaw):
    before = names(root)
    assert run("add", "--recipient", AGE2, "--label", label, *BY_SSH) == (2, "", f"nbdpull: --label {flaw}\n")
    assert names(root) == before


def test_add_needs_an_identity_and_a_recipient(run, root):
    before = names(root)
    for words, code, why in (
        (("--recipient", AGE2), 16, "is sealed: name an identity that opens it: --identity FILE"),
        (("--recipient", AGE2, *BY_AGE2), 16, "does not open for"),
        (BY_AGE1, 2, "say what should open the store"),
        (("--recipient", AGE1, *BY_AGE1), 2, "opens the store already"),
        (("--recipient", "age1x", *BY_AGE1), 2, "recipient 'age1x' is invalid"),
        (("--recipient", AGE2, "--identity", "/nowhere"), 2, "cannot read the identity /nowhere: No such file"),
        (("KEY", "--recipient", AGE2, *BY_AGE1), 2, "key add takes no KEY"),
    ):
        found, output, errors = run("add", *words)
        assert (found, output) == (code, "") and why in errors and len(errors.splitlines()) == 1
    assert names(root) == before


def test_remove_says_what_it_does_not_do(run, root):
    code, output, errors = run("remove", names(root)[SSH], *BY_AGE1)
    assert code == 0 and "backup@host" not in output
    assert errors.startswith(
        "nbdpull: warning: the master key is the same as before: anyone who could open the store and kept"
    )
    assert run("test", *BY_SSH)[0] == 16 and run("test", *BY_AGE1)[0] == 0


def test_remove_refuses_to_remove_the_last_key(run, root):
    code, _, errors = run("remove", AGE1, *BY_AGE1)
    assert (
        code == 2 and errors.startswith(f"nbdpull: without {names(root)[AGE1]} ({AGE1[:12]}…") and "--force" in errors
    )
    assert run("remove", AGE1)[0] == 16
    assert run("remove", AGE1, *BY_SSH)[0] == 0, "who has another one may"
    for how in (["--force"], BY_SSH, BY_AGE1):  # --force would not help
        code, _, errors = run("remove", SSH, *how)
        assert code == (16 if how == BY_AGE1 else 2)
        assert ("nobody could open it any more: add another key first" in errors) == (how != BY_AGE1)
    assert run("remove")[::2] == (
        2,
        "nbdpull: name the key to remove: nbdpull key remove DIR KEY; see nbdpull key list\n",
    )
    assert list(names(root)) == [SSH]


def test_remove_counts_on_no_key_file_of_another_master_key(run, root, tmp_path):
    """An age file does not reveal its content: it may be a thief's, or left by an init that died."""
    run("remove", SSH, *BY_AGE1)
    [(_, data)] = [each for each in key_changes.new([AGE1], None).files if each[0].endswith(".age")]
    (root / "@keys/00000000.age").write_bytes(data)
    code, _, errors = run("remove", AGE1, *BY_AGE1)
    assert code == 2 and errors.startswith(f"nbdpull: without {names(root)[AGE1]} ({AGE1[:12]}…{AGE1[-4:]}), no given ")
    assert run("test", *BY_AGE1)[0] == 0
    assert run("remove", "00000000", *BY_AGE1)[0] == 0


def test_remove_does_not_go_by_a_forged_note(run, root):
    """A thief exchanges two keys, so that the wrong one would be removed."""
    one, other = ((root / "@keys" / name) for name in names(root).values())
    for where, wrapped in ((one, Path(f"{other}.age").read_bytes()), (other, Path(f"{one}.age").read_bytes())):
        Path(f"{where}.age").write_bytes(wrapped)
        note = json.loads(Path(f"{where}.json").read_text())
        note = {key: value for key, value in note.items() if key not in ("mac", "digest")}
        Path(f"{where}.json").write_bytes(layout.seal({**note, "sha256": hashlib.sha256(wrapped).hexdigest()}))
    code, _, errors = run("remove", SSH, *BY_SSH)
    assert code == 11 and "not made with the key of this store" in errors
    assert [run("test", *by)[0] for by in (BY_AGE1, BY_SSH)] == [0, 0]


def test_by_the_master_key_no_last_key_is_removed(run, root, tmp_path):
    """It opens the store whatever remains: that does not prove that anybody else can."""
    opened = keyring.open_master(marker.open_store(str(root)), identity_files.given([path("age1")]))
    (tmp_path / "paper").write_text(keys.text_of(opened.master))
    by_paper = ("--identity", tmp_path / "paper")
    code, _, errors = run("remove", SSH, *by_paper)
    assert code == 2 and "no given identity opens" in errors
    assert run("remove", SSH, *by_paper, *BY_AGE1)[0] == 0
    assert run("rotate", "--recipient", AGE2, *by_paper)[0] == 0, "each new key has it"


def test_rotate_locks_out_none_of_the_given_identities(run, root):
    before = names(root)
    code, _, errors = run("rotate", "--recipient", AGE2, *BY_AGE1)
    assert code == 2 and errors.startswith(f"nbdpull: {root} would not open any more for {path('age1')} (an age key): ")
    assert names(root) == before and len(list((root / "@keys").iterdir())) == 4
    assert run("rotate", "--recipient", AGE2, *BY_AGE1, *BY_AGE2)[0] == 0, "who has a new one may"
    code, _, errors = run("rotate", "--recipient", AGE1, *BY_AGE2, "--force")
    assert code == 0 and f"only {names(root)[AGE1]} (" in errors and run("test", *BY_AGE1)[0] == 0


def test_rotate_replaces_all_keys_and_keeps_the_master_key(run, root):
    before, master = set(names(root).values()), marker.master_of(marker.open_store(str(root)))
    code, output, errors = run("rotate", "--recipient", AGE2, "--recipient", AGE1, *BY_SSH, *BY_AGE1)
    assert code == 0 and "the master key is the same as before" in errors and master in output
    assert set(names(root)) == {AGE1, AGE2} and not before & set(names(root).values())
    assert [run("test", *each)[0] for each in (BY_AGE1, BY_AGE2, BY_SSH)] == [0, 0, 16]


# -- test, export -----------------------------------------------------------------------------------------------------


def test_test_tries_each_identity(run, root, capsys):
    code, output, errors = run("test", *BY_AGE1, *BY_AGE2, "--identity", "/nowhere", *BY_SSH)
    assert code == 16 and [line.split()[0] for line in output.splitlines()] == [path("age1"), path("ed25519")]
    assert f"{root} does not open for {path('age2')} (an age key)" in errors and "/nowhere" in errors
    code, result, _ = answered_json(capsys, "key", "test", root, *BY_AGE2, *BY_AGE1)
    assert code == 16 and [(each["identity"], each["key"]) for each in result["tried"]] == [
        (path("age2"), None), (path("age1"), names(root)[AGE1])]  # fmt: skip
    assert run("test")[0] == 16, "none is named"


@pytest.mark.parametrize("name", ["age1", "ed25519"])
def test_test_shows_which_master_key_an_identity_is_for(run, root, tmp_path, capsys, name):
    master, own = marker.master_of(marker.open_store(str(root))), tmp_path / "own"
    line = f"# nbdpull: only for master key {master}"
    own.write_bytes(data(name))
    assert f"; for any master key: the line {line} would restrict it to this one\n" in run("test", "--identity", own)[1]
    assert answered_json(capsys, "key", "test", root, "--identity", own)[1]["tried"][0]["only"] == []
    own.write_bytes(data(name) + line.encode())
    assert run("test", "--identity", own)[1].endswith(f"; only for master key {master}\n")
    assert answered_json(capsys, "key", "test", root, "--identity", own)[1]["tried"][0]["only"] == [master]
    own.write_bytes(data(name) + line.replace(master, "0" * 32).encode())
    code, output, errors = run("test", "--identity", own)
    assert (code, output) == (11, "") and "says that it is only for" in errors


def test_the_variable_and_the_credential_name_one(run, root, monkeypatch, tmp_path):
    (tmp_path / "nbdpull.identity").write_bytes(data("ed25519"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert run("test")[1].startswith("nbdpull.identity (a credential) opens")
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", path("age2"))
    code, _, errors = run("test")
    assert code == 16 and f"does not open for {path('age2')} (NBDPULL_IDENTITY_FILE) (an age key)" in errors


def test_test_warns_of_an_identity_that_all_can_read(run, tmp_path):
    (tmp_path / "key").write_bytes(data("age1"))
    for mode, warned in ((0o600, False), (0o644, True)):
        (tmp_path / "key").chmod(mode)
        code, _, errors = run("test", "--identity", tmp_path / "key")
        assert code == 0 and (f"everybody on this machine can read {tmp_path / 'key'}: chmod 600" in errors) is warned


def test_status_and_test_warn_where_only_one_opens_it(run, root, tmp_path, capsys):
    assert "only" not in answered(capsys, "status", root)[2]
    run("remove", SSH, *BY_AGE1)
    wanted = f"nbdpull: warning: only {names(root)[AGE1]} ({AGE1[:12]}…{AGE1[-4:]}) opens {root}: if it is lost"
    assert wanted in answered(capsys, "status", root)[2] and wanted in run("test", *BY_AGE1)[2]


def test_what_is_exported_opens_the_store_when_all_keys_are_lost(run, root, tmp_path, capsys):
    code, exported, errors = run("export", "--recipient", AGE2, *BY_AGE1)
    assert (code, errors) == (0, "") and exported.startswith("-----BEGIN AGE ENCRYPTED FILE-----\n")
    assert exported.endswith("-----END AGE ENCRYPTED FILE-----\n") and max(map(len, exported.splitlines())) <= 64
    (tmp_path / "paper.age").write_text(exported)
    paper = os.popen(f"age -d -i {path('age2')} {tmp_path / 'paper.age'}").read()
    (tmp_path / "paper").write_text(paper)
    marker.open_store(str(root)).remove_folder("@keys")
    code, output, errors = run("list")
    assert code == 0 and output.count("\n") == 2
    assert "no key file that can be read is there" in run("test", *BY_AGE1)[2]
    assert run("test", "--identity", tmp_path / "paper")[1] == f"{tmp_path / 'paper'} opens {root}\n"
    assert run("add", "--recipient", AGE1, "--identity", tmp_path / "paper")[0] == 0
    assert run("test", *BY_AGE1)[0] == 0
    found = answered_json(capsys, "key", "export", root, "--recipient", AGE2, *BY_AGE1)[1]["exported"]
    assert recipients.identities(paper.encode(), "p")[0].kind == "master" and found.startswith("-----BEGIN")


def test_export_needs_a_recipient(run):
    assert "say what should open the export: --recipient" in run("export", *BY_AGE1)[2]
    code, _, errors = run("export", "--recipient", AGE2, "--passphrase-file", path("passphrase"), *BY_AGE1)
    assert code == 2 and "takes a passphrase or recipients, not both" in errors


def test_a_copy_opens_for_recipients_added_since(run, root, tmp_path, capsys):
    vm = Vm(root, keys=keyring.keys_of(marker.open_store(str(root)), identity_files.given([path("age1")])))
    vm.add_disk("vda", 4096)
    vm.pull()
    for more in ((), ("--recipient", AGE2)):
        if more:
            run("add", *more, *BY_AGE1)
        assert answered(capsys, "copy", root, tmp_path / "copy")[0] == 0
    assert answered(capsys, "verify", tmp_path / "copy", *BY_AGE2)[0] == 0


def test_a_store_whose_marker_was_replaced_is_not_opened(run, root, tmp_path):
    """By that of a thief, who leaves the key files: they hold another key then."""
    document = json.loads((root / "nbdpull.json").read_text())
    other = marker.create(str(tmp_path / "other"), seal=key_changes.new([AGE1], None))
    (root / "nbdpull.json").write_bytes(other.read("nbdpull.json"))
    code, _, errors = run("test", *BY_AGE1)
    assert code == 11 and "does not hold the master key of this store" in errors
    assert document["sealed"]["key"] not in errors


@pytest.mark.parametrize("words", [(), ("burn", "x"), ("list",)])
def test_usage_errors(capsys, words):
    code, _, errors = answered(capsys, "key", *words)
    assert code == 2 and errors.endswith("see nbdpull help key\n")


def test_the_unit_of_contrib_gives_a_pull_its_identity():
    unit = (PROJECT / "contrib/systemd/nbdpull@.service").read_text()
    [line] = re.findall(r"^ExecStart=nbdpull (.*)$", unit, re.MULTILINE)
    assert cli.parsed(shlex.split(line)).verb == "pull"
    assert f"\nLoadCredentialEncrypted={identity_files.CREDENTIAL}:/" in unit


@pytest.mark.e2e
def test_the_commands_of_the_manual(tmp_path):
    [text] = blocks(section((PROJECT / "docs/nbdpull.1.md").read_text(), "KEYS OF A SEALED STORE"), "sh")
    (tmp_path / "admin.pub").write_text(SSH)
    begin = f'nbdpull() {{ "{sys.executable}" -m nbdpull "$@"; }}\nset -e\n'
    done = subprocess.run(["bash", "-c", begin + text], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "my.key opens sealed" in done.stdout and done.stdout.endswith("-----END AGE ENCRYPTED FILE-----\n")
    assert said("key", "list", tmp_path / "sealed").count("safe in Berlin") == 1
