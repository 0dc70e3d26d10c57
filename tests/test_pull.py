"""Pull and restore end to end: a series, the names it may have, and runs that fail in the middle.

The real command line, a real libvirt and QEMU, every point compared with its source. Must not know: the inside of the
package.
"""

import grp
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from bed.machine import MIB, Disk
from command import environment, last_event, nbdpull, said
from witness import (
    CLUSTER,
    FULL_FIRST,
    KIB,
    SINCE,
    Before,
    Witness,
    assert_same,
    dirty,
    modes,
    sockets,
    stopped_in_the_middle,
)

# -- a series ---------------------------------------------------------------------------------------------------------


def test_each_point_of_a_series_restores_to_its_source(pulled):
    """Full, write, zeroes, discard: what was data in the parent and is zero now must not come back."""
    witness = pulled({"vda": 16 * MIB, "vdb": Disk(8 * MIB + 512, "raw")})
    vm = witness.vm
    vm.write("vda", 0, 9 * MIB, 0x11)
    vm.write("vdb", MIB, 3 * MIB, 0x12)
    first = witness.pull()
    assert modes(first) == {"vda": FULL_FIRST, "vdb": FULL_FIRST}
    assert (first["parent"], first["since"], first["domain"], first["uuid"]) == (None, None, vm.name, vm.uuid)

    vm.write("vda", 5 * MIB + 100, 3 * CLUSTER, 0x21)
    vm.write("vda", 12 * MIB, 512, 0x22)
    vm.write("vdb", 8 * MIB, 512, 0x23)
    vm.write("vdb", 2 * MIB, MIB, 0x24)
    second = witness.pull()
    assert modes(second) == {"vda": SINCE, "vdb": ("full", "raw-has-no-bitmaps")}
    assert (second["parent"], second["since"]) == (first["id"], first["checkpoint"])
    assert dirty(second)["vda"] == 5 * CLUSTER

    vm.write_zeroes("vda", MIB, MIB)
    vm.write_zeroes("vda", 3 * MIB, MIB, unmap=True)
    vm.write_zeroes("vda", 7 * MIB + 300, 400)
    vm.discard("vda", 4 * MIB, 4 * CLUSTER)
    vm.discard("vda", 6 * MIB + 512, 512)
    vm.discard("vdb", MIB, MIB)
    third = witness.pull()
    assert third["disks"][0]["zero_bytes"] == 2 * MIB + 4 * CLUSTER

    vm.write("vda", 3 * MIB + 512, 512, 0x41)  # a bit of data into what is now zero over data
    vm.write("vda", 4 * MIB + CLUSTER, 100, 0x42)
    witness.pull()
    fifth = witness.pull()  # and nothing at all
    assert dirty(fifth)["vda"] == 0

    witness.assert_restores()
    witness.assert_verified()
    assert [point["id"] for point in witness.points()] == list(witness.frozen)
    assert vm.checkpoints() == [fifth["checkpoint"]]


@pytest.mark.timeout_seconds(180)
def test_chain_of_ten_incrementals(pulled):
    witness = pulled({"vda": 8 * MIB, "vdb": Disk(4 * MIB, options="cluster_size=4096")}, quick=True)
    vm = witness.vm
    vm.write_bytes("vda", 0, os.urandom(4 * MIB))
    previous = witness.pull()
    for n in range(1, 11):
        vm.write("vda", n * 7 * CLUSTER, 2 * CLUSTER + n, n)
        vm.write_zeroes("vda", n * 5 * CLUSTER, CLUSTER, unmap=bool(n % 2))
        vm.discard("vdb", (n - 1) * 300 * KIB, 100 * KIB)
        vm.write_bytes("vdb", n * 300 * KIB, os.urandom(5000))
        point = witness.pull()
        assert modes(point) == {"vda": SINCE, "vdb": SINCE}
        assert point["parent"] == previous["id"]
        assert vm.checkpoints() == [point["checkpoint"]]
        previous = point
    witness.assert_restores()
    witness.assert_verified()


def test_writes_during_the_pull(pulled):
    """The point is of the moment when the job started, and later writes are in the next one."""
    witness = pulled({"vda": 32 * MIB, "vdb": Disk(4 * MIB, "raw")})
    vm = witness.vm
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    vm.write_bytes("vdb", 0, os.urandom(4 * MIB))
    held = witness.content()
    with stopped_in_the_middle(witness) as process:
        vm.write("vda", 0, 32 * MIB, 0x77)
        vm.discard("vda", 20 * MIB, MIB)
        vm.write_zeroes("vdb", MIB, 3 * MIB)
    assert process.returncode == 0, process.problem
    witness.made(last_event(process.output), held)
    second = witness.pull()
    assert dirty(second)["vda"] == 32 * MIB
    witness.assert_restores()


