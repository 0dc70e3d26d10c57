"""Which disks are pulled: the rule as a pure function, and what a real libvirt would do with the disks that are left
out."""

import json
import time

import pytest
from bed.machine import MIB, Disk
from command import nbdpull
from witness import FULL_FIRST, Before, Witness, assert_refused, modes

from nbdpull.core import errors
from nbdpull.definitions import disk_choice, domain_xml

libvirt = pytest.importorskip("libvirt")

DOMAIN = 3


class Vm:
    """The part of a domain that the rule uses."""

    name = "vm1"

    def __init__(self, **disks):
        xml = "".join(
            f"<disk type='file' {facts.pop('head', '')}><source file='/{name}'/><target dev='{name}' bus='virtio'/>"
            f"{facts.pop('inside', '')}</disk>"
            for name, facts in disks.items()
        )
        self._disks = domain_xml.parse_disks(f"<domain><devices>{xml}</devices></domain>")

    def disks(self):
        return self._disks

    def looked_at(self, disks):
        return list(disks)


def chosen(vm, **options):
    disks, warnings = disk_choice.chosen(vm, **options)
    return [disk.target for disk in disks], warnings


def test_what_holds_the_guests_data_is_pulled():
    vm = Vm(vda={}, hda={"head": "device='cdrom'"}, vdb={"inside": "<readonly/>"}, sda={})
    assert chosen(vm) == (["vda", "sda"], [])
    assert chosen(vm, wanted=["vdb", "hda", "vdb"]) == (["vdb", "hda"], [])  # who names it gets it


@pytest.mark.parametrize(
    "facts, why",
    [
        ({"inside": "<shareable/>"}, "shareable"),
        ({"inside": "<transient/>"}, "transient"),
        ({"head": "device='lun'"}, "passed through"),
    ],
)
def test_a_disk_that_cannot_be_pulled_is_a_warning(facts, why):
    vm = Vm(vda={}, vdb=facts)
    names, warnings = chosen(vm)
    assert (
        names == ["vda"] and len(warnings) == 1 and warnings[0].startswith(f"disk vdb is left out because it is {why}")
    )
    assert chosen(vm, exclude=["vdb"]) == (["vda"], [])
    assert chosen(vm, wanted=["vda"]) == (["vda"], [])
    with pytest.raises(errors.UnfitDisk, match=f"disk vdb of domain vm1 cannot be pulled: it is {why}"):
        chosen(vm, wanted=["vda", "vdb"])


def test_no_warning_about_disks_that_the_guest_cannot_write_to():
    assert chosen(Vm(vda={}, vdb={"inside": "<readonly/><shareable/>"}))[1] == []


@pytest.mark.parametrize("kind, bus", [("vhostuser", "virtio"), ("file", "sd")])
def test_what_libvirt_makes_no_backup_of(kind, bus):
    element = f"<disk type='{kind}'><source file='/x'/><target dev='x' bus='{bus}'/></disk>"
    vm = Vm(vda={})
    vm._disks += domain_xml.parse_disks(f"<domain><devices>{element}</devices></domain>")
    names, warnings = chosen(vm)
    assert names == ["vda"] and "which libvirt cannot back up" in warnings[0]


@pytest.fixture
def two_with_a_disk_of_both(machine, tmp_path):
    """The Witness of a running VM whose vdb another VM has open for writing."""
    one = machine({"vda": MIB, "vdb": Disk(MIB, "raw", extra="<shareable/>"), "vdc": MIB})
    machine({"vda": Disk(path=one.disks["vdb"].path, format="raw", extra="<shareable/>")})
    return Witness(one, tmp_path / "witness")


def test_a_shareable_disk_brings_no_daemon_down(two_with_a_disk_of_both):
    """libvirt 9 crashes if QEMU refuses the second disk of a job, as it does with one that another VM has open."""
    witness = two_with_a_disk_of_both
    vm, started = witness.vm, time.monotonic()
    assert_refused(witness, DOMAIN, "unfit-disk", ["disk vdb", "is shareable"], "--disk", "vda", "--disk", "vdb")
    done = nbdpull(*[word for word in witness.words("--quiet") if word != "--json"])
    assert done.returncode == 0 and time.monotonic() - started < 30
    assert done.stderr.startswith("nbdpull: warning: disk vdb is left out because it is shareable") and not done.stdout
    point = witness.pull("--exclude", "vdb")
    assert set(modes(point)) == {"vda", "vdc"} and witness.result["warnings"] == []
    assert vm.bed.alive and vm.active


def test_plan_and_doctor_report_a_shareable_disk(two_with_a_disk_of_both):
    witness = two_with_a_disk_of_both
    vm = witness.vm
    before = Before(witness)
    where = ["-c", vm.bed.uri, "--scratch-dir", witness.scratch, "--json"]
    result = json.loads(nbdpull("plan", vm.name, *where).stdout)
    assert modes(result) == {"vda": FULL_FIRST, "vdc": FULL_FIRST} and "vdb is left out" in result["warnings"][0]
    assert nbdpull("plan", vm.name, "--disk", "vdb", *where).returncode == DOMAIN
    found = {each["subject"]: each for each in json.loads(nbdpull("doctor", vm.name, *where).stdout)}
    assert found["disk vdb"]["state"] == "warn" and "not pulled because it is shareable" in found["disk vdb"]["text"]
    before.assert_same()
