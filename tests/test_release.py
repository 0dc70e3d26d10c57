"""release: a domain without anything of nbdpull; and doctor, which reports what there is of it."""

import json
import os
import shutil
import subprocess

import pytest
from bed.machine import MIB, wait_for
from command import nbdpull
from witness import modes

libvirt = pytest.importorskip("libvirt")

METADATA_ONLY = 2


@pytest.fixture
def witness(pulled):
    made = pulled({"vda": 4 * MIB, "vdb": MIB})
    made.vm.write("vda", 0, MIB)
    return made


def release(witness, *options):
    """Return (exit code, {what was found: why it is still there})."""
    done = nbdpull("release", witness.vm.name, "-c", witness.vm.bed.uri, "--json", *options)
    result = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, {each["what"]: each["left"] for each in result.get("found", [])}


def doctor(witness):
    done = nbdpull("doctor", witness.vm.name, "-c", witness.vm.bed.uri, "--json")
    return {each["subject"]: each for each in json.loads(done.stdout)}


def stored_bitmaps(vm, disk):
    """Return the names of the bitmaps in the image of a machine that is off."""
    output = subprocess.run(["qemu-img", "info", "--output=json", "-f", "qcow2", vm.disks[disk].path],
                          capture_output=True, check=True).stdout  # fmt: skip
    return [each["name"] for each in json.loads(output)["format-specific"]["data"].get("bitmaps", [])]


def orphan(witness):
    """Pull, let libvirt forget the checkpoint, as an undefine does, and return its name."""
    name = witness.pull()["checkpoint"]
    witness.vm.domain.checkpointLookupByName(name).delete(METADATA_ONLY)
    return name


def test_checkpoints_of_a_store_that_was_thrown_away(witness):
    first, named = witness.pull("--checkpoint", "chk1")["checkpoint"], witness.pull()["checkpoint"]
    witness.vm.create_checkpoint("foreign")
    shutil.rmtree(witness.store)
    assert "nbdpull release" in doctor(witness)["checkpoints"]["advice"]
    assert release(witness, "--dry-run") == (0, {f"checkpoint {name}": "dry run" for name in (first, named)})
    assert witness.vm.checkpoints() == [first, named, "foreign"]
    assert release(witness) == (0, {f"checkpoint {name}": "" for name in (first, named)})
    assert witness.vm.checkpoints() == ["foreign"] and list(witness.vm.bitmaps("vda")) == ["foreign"]
    assert release(witness) == (0, {})
    assert not {"checkpoints", "snapshots"} & set(doctor(witness))


def test_the_next_pull_is_full(witness):
    witness.pull()
    release(witness)
    assert modes(witness.pull()) == {name: ("full", "checkpoint-lost") for name in ("vda", "vdb")}
    witness.assert_restores()


def test_a_revert_to_an_internal_snapshot(witness):
    """With checkpoints it fails, and leaves a running domain shut off."""
    vm = witness.vm
    vm.bed.virsh("snapshot-create-as", vm.name, "s1")
    vm.write("vda", 0, MIB, 0x33)
    assert "once a pull has made a checkpoint" in doctor(witness)["snapshots"]["text"]
    for options, warned in ((["--no-checkpoint"], False), ([], True), ([], False)):
        witness.pull(*options)
        assert any("snapshot-revert" in each for each in witness.result["warnings"]) is warned
    result = doctor(witness)["snapshots"]
    assert result["state"] == "warn" and result["advice"] == f"before a revert: nbdpull release {vm.name}"
    assert release(witness)[0] == 0
    vm.bed.virsh("snapshot-revert", vm.name, "s1")
    assert vm.active and vm.content("vda")[:MIB] == b"\x55" * MIB
    vm.bed.virsh("snapshot-delete", vm.name, "s1")
    assert "snapshots" not in doctor(witness)


def test_virtnbdbackup_beside_it(witness, monkeypatch, tmp_path):
    """It refuses a domain that has a checkpoint of another program."""
    vm = witness.vm
    assert "virtnbdbackup" not in doctor(witness)
    vm.create_checkpoint("virtnbdbackup.0")
    result = doctor(witness)["virtnbdbackup"]
    assert result["state"] == "warn" and result["advice"].endswith("virtnbdbackup: pull it with --no-checkpoint")
    witness.pull("--no-checkpoint")
    assert vm.checkpoints() == ["virtnbdbackup.0"]
    witness.pull()
    result = doctor(witness)["virtnbdbackup"]
    assert "as this one" in result["text"] and f"nbdpull release {vm.name}, and pull" in result["advice"]
    assert release(witness)[0] == 0 and vm.checkpoints() == ["virtnbdbackup.0"]
    vm.delete_checkpoint("virtnbdbackup.0")
    assert "virtnbdbackup" not in doctor(witness)
    (tmp_path / "virtnbdbackup").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "is installed, and refuses" in doctor(witness)["virtnbdbackup"]["text"]


@pytest.mark.parametrize("crashed", [False, True])
def test_bitmaps_that_no_checkpoint_owns(witness, crashed):
    vm, name = witness.vm, orphan(witness)
    vm.stop()
    assert stored_bitmaps(vm, "vda") == [name]
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", vm.disks["vda"].path, "of-somebody"], check=True)
    vm.start()
    if crashed:
        vm.kill()
        vm.start()
    result = doctor(witness)[f"bitmap {name}"]
    assert result["state"] == "warn" and "on disk vda, vdb: it belongs to no checkpoint" in result["text"]
    assert release(witness) == (0, {f"bitmap {name} of disk vda, vdb": ""})
    assert list(vm.bitmaps("vda")) == ["of-somebody"] and list(vm.bitmaps("vdb")) == []
    assert f"bitmap {name}" not in doctor(witness)


def test_of_a_copied_image(witness, tmp_path):
    """The original's bitmap would record in the copy forever."""
    vm, name = witness.vm, witness.pull()["checkpoint"]
    vm.stop()
    copy = tmp_path / "copy.qcow2"
    shutil.copy(vm.disks["vda"].path, copy)
    vm.domain.checkpointLookupByName(name).delete(METADATA_ONLY)
    shutil.copy(copy, vm.disks["vda"].path)
    vm.start()
    assert release(witness) == (0, {f"bitmap {name} of disk vda, vdb": ""})


def test_a_domain_that_is_off(witness):
    vm, lost = witness.vm, orphan(witness)
    shutil.rmtree(witness.store)  # from which the checkpoint would be given back
    kept = witness.pull()["checkpoint"]
    vm.stop()
    assert release(witness) == (0, {f"checkpoint {kept}": "", f"bitmap {lost} of disk vda, vdb": ""})
    assert not vm.active and stored_bitmaps(vm, "vda") == [] and vm.checkpoints() == []


def test_beside_a_job(witness):
    witness.pull()
    vm = witness.vm
    vm.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{vm.folder}/s'/></domainbackup>", None
    )
    try:
        assert release(witness) == (5, {})
        assert len(vm.checkpoints()) == 1
    finally:
        vm.domain.abortJob()
    wait_for(lambda: not vm.job_active(), "end of the job")


def test_no_such_domain(witness):
    done = nbdpull("release", "nowhere", "-c", witness.vm.bed.uri)
    assert done.returncode == 3 and "no domain 'nowhere'" in done.stderr
