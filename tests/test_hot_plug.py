"""What was only plugged into a running domain is found, and its disks are added to the definition."""

import random
import xml.etree.ElementTree as ET

from nbdpull.definitions import definition, hot_plug

DISK = (
    "<disk type='file' device='disk'><driver type='qcow2'/><source file='/{0}'/><target dev='{0}' bus='{1}'/>{2}</disk>"
)
NIC = "<interface type='network'><mac address='52:54:00:00:00:0{0}'/><source network='default'/></interface>"


def of(*devices):
    return f"<domain><name>vm1</name><devices>{''.join(devices)}</devices></domain>"


def disk(name, more="", bus="virtio"):
    return DISK.format(name, bus, more)


def joined(xml, live, disks):
    text, extra, lost = hot_plug.joined(xml, live, disks)
    return ET.fromstring(text), extra, lost


def test_equal_devices_are_not_hot_plugged():
    devices = [
        disk("vda"),
        NIC.format(1),
        "<controller type='usb' index='0' model='none'/>",
        "<memballoon model='none'/>",
    ]
    running = [disk("vda", "<backingStore/><alias name='x'/>"), *devices[1:]]
    assert hot_plug.found(of(*devices), of(*running)) == []


def test_a_disk_without_its_live_parts():
    live = disk("vdb", "<backingStore/><mirror/><alias name='virtio-disk1'/><address type='pci' slot='0x9'/>")
    root, extra, lost = joined(of(disk("vda"), NIC.format(1)), of(disk("vda"), NIC.format(1), live), ["vda", "vdb"])
    assert [each.tag for each in root.find("devices")] == ["disk", "disk", "interface"]
    assert [each.tag for each in root.find("devices")[1]] == ["driver", "source", "target", "address"]
    assert (extra, lost) == ([], [])


def test_an_address_that_is_taken_goes():
    """The persistent definition may have got another device meanwhile."""
    address = "<address type='pci' domain='0' bus='0' slot='9' function='0'/>"
    root, _, _ = joined(of(disk("vda", address)), of(disk("vda"), disk("vdb", address)), ["vdb"])
    assert [len(each.findall("address")) for each in root.iterfind("devices/disk")] == [1, 0]


def test_a_disk_comes_with_its_controller():
    controllers = [f"<controller type='scsi' index='{n}' model='virtio-scsi'><alias name='a'/></controller>"
                   for n in range(3)]  # fmt: skip
    on = [disk(f"sd{n}", f"<address type='drive' controller='{n}'/>", bus="scsi") for n in range(3)]
    root, extra, _ = joined(of(controllers[0], on[0]), of(*controllers, *on), ["sd0", "sd1"])
    found = [(each.get("index"), each.get("model")) for each in root.iterfind("devices/controller")]
    assert found == [("0", "virtio-scsi"), ("1", "virtio-scsi")]  # not that of a disk that is not in the point
    assert extra == ["disk sd2"] and root.find("devices/controller/alias") is not None  # what was there stays


def test_what_else_was_plugged_in_is_named():
    more = [NIC.format(2), "<memory model='dimm'/>", "<hostdev mode='subsystem' type='usb'/>"]
    _, extra, lost = joined(of(NIC.format(1)), of(NIC.format(1), *more), ["vdz"])
    assert extra == ["interface 52:54:00:00:00:02", "memory dimm", "hostdev usb"] and lost == ["vdz"]


def test_no_live_definition():
    root, extra, lost = joined(of(disk("vda")), None, ["vda", "vdb"])
    assert (len(root.findall("devices/disk")), extra, lost) == (1, [], ["vdb"])


def test_any_two_sets_of_disks():
    """Against a naive model: all persistent ones, in their order, then those that were only plugged in and are
    wanted."""
    rng = random.Random(1)
    for _ in range(50):
        names = [f"vd{letter}" for letter in "abcdef"]
        before, after, wanted = (sorted(rng.sample(names, rng.randrange(7))) for _ in range(3))
        root, extra, lost = joined(of(*map(disk, before)), of(*map(disk, after)), wanted)
        known = [definition.target_of(each) for each in root.iterfind("devices/disk")]
        assert known == before + [name for name in after if name in wanted and name not in before]
        assert extra == [f"disk {name}" for name in after if name not in wanted and name not in before]
        assert lost == [name for name in wanted if name not in before and name not in after]
