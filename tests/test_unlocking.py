"""Sealed stores by command lines: which verb needs an identity, where it is looked for, and that no secret is seen."""

import json
import os
import shutil
import urllib.request
from pathlib import Path

import http_points
import pytest
import stores
from command import PROJECT, answered, environment, nbdpull, said
from documents import code, section, table
from identities import data, path, recipient
from sealed import filled, sealed_store
from stores import KIB, Vm

from nbdpull.core import errors
from nbdpull.crypto import identity_files
from nbdpull.format import layout
from nbdpull.operations import doctor, unlocking
from nbdpull.readiness import finding
from nbdpull.repository import key_files, marker

MANUAL = (PROJECT / "docs/nbdpull.1.md").read_text()
OTHERS = "not made with the key of this store"
MINE, WRONG = ("--identity", path("age1")), ("--identity", path("age2"))


@pytest.fixture(autouse=True)
def no_identity_given(monkeypatch):
    for name in (identity_files.VARIABLE, "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("sealed") / "store")


def lines(vm, out):
    """{command of the manual's table: its words, for one that reads a store without a hypervisor}"""
    root, first = vm.root, vm.points[0].id
    known = vm.store.seal.id and key_files.found(vm.store, recipient("ed25519")).name
    return {
        "restore": ["restore", root, "-o", out, "--format", "raw"],
        "digest": ["digest", root, "--no-record"],
        "diff": ["diff", root, first, "latest"],
        "index": ["index", root, "latest", "vda"],
        "verify": ["verify", root, "--no-record"],
        "verify --quick": ["verify", root, "--quick", "--no-record"],
        "show": ["show", root, "latest"],
        "show --xml": ["show", root, "latest", "--xml"],
        "prune": ["prune", root, "--keep-last", 9],
        "list": ["list", root],
        "status": ["status", root],
        "usage": ["usage", root],
        "policy": ["policy", root],
        "pin": ["pin", root, first],
        "unpin": ["unpin", root, first],
        "remove": ["remove", root, first, "--dry-run"],
        "copy": ["copy", root, out],
        "compare": ["compare", root, root],
        "key list": ["key", "list", root],
        "key remove": ["key", "remove", root, known],
        "key rotate": ["key", "rotate", root, "--recipient", recipient("age1")],
        "key add": ["key", "add", root, "--recipient", recipient("rsa")],
        "key test": ["key", "test", root],
        "key export": ["key", "export", root, "--recipient", recipient("age2")],
    }


HYPERVISOR = {"pull", "plan", "cleanup", "drill", "serve", "undelete"}  # serve: nbdkit; undelete: a bucket
ROWS = {name: row[1] for row in table(section(MANUAL, "Which verb needs an identity")) for name in code(row[0])}


def test_the_table_of_the_manual_names_every_verb_that_reads_a_store():
    without = {"run", "doctor", "release", "expose", "init"}
    from nbdpull.cli.commands import VERBS

    assert {name.split()[0] for name in ROWS} == set(VERBS) - without


@pytest.mark.parametrize("name", [name for name in ROWS if name.split()[0] not in HYPERVISOR])
def test_what_needs_an_identity_is_what_the_manual_says(name, vm, tmp_path, capsys):
    copy = vm.copy(tmp_path / "store")
    known = lines(copy, tmp_path / "out")
    words = known[name]
    needed = ROWS[name].startswith("yes")
    exit_code, _, before = answered(capsys, *words)
    assert (exit_code == 16) is needed, before
    if needed:
        assert (
            before.startswith(f"nbdpull: {copy.root} is sealed: name an identity that opens it")
            and before.count("\n") == 1
        )
        assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")
        exit_code, _, before = answered(capsys, *words, *WRONG)
        assert exit_code == 16 and f"{copy.root} does not open for {path('age2')} (an age key)" in before
        exit_code, _, before = answered(capsys, *words, *MINE)
        assert exit_code == 0, before
    else:
        assert exit_code == 0, before


def test_what_is_restored_is_what_was_stored(vm, tmp_path, monkeypatch):
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", path("age1"))
    for number, point in enumerate(vm.points):
        out = tmp_path / str(number)
        said("restore", vm.root, "--point", point.id, "-o", out, "--format", "raw")
        assert (out / "vda.raw").read_bytes() == vm.images[point.id]["vda"]


def test_prune_without_an_identity_repacks_nothing_and_says_so(tmp_path, capsys):
    vm = Vm(tmp_path / "store", keys=sealed_store(tmp_path / "store"))
    vm.add_disk("vda", 1024 * KIB)
    for number in range(2):
        vm.write("vda", 0, os.urandom(960 * KIB if number else 1024 * KIB))
        vm.pull(batch_size=64 * KIB)
    prune = ["prune", vm.root, "--keep-last", 1, "--force", "--now"]
    exit_code, _, before = answered(capsys, *prune)
    assert exit_code == 0 and len(json.loads(said("list", vm.root, "--json"))) == 1
    assert before.startswith(f"nbdpull: warning: vm1: not repacked: {vm.root} is sealed: name an identity")
    assert "--repack-below 0" in before and answered(capsys, *prune, "--repack-below", 0)[::2] == (0, "")
    exit_code, output, before = answered(capsys, *prune, *MINE)
    assert (exit_code, before) == (0, "") and "mostly dead files" in output
    said("verify", vm.root, *MINE)


def test_files_are_verified_without_an_identity(vm, tmp_path, capsys):
    copy = vm.copy(tmp_path / "store")
    for end in ("*.index", "*.zst", "domain.xml"):
        [*_, damaged] = sorted(copy.root.rglob(end))
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        exit_code, output, _ = answered(capsys, "verify", copy.root, "--quick", "--no-record")
        assert exit_code == 11 and damaged.name in output
        damaged.write_bytes(whole)
    exit_code, output, _ = answered(capsys, "verify", copy.root, "--quick", "--json")
    assert exit_code == 0
    [warning] = json.loads(output.splitlines()[-1])["warnings"]
    assert warning.startswith(f"{copy.root} is sealed, and there is no identity: it was not proved that its manifests")
    assert answered(capsys, "verify", copy.root, "--quick", *MINE)[::2] == (0, "")


def forged(vm, point):
    """Change a manifest, as who has not the key."""
    path = vm.folder / point.id / "manifest.json"
    document = json.loads(path.read_text())
    mac = document.pop("mac")
    del document["digest"]
    path.write_bytes(layout.seal({**document, "created": "2020-01-01T00:00:00+00:00", "mac": mac}))


def test_a_copy_with_an_identity_takes_no_forged_manifest(vm, tmp_path, capsys):
    here, there, second = vm.copy(tmp_path / "here"), tmp_path / "there", tmp_path / "second"
    newest = here.points[-1]
    forged(here, newest)
    exit_code, output, before = answered(capsys, "copy", here.root, there, *MINE)
    assert exit_code == 11 and "not made with the key of this store" in before
    assert [each["id"] for each in json.loads(said("list", there, "--json"))] == [here.points[0].id]
    assert answered(capsys, "copy", here.root, second)[0] == 0, "nothing reveals it without one"

    exit_code, _, before = answered(capsys, "copy", vm.root, second, *MINE)
    assert exit_code == 10 and f"nbdpull remove {second} {newest.id} makes way for this one" in before
    assert answered(capsys, "remove", second, newest.id)[0] == 0
    for dest in (there, second):
        assert answered(capsys, "copy", vm.root, dest, "--point", newest.id, *MINE)[0] == 0
        said("verify", dest, *MINE)


def test_a_copy_that_died_before_its_marker_is_reported_as_missing(vm, tmp_path, capsys):
    dest = tmp_path / "dest"
    before = answered(capsys, "copy", vm.root, dest, "--dry-run")
    said("copy", vm.root, dest)
    for each in [dest / "nbdpull.json", *dest.glob("vm1/*/*"), *dest.glob("vm1/*"), dest / "vm1"]:
        each.rmdir() if each.is_dir() else each.unlink()
    assert os.listdir(dest) == ["@keys"]
    assert answered(capsys, "copy", vm.root, dest, "--dry-run") == before and before[0] == 0
    assert answered(capsys, "copy", vm.root, dest)[0] == 0


def test_a_forged_damage_blocks_a_copy_until_the_next_verify(vm, tmp_path, capsys):
    """Findings take no key."""
    liar, here = vm.copy(tmp_path / "liar"), vm.copy(tmp_path / "here")
    for chunks in liar.root.rglob("*.zst"):
        chunks.write_bytes(stores.flipped(chunks.read_bytes(), -60 + chunks.stat().st_size))
    assert answered(capsys, "verify", liar.root, "--quick")[0] == 11
    for finding_ in liar.folder.glob("*.verify.json"):
        (here.folder / finding_.name).write_bytes(finding_.read_bytes())
    assert answered(capsys, "copy", here.root, tmp_path / "there")[0] == 11
    said("restore", here.root, "-o", tmp_path / "out", "--format", "raw", *MINE)
    assert answered(capsys, "verify", here.root, "--quick")[0] == 0
    assert answered(capsys, "copy", here.root, tmp_path / "there")[0] == 0


def test_a_broken_identity_is_reported_first(vm, tmp_path, capsys):
    (tmp_path / "key").write_text("AGE-SECRET-KEY-1\n")
    for named, before in (
        ("/nowhere", "cannot read the identity /nowhere"),
        (tmp_path / "key", "a line that is not an age"),
    ):
        exit_code, _, said_ = answered(capsys, "restore", vm.root, "-o", tmp_path / "out", "--identity", named)
        assert exit_code == 2 and before in said_ and not (tmp_path / "out").exists()


def test_doctor_checks_the_given_identity(monkeypatch, tmp_path):
    def found():
        return [(each.state, each.text) for each in finding.guarded("identity", doctor._identities())]

    assert found() == []
    (tmp_path / "key").write_bytes(data("age1"))
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", str(tmp_path / "key"))
    assert found() == [("good", f"{tmp_path / 'key'} (NBDPULL_IDENTITY_FILE) (an age key)")]
    (tmp_path / "key").chmod(0o644)
    assert found()[1][0] == "warn" and "everybody on this machine can read" in found()[1][1]
    (tmp_path / "key").write_bytes(data("locked"))
    assert [state for state, _ in found()] == ["BAD"]


# -- a store that is not sealed, in the place of one that is ----------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("plain") / "store", points=2, size=300 * KIB)


READERS = ("restore", "verify", "verify --quick", "digest", "show", "show --xml", "diff", "index", "prune")


@pytest.mark.parametrize("verb", READERS)
def test_with_an_identity_no_unsealed_store_is_read(plain, verb, tmp_path, capsys, monkeypatch):
    """Be it one that is not needed, or not there."""
    (tmp_path / "key").write_bytes(b"# nbdpull: only for master key " + b"0" * 32 + b"\n" + data("age1"))
    words = lines(plain, tmp_path / "out")[verb]
    for named in (path("age1"), "/nowhere", tmp_path / "key"):
        exit_code, _, before = answered(capsys, *words, "--identity", named)
        assert exit_code == 10 and before.count("\n") == 1, before
        assert (
            f"{plain.root} is not sealed, but there is an identity ({named}): if it was sealed, somebody rep" in before
        )
    monkeypatch.setenv("NBDPULL_IDENTITY_FILE", "/nowhere")
    exit_code, _, before = answered(capsys, *words)
    assert exit_code == 10 and "an identity (/nowhere (NBDPULL_IDENTITY_FILE))" in before
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("NBDPULL_IDENTITY_FILE")
    assert answered(capsys, *words)[0] == 0


def test_with_an_identity_no_unsealed_store_is_served(plain):
    with pytest.raises(errors.StoreError, match="is not sealed, but there is an identity"):
        unlocking.master(str(plain.root), [path("age1")])
    assert unlocking.master(str(plain.root), []) is None


# -- pulls ------------------------------------------------------------------------------------------------------------


def test_a_pull_with_an_identity_writes_into_no_store_that_is_not_sealed(tmp_path):
    """Whoever takes the seal from a marker would read what comes from then on."""
    stores.chain(tmp_path / "plain", points=1)
    with pytest.raises(errors.StoreError, match=r"plain is not sealed, but there is an identity \(.*age1\): if it was"):
        unlocking.for_pull(str(tmp_path / "plain"), None, [path("age1")], pytest.fail)
    with pytest.raises(
        errors.UsageError, match="new is not a store yet, and a pull does not create a sealed one: first run nbd"
    ):
        unlocking.for_pull(str(tmp_path / "new"), None, [path("age1")], pytest.fail)
    assert not (tmp_path / "new").exists()
    assert unlocking.for_pull(str(tmp_path / "new"), None, [], pytest.fail).seal.id is None


def test_a_pull_into_a_sealed_store_needs_an_identity(tmp_path):
    sealed_store(tmp_path / "store")
    with pytest.raises(errors.KeyNeeded, match="store is sealed: name an identity"):
        unlocking.for_pull(str(tmp_path / "store"), None, [], pytest.fail)
    with pytest.raises(errors.KeyNeeded, match="does not open for"):
        unlocking.for_pull(str(tmp_path / "store"), None, [path("age2")], pytest.fail)
    assert unlocking.for_pull(str(tmp_path / "store"), None, [path("age1")], pytest.fail).seal.id is not None


def test_a_pull_into_a_store_that_cannot_be_remembered(tmp_path, monkeypatch):
    sealed_store(tmp_path / "store")
    monkeypatch.setenv("NBDPULL_STATE_DIR", "/proc/nbdpull")  # where nobody can make a folder
    warnings = []
    assert unlocking.for_pull(str(tmp_path / "store"), None, [path("age1")], warnings.append).seal.opens
    [warning] = warnings
    assert f"cannot remember that {tmp_path}/store is sealed with key" in warning


def test_pulls_into_a_sealed_store(machine, tmp_path):
    root, vm = tmp_path / "store", machine({"vda": 4 << 20})
    store_keys = sealed_store(root)
    done = nbdpull("pull", vm.name, "-o", root, "-c", vm.bed.uri)
    assert done.returncode == 16 and "name an identity" in done.stderr and not vm.job_active()
    assert os.listdir(root) and vm.checkpoints() == []
    seen = []
    for number in range(2):
        vm.write("vda", number << 20, 1 << 20, 0x41 + number)
        seen.append(vm.freeze_copy("vda", tmp_path / f"{number}.raw"))
        said("pull", vm.name, "-o", root, "-c", vm.bed.uri, *MINE)
    about = (vm.name, "-o", root, "-c", vm.bed.uri)
    assert [nbdpull("plan", *about, *by).returncode for by in ((), MINE)] == [16, 0]
    assert nbdpull("cleanup", *about).returncode == 0
    points = json.loads(said("list", root, "--json"))
    assert [point["disks"][0]["mode"] for point in points] == ["full", "incremental"]
    for point, raw in zip(points, seen):
        out = tmp_path / point["id"]
        said("restore", root, "--point", point["id"], "-o", out, "--format", "raw", *MINE)
        assert (out / "vda.raw").read_bytes() == Path(raw).read_bytes()
    everything = b"".join(each.read_bytes() for each in root.rglob("*") if each.is_file())
    assert all(secret not in everything for secret in (b"A" * 64, store_keys.data, data("age1").strip()))
    modes = {oct(each.stat().st_mode & 0o777) for each in root.rglob("*")}
    assert modes == {"0o700", "0o600"}
    (root / "nbdpull.json").unlink()
    shutil.rmtree(root / "@keys")
    sealed_store(tmp_path / "of a thief")  # with a master key that he knows, for the same public key
    shutil.copytree(tmp_path / "of a thief", root, dirs_exist_ok=True)
    other_host = {**environment(), "NBDPULL_STATE_DIR": str(tmp_path / "state")}
    for verb, env, before in (
        ("pull", environment(), "was sealed with key"),
        ("pull", other_host, OTHERS),
        ("plan", environment(), OTHERS),
    ):
        done = nbdpull(verb, *about, *MINE, env=env)
        assert done.returncode == 11 and before in done.stderr
    assert len(json.loads(said("list", root, "--json"))) == 2 and not vm.job_active()


# -- serve ------------------------------------------------------------------------------------------------------------


def test_serve_over_http_with_an_identity(vm, tmp_path):
    with http_points.served(vm, tmp_path, http="127.0.0.1:0", identities=[path("age1")]) as [event]:
        wanted = urllib.request.Request(
            event["exports"][0]["data"], headers={"Authorization": f"Bearer {http_points.TOKEN}"}
        )
        assert urllib.request.urlopen(wanted, timeout=20).read() == vm.images[vm.points[-1].id]["vda"]
    with pytest.raises(errors.KeyNeeded), http_points.served(vm, tmp_path, http="127.0.0.1:0"):
        pass


# -- what a host knows -------------------------------------------------------------------------------------------------


@pytest.fixture
def known(vm, tmp_path, monkeypatch):
    """A store that this host has pulled to; the line of it."""
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "state"))
    twin = vm.copy(tmp_path / "store")
    for _ in range(2):
        unlocking.for_pull(str(twin.root), None, [path("age1")], pytest.fail)
    assert (tmp_path / "state/known-stores").read_text() == f"{twin.store.seal.id} {twin.root}\n"
    return twin.root


