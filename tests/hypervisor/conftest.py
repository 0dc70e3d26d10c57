"""The interface to the real libvirt: a machine that the tests of a module share, and leave unchanged."""

import pytest
from bed.machine import MIB, Disk, Machine


@pytest.fixture(scope="module")
def shared(private_libvirt, tmp_path_factory):
    """A machine for the tests that leave it unchanged."""
    disks = {"vda": 8 * MIB, "vdb": Disk(MIB, "raw")}
    with Machine(private_libvirt, tmp_path_factory.mktemp("images"), disks) as machine:
        machine.create_checkpoint("foreign")
        yield machine


@pytest.fixture
def vm(shared):
    from backup_rig import assert_idle

    from nbdpull.hypervisor import domain

    with domain.open(shared.name) as vm:
        yield vm
        assert_idle(vm, ["foreign"])


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder
