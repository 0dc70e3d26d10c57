"""plan and doctor: what they report is what a pull then does, and they change nothing."""

import os

import pytest
from bed.machine import MIB, Disk, wait_for
from command import doctor, nbdpull, start_nbdpull
from witness import CLUSTER, Before, modes

libvirt = pytest.importorskip("libvirt")


def has_backup(vm):
    try:
        return vm.job_active() and bool(vm.domain.backupGetXMLDesc())
    except libvirt.libvirtError:  # it is about to begin
        return False


def test_plan_predicts_what_a_pull_reads(pulled):
    witness = pulled({"vda": 4 * MIB, "vdb": Disk(MIB, "raw")})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB)
    first = witness.plan()
    assert modes(first) == {"vda": ("full", "first-point"), "vdb": ("full", "first-point")}
    point = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.write_zeroes("vda", MIB, 2 * CLUSTER, unmap=True)
    vm.forget_checkpoint(point["checkpoint"])
    before = Before(witness)
    result = witness.plan("-o", witness.store)
    before.assert_same()
    vda = result["disks"][0]
    assert (vda["dirty_bytes"], vda["zero_bytes"], vda["extents"]) == (3 * CLUSTER, 2 * CLUSTER, 2)
    second = witness.pull()
    assert modes(result) == modes(second) and result["since"] == second["since"] == point["checkpoint"]
    assert [disk["dirty_bytes"] for disk in result["disks"]] == [disk["dirty_bytes"] for disk in second["disks"]]
    table = nbdpull("plan", vm.name, "-o", witness.store, "-c", vm.bed.uri)
    assert table.returncode == 0 and " incr " in table.stdout
    assert nbdpull("plan", vm.name, "--since", "none", "-c", vm.bed.uri).returncode == 4


def test_what_a_killed_plan_left_is_removed_by_the_next_pull(pulled):
    witness = pulled({"vda": 40 * MIB})
    vm = witness.vm
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    before = Before(witness)
    words = ["plan", vm.name, "-c", vm.bed.uri, "--scratch-dir", witness.scratch]
    process = start_nbdpull(*words)
    wait_for(lambda: has_backup(vm), "the plan's job")
    process.kill()
    process.communicate()
    assert has_backup(vm)
    assert nbdpull(*words).returncode == 5
    assert nbdpull("cleanup", vm.name, "-c", vm.bed.uri).returncode == 0
    before.assert_same()


def test_doctor_of_a_domain(pulled):
    witness = pulled({"vda": MIB, "vdb": Disk(MIB, "raw"), "vdc": Disk(MIB, options="compat=0.10")})
    vm = witness.vm
    made = witness.pull()["checkpoint"]
    vm.create_checkpoint("theirs", ["vda"])
    before = Before(witness)
    code, found = doctor(vm.name, "-c", vm.bed.uri, "--scratch-dir", witness.scratch)
    before.assert_same()
    assert code == 0 and found["libvirt"]["state"] == found["incremental"]["state"] == found["jobs"]["state"] == "good"
    ours = found[f"checkpoint {made}"]["text"]
    assert "made by nbdpull run" in ours and f"once its store is gone, nbdpull release {vm.name}" in ours
    assert "not made by nbdpull" in found["checkpoint theirs"]["text"]
    assert found["disk vda"]["state"] == "good" and "qcow2" in found["disk vdb"]["advice"]
    assert "compat=1.1" in found["disk vdc"]["advice"] and "channel" in found["guest agent"]["text"]
    vm.kill()
    vm.start()
    found = doctor(vm.name, "-c", vm.bed.uri)[1]
    assert "broken on vda" in found["checkpoint theirs"]["text"]
    assert all(bool(each["advice"]) == (each["state"] != "good") for each in found.values())


def test_doctor_names_what_is_wrong(private_libvirt, tmp_path):
    code, found = doctor("-c", "qemu+unix:///system?socket=/nowhere")
    assert code == 6 and found["libvirt"]["state"] == "BAD" and found["libvirt"]["advice"]
    code, found = doctor("nosuch", "-c", private_libvirt.uri, "--scratch-dir", tmp_path / "none")
    assert code == 9 and found["domain nosuch"]["state"] == found["scratch"]["state"] == "BAD"


def test_disk_whose_image_is_gone_hides_no_other(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB, "vdc": MIB})
    vm = witness.vm
    vm.stop()
    vm.disks["vdb"].path.unlink()
    code, found = doctor(vm.name, "-c", vm.bed.uri)
    assert code == 6 and found["disk vdb"]["state"] == "BAD" and "No such file" in found["disk vdb"]["advice"]
    assert {found[f"disk {name}"]["state"] for name in ("vda", "vdc")} == {"good"}