def refused(root, *named):
    with pytest.raises(errors.Foreign) as before:
        unlocking.for_pull(str(root), None, named, pytest.fail)
    return str(before.value)


def test_a_store_that_somebody_sealed_with_another_key(known, tmp_path):
    """Which our identity opens, too: it is public for whom. The way out lets both be known, as of disks in turn."""
    old = marker.master_of(marker.open_store(str(known)))
    os.rename(known, tmp_path / "away")
    said("init", known, "--recipient", recipient("age1"))
    new = marker.master_of(marker.open_store(str(known)))
    line = f"{new} {known}"
    assert refused(known, path("age1")) == (
        f"{known} was sealed with key {old} when this host last wrote to it, and now it is sealed with key {new}: "
        f"somebody may have replaced it; if you intended that, add the line '{line}' to "
        f"{tmp_path}/state/known-stores"
    )
    with open(tmp_path / "state/known-stores", "a") as file:
        file.write(line + "\n")
    unlocking.for_pull(str(known), None, [path("age1")], pytest.fail)
    shutil.rmtree(known)
    os.rename(tmp_path / "away", known)
    unlocking.for_pull(str(known), None, [path("age1")], pytest.fail)


@pytest.mark.parametrize("is_made", [True, False])
def test_a_store_that_is_not_sealed_any_more(known, tmp_path, is_made):
    """Also where no identity is named, nor is one made in its place."""
    shutil.rmtree(known)
    if is_made:
        said("init", known)
    now = "it is not sealed" if is_made else "nothing is there"
    assert (
        f"and now {now}: somebody may have replaced it; if you intended that, remove the line of {known} from"
        in refused(known)
    )
    assert os.path.exists(known) is is_made
    (tmp_path / "state/known-stores").write_text("")
    unlocking.for_pull(str(known), None, [], pytest.fail)


def test_keys_that_change_and_a_store_that_moves(known, tmp_path):
    """The master key stays, so it is the same store; where it was, none may be made without a word."""
    said("key", "rotate", known, "--recipient", recipient("age2"), *MINE, "--identity", path("age2"))
    before = (tmp_path / "state/known-stores").read_text()
    unlocking.for_pull(str(known), None, [path("age2")], pytest.fail)
    assert (tmp_path / "state/known-stores").read_text() == before
    os.rename(known, tmp_path / "moved")
    unlocking.for_pull(str(tmp_path / "moved"), None, [path("age2")], pytest.fail)
    assert "nothing is there" in refused(known, path("age2"))


def test_a_host_that_can_keep_nothing(vm, tmp_path, monkeypatch):
    """As a pod: it pulls, and knows nothing. What it cannot read is no yes."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("NBDPULL_STATE_DIR", str(tmp_path / "file"))
    root = vm.copy(tmp_path / "store").root
    with pytest.raises(errors.OutputError, match="the known stores of this host cannot be read: .*: Not a directory"):
        unlocking.for_pull(str(root), None, [path("age1")], pytest.fail)
