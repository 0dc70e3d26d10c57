"""Checkpoints: their order, their intact and broken bitmaps, and their deletion."""

import time

import pytest
from backup_rig import assert_idle, plan
from bed.machine import MIB
from fake_libvirt import libvirt

from nbdpull.core import errors
from nbdpull.hypervisor import domain


def test_checkpoint(vm):
    checkpoint = vm.checkpoints.get("foreign")
    assert (checkpoint.name, checkpoint.disks, checkpoint.run_id) == ("foreign", {"vda": True}, None)
    assert abs(checkpoint.creation_time - time.time()) < 600
    assert vm.uuid in checkpoint.xml


def test_no_such_checkpoint_names_those_that_exist(vm):
    with pytest.raises(errors.NoSuchCheckpoint, match="no checkpoint 'chk9'; it has foreign"):
        vm.checkpoints.get("chk9")


def remove_bitmap(machine, disk, name):
    serial = next(block for block in machine.qmp("query-block") if disk in str(block["inserted"]["image"]["filename"]))
    machine.qmp("block-dirty-bitmap-remove", node=serial["inserted"]["node-name"], name=name)


def test_broken_bitmap_is_seen_and_refused(machine, scratch):
    made = machine({"vda": MIB, "vdb": MIB})
    made.create_checkpoint("base")
    remove_bitmap(made, "vdb", "base")
    with domain.open(made.name) as vm:
        assert vm.checkpoints.get("base").disks == {"vda": True, "vdb": False}
        with pytest.raises(errors.CheckpointUnusable), vm.backups.begun(plan(scratch, since="base")):
            pass
        assert_idle(vm, ["base"])


def test_bitmaps_after_a_crash_are_unusable(machine):
    made = machine({"vda": MIB})
    made.create_checkpoint("base")
    made.stop()
    made.start()
    with domain.open(made.name) as vm:
        assert vm.checkpoints.get("base").disks == {"vda": True}
        made.kill()
        assert vm.checkpoints.get("base").disks == {"vda": None}
        made.start()
        assert vm.checkpoints.get("base").disks == {"vda": False}
        assert vm.checkpoints.delete("base")
    assert made.bitmaps("vda") == {}


def test_delete_checkpoint(machine):
    made = machine({"vda": MIB})
    made.create_checkpoint("a")
    with domain.open(made.name) as vm:
        assert vm.checkpoints.delete("a") is True
        assert vm.checkpoints.delete("a") is False
    assert made.bitmaps("vda") == {}


@pytest.mark.parametrize("broken", [["vda"], ["vdb"], ["vda", "vdb"]])
def test_delete_checkpoint_of_which_a_bitmap_is_gone(machine, broken):
    made = machine({"vda": MIB, "vdb": MIB})
    for name in "abc":
        made.create_checkpoint(name)
    for disk in broken:
        remove_bitmap(made, disk, "b")
    with domain.open(made.name) as vm:
        assert vm.checkpoints.delete("b") is True
        assert vm.checkpoints.names() == ["a", "c"]
        assert vm.checkpoints.get("c").disks == {"vda": True, "vdb": True}
    assert set(made.bitmaps("vda")) == set(made.bitmaps("vdb")) == {"a", "c"}


def test_checkpoints_are_listed_oldest_first_whatever_their_parents(machine):
    made = machine({"vda": MIB})
    made.create_checkpoint("one")
    time.sleep(1.1)  # libvirt reports whole seconds
    made.create_checkpoint("two")
    with domain.open(made.name) as vm:
        xml = vm.checkpoints.get("one").xml
        made.domain.checkpointLookupByName("one").delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        made.domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
        assert vm.checkpoints.names() == ["one", "two"]
