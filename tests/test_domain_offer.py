"""What the real libvirt offers."""

import os

import pytest
from bed.machine import DOMAIN

from nbdpull.core import errors
from nbdpull.hypervisor import connection, domain_boot


def offer(bed, **replaced):
    xml = DOMAIN.format(kind="qemu", name="a", memory=16, cpus=1, boot="", devices="")
    for before, after in replaced.values():
        xml = xml.replace(before, after)
    with connection.connected(bed.uri) as connected:
        return domain_boot.offer(connected, xml)


def test_its_emulators_and_its_firmware(private_libvirt):
    found = offer(private_libvirt)
    assert "/usr/bin/qemu-system-x86_64" in found.emulators and all(map(os.path.exists, found.emulators))
    assert all(map(os.path.isdir, found.firmware))
    if os.path.exists("/usr/share/OVMF/OVMF_CODE_4M.fd"):
        assert found.has_firmware("/usr/share/OVMF/OVMF_CODE_4M.fd")


def test_a_machine_of_another_host(private_libvirt):
    assert offer(private_libvirt, machine=("machine='pc'", "machine='pc-q35-rhel99'")) == offer(private_libvirt)


def test_an_architecture_without_an_emulator(private_libvirt):
    with pytest.raises(errors.HypervisorError, match="cannot ask libvirt for an emulator"):
        offer(private_libvirt, arch=("x86_64", "no-such"))


def test_an_emulator_that_is_named_is_not_run(private_libvirt, tmp_path):
    program, ran = tmp_path / "emulator", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    offer(private_libvirt, emulator=("/usr/bin/qemu-system-x86_64", str(program)))
    assert not ran.exists()
