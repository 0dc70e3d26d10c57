"""Stores that are copied, shared or damaged between two pulls.

Must not know: the inside of the package.
"""

import os
import shutil
import subprocess
import sys

import pytest
from bed.machine import MIB, Disk
from command import environment, nbdpull
from stores import verify_store
from witness import CLUSTER, FULL_FIRST, KIB, SINCE, Witness, assert_same, modes

from nbdpull.core import errors
from nbdpull.operations import restore

# -- stores -----------------------------------------------------------------------------------------------------------


def test_store_copied_to_another_place(pulled):
    """Both are pulled into: the one whose checkpoint the other one deleted gets a full point, and neither is ever
    wrong."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    original, copied = witness.store, witness.folder / "copied store"
    shutil.copytree(original, copied)
    for n, store in enumerate([copied, original, copied]):
        vm.write("vda", n * CLUSTER, CLUSTER, 0x21 + n)
        witness.store = store
        point = witness.pull()
        assert_same(witness.restored(), witness.frozen[point["id"]], f"pull {n}")
        witness.assert_verified()
    witness.store.rename(witness.folder / "moved")
    witness.store = witness.folder / "moved"
    vm.write("vda", 9 * CLUSTER, CLUSTER, 0x31)
    assert modes(witness.pull()) == {"vda": SINCE}
    assert_same(witness.restored(), witness.content())


def test_two_stores_of_one_domain_do_not_disturb_each_other(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    stores = [witness.store, witness.folder / "weekly"]
    for n in range(6):
        witness.store = stores[n % 2]
        point = witness.pull()
        assert modes(point) == {"vda": SINCE if n > 1 else FULL_FIRST}
        assert_same(witness.restored(), witness.frozen[point["id"]])
        vm.write("vda", n * CLUSTER, CLUSTER, 0x21 + n)
    assert len(vm.checkpoints()) == 2


def test_a_pull_with_prune(pulled):
    """Nothing is started without a policy; with one, what it does not keep is removed, and the new point stays."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    words = witness.words("--prune")
    done = nbdpull(*words)
    assert done.returncode == 2 and "has no policy; write one with nbdpull policy" in done.stderr
    assert not witness.store.exists() and vm.checkpoints() == []
    points = [witness.pull()["id"]]
    assert witness.result["pruned"] is None
    assert nbdpull("policy", witness.store, "--domain", "other", "--keep-last", "2").returncode == 0
    done = nbdpull(*words)
    assert done.returncode == 2 and f"has no policy for {vm.name}" in done.stderr and len(witness.points()) == 1
    assert nbdpull("policy", witness.store, "--keep-last", "2").returncode == 0
    for n in range(2):
        vm.write("vda", n * CLUSTER, CLUSTER, 0x21 + n)
        points.append(witness.pull("--prune")["id"])
        assert modes(witness.result["details"]) == {"vda": SINCE}
        assert witness.result["pruned"]["removed"] == points[max(n - 1, 0) : n], f"pull {n}"
        assert " --prune " in witness.result["next_command"]
    assert [point["id"] for point in witness.points()] == points[-2:]
    witness.assert_restores(*points[-2:])
    done = nbdpull("policy", witness.store, "--keep-last", "1")
    assert done.returncode == 0
    done = nbdpull(*[word for word in words if word != "--json"])
    assert done.returncode == 0 and f"{vm.name}: point " in done.stdout, "the pull is well"
    assert "the point is committed, but the pruning failed: more than half" in done.stderr


def test_two_domains_in_one_store(pulled, machine):
    witness = pulled({"vda": MIB})
    other = Witness(machine({"vda": MIB}), witness.folder / "other")
    other.store = witness.store
    for n, each in enumerate([witness, other, witness, other]):
        each.vm.write("vda", n * CLUSTER, CLUSTER, n + 1)
        each.pull()
    for each in (witness, other):
        for point, held in each.frozen.items():
            assert_same(each.restored(point, "--domain", each.vm.name), held)
    assert nbdpull("restore", witness.store, "-o", witness.folder / "out").returncode == 10
    assert len(witness.points()) == 4


def test_point_lost_from_the_store(pulled):
    """The next one refers to files of it, which the pull after that reads again, and says why."""
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull()
    second = witness.pull()
    shutil.rmtree(next(witness.store.glob(f"*/{first['id']}")))
    third = witness.pull()
    assert modes(third)["vda"] == ("incremental", "healed") and third["disks"][0]["read_bytes"] == MIB
    assert any(first["id"] in warning for warning in witness.result["warnings"])
    assert second["checkpoint"] not in vm.checkpoints()  # no use any more
    witness.assert_restores(third["id"])


def test_restore_and_verify_without_libvirt(pulled):
    witness = pulled({"vda": MIB})
    witness.vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    witness.vm.write("vda", 0, 512, 0x21)
    point = witness.pull()
    program = (
        "import sys; sys.modules['libvirt'] = None; from nbdpull.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    out = witness.folder / "out"
    for words in (["verify", witness.store], ["restore", witness.store, "-o", out, "--format", "raw"]):
        done = subprocess.run([sys.executable, "-c", program, *map(str, words)], env=environment(), capture_output=True)
        assert done.returncode == 0, done.stderr
    assert_same({"vda": (out / "vda.raw").read_bytes()}, witness.frozen[point["id"]])


@pytest.mark.timeout_seconds(240)
def test_damage_to_any_file_is_found_and_refused(pulled):
    """In a store that was really pulled: a flipped byte and a truncation, in every file of two points that share
    some."""
    witness = pulled({"vda": MIB, "vdb": Disk(MIB, "raw")}, quick=True)
    witness.vm.write_bytes("vda", 1000, os.urandom(200 * KIB))
    witness.pull()
    witness.vm.write_bytes("vda", 5 * CLUSTER, os.urandom(1000))
    witness.pull()
    assert damages(witness) == []
    files = [path for path in sorted(witness.store.rglob("*")) if path.is_file()]
    assert len(files) == 1 + 2 * 9
    for path in files:
        intact = path.read_bytes()
        owner = next((point for point in witness.frozen if point in path.parts), "latest")
        for damaged in (intact[: len(intact) // 2], intact[:-1], flipped(intact, len(intact) // 2), None):
            if damaged is None and path.name == "manifest.json":
                continue  # without it there never was a point
            path.unlink() if damaged is None else path.write_bytes(damaged)
            what = f"{path}, {len(intact)} bytes, damaged to {damaged}"
            assert damages(witness), what
            if path.name in NO_DISK:
                assert restored_or_refused(witness, owner), what
            elif path.suffix != ".zst" or damaged is None or len(damaged) != len(intact):
                assert restored_or_refused(witness, owner) is None, what  # of a chunk file, the frames tell
            for point in witness.frozen:  # others may not need the file: right or refused, but never wrong
                assert_same(restored_or_refused(witness, point) or witness.frozen[point], witness.frozen[point], what)
        path.write_bytes(intact)
    assert damages(witness) == []
    witness.assert_restores()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def damages(witness):
    """Return what verify finds; in this process, because each command line would take a third of a second."""
    try:
        return verify_store(witness.store).damages
    except errors.NbdpullError as error:
        return [error]


NO_DISK = ("SHA256SUMS", "checkpoint.xml")  # no disk is made from these


def restored_or_refused(witness, point):
    """Return the bytes of the point's disks, or None if restore refused and wrote nothing."""
    out = witness.folder / "perhaps"
    try:
        restore.restore(restore.Options(str(witness.store), str(out), point=point, kind="raw"))
        return {image.stem: image.read_bytes() for image in out.glob("*.raw")}
    except errors.NbdpullError:
        assert not list(out.glob("*"))
        return None
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_disk_that_was_shrunk_and_grown_again_between_two_points(pulled):
    """What the shrinking cut off reads as zero, and must not reappear in a restore."""
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    witness.pull()
    vm.stop()
    vm.resize("vda", MIB)
    vm.resize("vda", 2 * MIB)
    vm.start()
    witness.pull()
    witness.assert_restores()
