"""Facts about a domain, against the real libvirt."""

import os
from dataclasses import replace

import pytest
from bed.machine import MIB, Disk
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.hypervisor import domain


def test_facts(vm, shared):
    assert (vm.name, vm.uuid, vm.uri) == (shared.name, shared.uuid, shared.bed.uri)
    assert vm.active and vm.id == shared.domain.ID() and not vm.is_remote
    assert set(vm.versions) == {"libvirt", "qemu"}
    assert tuple(map(int, vm.versions["libvirt"].split("."))) >= (7, 6, 0)
    assert vm.supports_checkpoints
    assert f"<name>{vm.name}</name>" in vm.domain_xml() and "<alias" not in vm.domain_xml()
    assert f"<name>{vm.name}</name>" in vm.live_xml() and "<alias" in vm.live_xml()
    vm.require_running()


def test_daemon_too_old_for_checkpoints(vm):
    vm.connection = Meddled(vm.connection, getLibVersion=lambda: 7_005_000)
    assert not vm.supports_checkpoints


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_ACCESS_DENIED, libvirt.VIR_ERR_OPERATION_UNSUPPORTED])
def test_a_remote_qemu_whose_monitor_is_not_for_us_has_an_unknown_version(monkeypatch, code):
    monkeypatch.setattr(domain.domain_link, "ask_monitor", raising(error_of(code)))
    dom = Meddled(name=lambda: "vm1", UUIDString=lambda: "a-uuid")
    vm = domain.Domain(Meddled(getURI=lambda: "qemu+ssh://hv1/system"), dom, None)
    assert vm.is_remote and vm.running_version is None


def test_disks(machine):
    made = machine({"vda": 3 * MIB, "vdb": Disk(MIB + 512, "raw"), "vdc": Disk(MIB, options="compat=0.10")})
    made.stop()
    for xml in (
        "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>",
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{made.disks['vda'].path}'/>"
        "<target dev='sdb' bus='scsi'/><readonly/><shareable/></disk>",
    ):
        made.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    with domain.open(made.name) as vm:
        reported = vm.disks()
        disks = {disk.target: disk for disk in reported if disk.empty}
        disks |= {disk.target: disk for disk in vm.looked_at(disk for disk in reported if not disk.empty)}
    assert all(not disk.size and disk.bitmaps is None for disk in reported)
    assert {target: (disk.format, disk.size, disk.bitmaps) for target, disk in disks.items()} == {
        "vda": ("qcow2", 3 * MIB, True),
        "vdb": ("raw", MIB + 512, False),
        "vdc": ("qcow2", MIB, False),
        "sdb": ("qcow2", 3 * MIB, True),
        "hda": ("raw", 0, None),
    }
    assert disks["vda"].source == str(made.disks["vda"].path)
    assert [target for target, disk in disks.items() if disk.readonly] == ["hda", "sdb"]
    assert [target for target, disk in disks.items() if disk.empty] == ["hda"]


def test_size_of_a_grown_disk(machine):
    made = machine({"vda": MIB})
    made.resize("vda", 2 * MIB)
    with domain.open(made.name) as vm:
        assert vm.looked_at(vm.disks())[0].size == 2 * MIB


def test_an_image_that_hangs_is_given_up(machine, tmp_path):
    """A pipe without a writer stands for a file system that does not answer: whoever opens it waits forever."""
    made, pipe = machine({"vda": MIB}), tmp_path / "pipe"
    os.mkfifo(pipe)
    with domain.open(made.name, stall_timeout=1) as vm:
        (disk,) = vm.disks()
        with pytest.raises(errors.NoAnswer, match=f"disk vda cannot be read .{pipe}: .* within 1 s.*--exclude vda"):
            vm.looked_at([replace(disk, source=str(pipe))])


def test_an_upgrade_does_not_hide_which_qemu_runs(machine, monkeypatch):
    """On this host the running executable reports its version, on another one QEMU itself; libvirt reports the
    installed one."""
    vm = machine({"vda": MIB})
    installed = vm.bed.connection().getVersion()
    running = (installed // 1_000_000, installed // 1000 % 1000, installed % 1000)
    with domain.open(vm.name) as opened:
        monkeypatch.setattr(domain.Domain, "versions", {"libvirt": "99.0.0", "qemu": "99.0.0"})
        assert opened.running_version == opened.likely_version == running
        monkeypatch.setattr(opened, "uri", "qemu+ssh://root@host/system")
        assert opened.is_remote and opened.running_version == opened.likely_version == running
        vm.stop()
        assert opened.running_version is None and opened.likely_version == (99, 0, 0)


def test_no_password_of_a_uri_is_kept(vm, monkeypatch):
    monkeypatch.setattr(vm, "uri", "qemu+ssh://backup:geheim@hv1:2222/system?keyfile=/k")
    assert vm.shown_uri == "qemu+ssh://backup@hv1:2222/system?keyfile=/k"
