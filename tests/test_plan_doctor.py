"""plan and doctor: what they tell is what a pull then does, and they change nothing."""

import contextlib
import os
import re

import pytest
from bed.machine import MIB, Disk, wait_for
from command import doctor, nbdpull, start_nbdpull
from witness import CLUSTER, Before, modes

from nbdpull.operations import doctor as examination

libvirt = pytest.importorskip("libvirt")
connection = pytest.importorskip("nbdpull.hypervisor.connection")


def has_backup(vm):
    try:
        return vm.job_active() and bool(vm.domain.backupGetXMLDesc())
    except libvirt.libvirtError:  # it is about to begin
        return False


def test_plan_tells_what_a_pull_then_reads(pulled):
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
    told = witness.plan("-o", witness.store)
    before.assert_same()
    vda = told["disks"][0]
    assert (vda["dirty_bytes"], vda["zero_bytes"], vda["extents"]) == (3 * CLUSTER, 2 * CLUSTER, 2)
    second = witness.pull()
    assert modes(told) == modes(second) and told["since"] == second["since"] == point["checkpoint"]
    assert [disk["dirty_bytes"] for disk in told["disks"]] == [disk["dirty_bytes"] for disk in second["disks"]]
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
    assert "of nbdpull run" in ours and f"once its store is gone, nbdpull release {vm.name}" in ours
    assert "not of nbdpull" in found["checkpoint theirs"]["text"]
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


def found_at(monkeypatch, libvirt, qemu):
    """What doctor finds at a host of these versions."""

    @contextlib.contextmanager
    def host(_uri):
        yield connection.Host("qemu:///system", True, {"libvirt": libvirt, "qemu": qemu}, [])

    monkeypatch.setattr(connection, "host", host)
    return examination.doctor(examination.Options()).findings


@pytest.mark.parametrize("version", ["7.2.22", "8.2.3", "8.2.4", "9.0.0", "10.0.13"])
def test_doctor_tells_of_a_qemu_that_a_tls_handshake_can_crash(monkeypatch, version):
    found = [each.state for each in found_at(monkeypatch, "10.0.0", version) if each.subject == "TLS"]
    assert found == ["warn"] * (version in ("8.2.3", "9.0.0"))


@pytest.mark.parametrize(
    "libvirt, qemu, lacking",
    [
        ("9.0.0", "7.2.22", ["QEMU 8.2.3", "libvirt 10.8", "libvirt 10.10", "libvirt 11.10"]),
        ("10.9.0", "10.0.13", ["libvirt 10.10", "libvirt 11.10"]),
        ("11.3.0", "10.0.13", ["libvirt 11.10"]),
        ("11.10.0", "9.0.0", None),
    ],
)
def test_doctor_tells_in_one_line_what_an_upgrade_would_bring(monkeypatch, libvirt, qemu, lacking):
    found = [each.text for each in found_at(monkeypatch, libvirt, qemu) if each.subject == "upgrade"]
    assert [re.findall(r"(?:^|; )(\w+ [\d.]+)", text) for text in found] == ([lacking] if lacking else [])