def test_restore_to_qcow2(pulled):
    witness = pulled({"vda": 4 * MIB, "vdb": 3 * MIB + 512, "vdc": 0})
    vm = witness.vm
    vm.write("vda", MIB, MIB, 0x11)
    witness.pull()
    vm.write_zeroes("vda", MIB + CLUSTER, CLUSTER)  # vdb stays all zero
    point = witness.pull()
    out = witness.folder / "out"
    done = nbdpull("restore", witness.store, "-o", out)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(out)) == ["domain.xml", "vda.qcow2", "vdb.qcow2", "vdc.qcow2"]
    for disk, content in witness.frozen[point["id"]].items():
        expected = witness.folder / "expected.raw"
        expected.write_bytes(content)
        image = str(out / f"{disk}.qcow2")
        compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, str(expected)]
        assert subprocess.run(compare).returncode == 0, disk
        info = subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True, check=True)
        assert json.loads(info.stdout)["virtual-size"] == len(content)
    check = subprocess.run(["qemu-img", "check", str(out / "vda.qcow2")], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    assert vm.uuid in (out / "domain.xml").read_text()


def test_defaults_leave_nothing_behind(pulled):
    """No scratch directory, no socket, no JSON: the command line that most users type."""
    witness = pulled({"vda": MIB})
    done = nbdpull(witness.vm.name, "-o", witness.store)
    assert done.returncode == 0, done.stderr
    point = witness.points()[0]
    assert point["id"] in done.stdout
    assert done.stdout.splitlines()[-1] == f"next: nbdpull {witness.vm.name} -o {witness.store}"
    assert done.stderr == ""  # no bars in a pipe
    assert list(Path("/var/tmp").glob(f"*{point['id']}*")) == [] and sockets(witness.vm) == []


@pytest.mark.parametrize("group", [None, "of this test"])
def test_a_store_that_everybody_could_read(pulled, tmp_path, group):
    """Whatever the umask: the points, and what verify, digest and a rebuilt index add."""
    witness = pulled({"vda": MIB})
    known = [each.gr_name for each in grp.getgrall() if os.geteuid() == 0 or each.gr_gid in os.getgroups()]
    options = ["--group", known[-1]] if group else []
    before = os.umask(0)
    try:
        witness.pull(*options)
        witness.vm.write("vda", 0, CLUSTER, 0x22)
        point = witness.pull()
        said("verify", witness.store)
        said("digest", witness.store)
        next(witness.store.glob(f"*/{point['id']}/vda.index")).unlink()
        said("index", "--rebuild", witness.store, "latest", "vda")
    finally:
        os.umask(before)
    expected = {(0o750, 0o640)} if group else {(0o700, 0o600)}
    made = [witness.store, *witness.store.rglob("*")]
    found = {path.is_dir(): path.stat().st_mode & 0o777 for path in made}
    assert {(found[True], found[False])} == expected
    assert all(path.stat().st_mode & 0o777 == found[path.is_dir()] for path in made)
    assert len({path.stat().st_gid for path in made}) == 1 and (not group or made[0].group() == known[-1])
    assert witness.result["warnings"] == []


def test_a_store_open_to_everybody_is_a_warning(pulled):
    """By pull and verify, even to users who see only errors; its modes are not changed."""
    witness = pulled({"vda": MIB})
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        witness.store = Path(folder) / "store"
        witness.pull()
        subprocess.run(["chmod", "-R", "a+rX", witness.store], check=True)
        mend = f"chmod -R go-rwx {witness.store}"
        witness.pull()
        assert mend in witness.result["warnings"][0]
        for words in (["verify", witness.store, "--quiet"], witness.words("--quiet")):
            done = nbdpull(*[word for word in words if word != "--json"])
            assert done.returncode == 0 and mend in done.stderr, words
        assert witness.store.stat().st_mode & 0o777 == 0o755


def test_small_frames_and_many_chunk_files(pulled):
    witness = pulled({"vda": 6 * MIB})
    witness.vm.write_bytes("vda", 12345, os.urandom(5 * MIB))
    witness.pull("--frame-size", "64K", "--chunk-size", "1M", "--level", "3")
    witness.vm.write("vda", MIB - 10, 20, 0x22)
    second = witness.pull("--frame-size", "128K")
    assert len(list(witness.store.glob("*/*/vda.*.zst"))) == 6
    assert second["disks"][0]["read_bytes"] == 2 * CLUSTER
    witness.assert_restores()


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = ["list", "-dash", "a\ttab", 'it\'s "quoted" $HOME %41 \\ *', ".hidden b\u00fcro \u65e5"]


@pytest.mark.parametrize("name", NAMES)
def test_domain_names(pulled, name):
    """A domain of that name is pulled, found again and restored; and the printed next command works in a shell."""
    witness = pulled({"vda": MIB}, name=name)
    witness.vm.write("vda", 0, CLUSTER, 0x11)
    first = witness.pull()
    witness.vm.write("vda", CLUSTER, CLUSTER, 0x21)
    held = witness.content()
    command = witness.result["next_command"]
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words + ["--json"] if "--" not in words else [*words[:4], "--json", *words[4:]],
                          env=environment(), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stderr}"
    second = witness.made(last_event(done.stdout), held)
    assert (second["parent"], second["domain"]) == (first["id"], name)
    assert [point["domain"] for point in witness.points()] == [name, name]
    assert_same(witness.restored("latest", f"--domain={name}"), held)
    witness.assert_restores()
    if name != "list" and not name.startswith("-"):
        assert command.startswith("nbdpull " + shlex.quote(name))


