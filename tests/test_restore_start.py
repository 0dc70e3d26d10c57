"""From a restore to the running domain: by the command that the restore prints last, and each disk is that of the
point.

The disks are read where the guest finds them: at the path, and in the format, that libvirt reports for the running
domain.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import stores
from bed.images import as_root, loop_device, old_data
from bed.libvirtd import libvirt
from bed.machine import DOMAIN, MIB, Disk, Machine
from documents import README, blocks
from host import Host

DISKS = {"vda": Disk(8 * MIB, "raw"), "vdb": Disk(4 * MIB), "sda": Disk(MIB, "raw")}


@pytest.fixture
def host(private_libvirt, tmp_path):
    """A Host with a program called nbdpull in its PATH; a domain vm1 that is defined there is removed in the end."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "home").mkdir()
    before = os.environ["PATH"]
    (tmp_path / "bin/nbdpull").write_text(f'#!/bin/sh\nexec {sys.executable} -m nbdpull "$@"\n')
    (tmp_path / "bin/nbdpull").chmod(0o755)
    os.environ["PATH"] = f"{tmp_path}/bin:{before}"
    try:
        yield Host(private_libvirt, tmp_path / "home")
    finally:
        os.environ["PATH"] = before
        for words in (("destroy",), ("undefine", "--checkpoints-metadata")):
            private_libvirt.virsh(words[0], "vm1", *words[1:], check=False)


@pytest.fixture
def pulled(host, tmp_path):
    """(vm1, off since its pull; {disk: its bytes then}). Its images have changed since."""
    vm = Machine(host.bed, tmp_path / "images", DISKS, name="vm1")
    vm.start()
    for number, disk in enumerate(DISKS, 1):
        vm.write(disk, 0, 600 << 10, number)
        vm.write(disk, MIB - 512, 512, 0x40 + number)
    host.run("nbdpull vm1 -o dir/")
    then = {disk: vm.content(disk) for disk in DISKS}
    for disk in DISKS:
        vm.write(disk, 0, MIB, 0xEE)
    vm.stop()
    return vm, then


def forget(vm):
    """Lose the machine, with its images."""
    vm.close()
    for disk in vm.disks.values():
        disk.path.unlink()


def test_the_readmes_restore_on_a_host_that_never_saw_the_vm(host, pulled):
    vm, then = pulled
    forget(vm)
    [lines] = [block for block in blocks(README, "sh") if "nbdpull restore dir/ -o out/" in block]
    for line in lines.splitlines():
        said = host.run(line)
    assert "virsh start vm1" in line and said
    assert host.seen_by("vm1") == then


def test_a_machine_of_another_distribution(host):
    """Its emulator is elsewhere here, and the disc in its drive is gone."""
    vm = stores.Vm(host.folder / "dir")
    vm.xml = DOMAIN.replace("/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm").format(
        kind="qemu",
        name="vm1",
        memory=16,
        cpus=1,
        boot="",
        devices="""
      <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/vda.qcow2'/>
        <target dev='vda' bus='virtio'/></disk>
      <disk type='file' device='cdrom'><source file='/old/installer.iso'/><target dev='sda' bus='sata'/></disk>""",
    )
    vm.add_disk("vda", MIB)
    vm.write("vda", 512, b"content")
    vm.pull()
    assert not os.path.exists("/usr/libexec/qemu-kvm")
    said = host.run("nbdpull restore dir/ -o out/ 2>&1")
    assert "the emulator /usr/libexec/qemu-kvm is not on this host: libvirt uses its own" in said
    assert "cdrom sda /old/installer.iso" in said
    host.run(said.splitlines()[-1].partition("next: ")[2])
    assert host.seen_by("vm1") == vm.images[vm.points[0].id]


def test_the_old_host_does_not_run_the_old_images(host, pulled):
    """The domain is still defined there, and its images have changed."""
    _, then = pulled
    said = host.run("nbdpull restore dir/ -o out/").splitlines()[-1]
    assert said == "next: virsh define out/domain.xml && virsh start vm1 --force-boot"
    host.run(said.partition("next: ")[2])
    assert host.seen_by("vm1") == then


def test_define_and_start(host, pulled):
    vm, then = pulled
    forget(vm)
    result = json.loads(host.run("nbdpull restore dir/ -o out/ --define --json").splitlines()[-1])
    assert result["next_command"] == f"virsh -c {host.bed.uri} start vm1" and result["warnings"] == []
    host.run(result["next_command"])
    assert host.seen_by("vm1") == then


@pytest.mark.parametrize("how", ["--force", "--delta"])
def test_each_disk_to_its_own_place(host, pulled, how):
    """Whatever its format, and without any option for that; and the memory of a saved state does not meet them."""
    vm, then = pulled
    vm.start()
    vm.domain.managedSave()
    places = " ".join(f"--to {target}={disk.path}" for target, disk in vm.disks.items())
    said = host.run(f"nbdpull restore dir/ {places} {how}").splitlines()[-1]
    assert said == "next: virsh start vm1 --force-boot"
    host.run(said.partition("next: ")[2])
    assert host.seen_by("vm1") == then
    assert vm.domain.state() == [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]


@as_root
def test_a_device_that_the_domain_has(host, tmp_path):
    with loop_device(old_data(tmp_path / "device.raw", 8 * MIB)) as device:
        vm = Machine(host.bed, tmp_path / "images", {"vda": Disk(0, "raw", path=Path(device))}, name="vm1")
        xml = vm.domain.XMLDesc().replace("type='file'", "type='block'").replace("<source file", "<source dev")
        host.bed.connection().defineXML(xml)
        vm.start()
        vm.write("vda", 0, MIB, 0x11)
        host.run("nbdpull vm1 -o dir/")
        then = vm.content("vda")
        vm.write("vda", 0, 8 * MIB, 0xEE)
        vm.stop()
        said = host.run(f"nbdpull restore dir/ -o {device} --force").splitlines()[-1]
        assert said == "next: virsh start vm1 --force-boot"
        host.run(said.partition("next: ")[2])
        assert host.seen_by("vm1") == {"vda": then}
        vm.close()


def test_a_copy_beside_the_original(host, pulled):
    """Both run, each with images of its own."""
    vm, then = pulled
    said = host.run("nbdpull restore dir/ -o out/ --name vm1-copy --new-uuid").splitlines()[-1]
    try:
        host.run(said.partition("next: ")[2])
        vm.start()
        assert host.seen_by("vm1-copy") == then
        assert all(disk.startswith(b"\xee" * MIB) for disk in host.seen_by("vm1").values())
    finally:
        host.bed.virsh("destroy", "vm1-copy", check=False)
        host.bed.virsh("undefine", "vm1-copy", check=False)