@pytest.mark.parametrize("name", ["\u65e5" * 60, "x" * 20 + "\U0001f4be" * 55, "x" * 240])
def test_long_names_of_domains(pulled, name):
    """As long as libvirt accepts them: it has a file NAME.xml for each, and a directory named after the first 20
    characters."""
    witness = pulled({"vda": MIB}, name=name)
    witness.vm.write("vda", 0, CLUSTER, 0x11)
    first = witness.pull()
    witness.vm.write("vda", CLUSTER, CLUSTER, 0x21)
    assert witness.pull()["parent"] == first["id"]
    assert {point["domain"] for point in witness.points()} == {name}
    assert_same(witness.restored("latest", f"--domain={name}"), witness.content())
    witness.assert_restores()


def test_names_of_checkpoints_that_look_like_options(pulled):
    witness = pulled({"vda": MIB})
    witness.pull("--checkpoint=-x")
    assert witness.vm.checkpoints() == ["-x"]
    done = subprocess.run([sys.executable, "-m", *shlex.split(witness.result["next_command"])], env=environment())
    assert done.returncode == 0


def test_names_of_stores(pulled):
    witness = pulled({"vda": MIB})
    for folder in ("with blank", "b\u00fcro", "deep/er/still", "trailing/"):
        witness.store = f"{witness.folder}/{folder}"
        assert modes(witness.pull()) == {"vda": FULL_FIRST}
        assert Path(witness.store, "nbdpull.json").is_file()


# -- a run that fails in the middle -----------------------------------------------------------------------------------


def test_job_ended_by_somebody_else_in_the_middle(pulled):
    """What was read until then is invalid, although no read failed; the old base remains, and the next point is
    right."""
    witness = pulled({"vda": 32 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull()
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    before = Before(witness)
    with stopped_in_the_middle(witness) as process:
        vm.domain.abortJob()  # its end needs the client: QEMU waits for what is on its way to it
    assert process.returncode == 6, process.problem
    # by whether a read was under way just then
    assert last_event(process.output)["code"] in ("job-lost", "source")
    before.assert_same()
    vm.write("vda", 0, 512, 0x31)
    second = witness.pull()
    assert second["parent"] == first["id"] and dirty(second) == {"vda": 32 * MIB}
    witness.assert_restores()


def test_two_pulls_at_once(pulled):
    """One wins; the other is told to try again, whether into the same store or another one."""
    witness = pulled({"vda": 32 * MIB})
    witness.vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    held = witness.content()
    with stopped_in_the_middle(witness) as process:
        for store in (witness.store, witness.folder / "another"):
            started = time.monotonic()
            other = nbdpull(witness.vm.name, "-o", store)
            assert other.returncode == 5, other.stderr
            assert time.monotonic() - started < 10
            assert "nbdpull run" in other.stderr and f"process {process.pid} " in other.stderr
    assert process.returncode == 0, process.problem
    witness.made(last_event(process.output), held)
    witness.assert_restores()
    assert not (witness.folder / "another").exists()


def test_no_more_chunk_files_than_a_manifest_holds(machine, tmp_path, monkeypatch):
    """A reader refuses a manifest that is too large, so a writer must not be able to make one."""
    vm = machine({"vda": 6 * MIB})
    vm.write_bytes("vda", 0, os.urandom(6 * MIB))
    witness = Witness(vm, tmp_path / "w", quick=True)
    monkeypatch.setattr("nbdpull.format.layout.MAX_CHUNK_FILES", 3)
    witness.pull("--full", "--chunk-size", "2M")
    assert witness.result["warnings"] == []
    made = witness.pull("--full", "--no-dedupe", "--chunk-size", "1M")
    assert witness.result["warnings"] == ["a point has at most 3 chunk files: each takes 2097152 bytes"]
    assert len(list(witness.store.glob(f"*/{made['id']}/*.zst"))) == 3
    witness.assert_restores()
