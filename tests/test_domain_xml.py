import xml.etree.ElementTree as ET

import pytest

from nbdpull.core import errors
from nbdpull.definitions import domain_xml
from nbdpull.definitions.domain_xml import Backup, Checkpoint, DiskBackup


def normal(xml):
    """Return XML without what has no meaning in it: indentation and the order of attributes."""
    return ET.canonicalize(xml, strip_text=True)


def same(ours, wanted):
    assert normal(ours) == normal(wanted)


FULL = DiskBackup(None, "vdb", None, "/s/nbdpull-R-1-vdb.scratch")
SINCE = DiskBackup("chk3", "vda", "nbdpull-R-1-vda", "/s/nbdpull-R-1-vda.scratch")

BACKUP = """
<domainbackup mode='pull'>
  <server transport='unix' socket='/run/&lt;a&gt;.sock'/>
  <disks>
    <disk name='vda' backup='yes' type='file' backupmode='incremental' incremental='chk3' exportname='vda'
          exportbitmap='nbdpull-R-1-vda'{index}>
      <driver type='qcow2'/>
      <scratch file='/s/nbdpull-R-1-vda.scratch'/>
    </disk>
    <disk name='vdb' backup='yes' type='file' backupmode='full' exportname='vdb'>
      <driver type='qcow2'/>
      <scratch file='/s/nbdpull-R-1-vdb.scratch'/>
    </disk>{others}
  </disks>
</domainbackup>"""


def test_backup_is_built():
    backup = Backup("pull", "/run/<a>.sock", {"vda": SINCE, "vdb": FULL})
    same(domain_xml.backup_xml(backup), BACKUP.format(index="", others=""))


def test_backup_is_read_back_as_it_was_built():
    backup = Backup("pull", "/run/<a>.sock", {"vda": SINCE, "vdb": FULL})
    text = BACKUP.format(index=" index='8'", others="<disk name='sda' backup='no'/>")
    assert domain_xml.parse_backup(text) == backup
    assert domain_xml.parse_backup(domain_xml.backup_xml(backup)) == backup


def test_a_bitmap_of_a_full_disk_is_ignored():
    xml = "<domainbackup mode='pull'><disks><disk name='vda' backup='yes' exportbitmap='x'/></disks></domainbackup>"
    assert domain_xml.parse_backup(xml).disks == {"vda": DiskBackup(None, "vda", None, None)}


def test_names_of_a_run():
    assert domain_xml.disk_backup("R-1", "vda", "chk3", "/s/") == SINCE
    assert domain_xml.disk_backup("R-1", "vdb", None, "/s") == FULL


@pytest.mark.parametrize("scratches, run_id", [
    (["/s/nbdpull-R-1-vda.scratch", "/t/nbdpull-R-1-vdb.scratch"], "R-1"),
    (["/s/nbdpull-R-1-vda.scratch", "/t/nbdpull-R-2-vdb.scratch"], None),
    (["/s/nbdpull-R-1-vda.scratch", "/t/other"], None),
    (["/s/vda.qcow2"], None),
    ([None], None),
    ([], None),
])  # fmt: skip
def test_the_owner_of_a_backup(scratches, run_id):
    disks = {str(number): DiskBackup(None, "x", None, scratch) for number, scratch in enumerate(scratches)}
    assert Backup("pull", None, disks).run_id == run_id


def test_a_foreign_push_backup():
    disks = "<disk name='vda' backup='yes' type='file'><target file='/x'/></disk>"
    xml = f"<domainbackup><disks>{disks}</disks></domainbackup>"
    backup = domain_xml.parse_backup(xml)
    assert (backup.mode, backup.socket, backup.run_id) == ("push", None, None)


def test_checkpoint_is_built():
    xml = domain_xml.checkpoint_xml("c-1", domain_xml.description("R-1", "for <me> & you"), ["vda", "vdb"])
    same(
        xml,
        """
<domaincheckpoint>
  <name>c-1</name>
  <description>nbdpull run R-1 for &lt;me&gt; &amp; you</description>
  <disks>
    <disk name='vda' checkpoint='bitmap'/>
    <disk name='vdb' checkpoint='bitmap'/>
  </disks>
</domaincheckpoint>""",
    )


def test_redefinition():
    checkpoint = Checkpoint("c", 12, "text", {"vda": None}, "")
    same(
        domain_xml.redefinition_xml(checkpoint),
        """
<domaincheckpoint>
  <name>c</name>
  <description>text</description>
  <disks><disk name='vda' checkpoint='bitmap'/></disks>
  <creationTime>12</creationTime>
</domaincheckpoint>""",
    )


CHECKPOINT = """
<domaincheckpoint>
  <name>c2</name>
  <description>nbdpull run R-1</description>
  <parent><name>c1</name></parent>
  <creationTime>1795379884</creationTime>
  <disks>
    <disk name='vda' checkpoint='bitmap' bitmap='c2' size='0'/>
    <disk name='vdb' checkpoint='bitmap' bitmap='c2'/>
    <disk name='vdc' checkpoint='no'/>
  </disks>
  <domain type='qemu'><name>vm1</name></domain>
</domaincheckpoint>"""


def test_checkpoint_is_parsed():
    checkpoint = domain_xml.parse_checkpoint(CHECKPOINT, with_size=True)
    assert (checkpoint.name, checkpoint.creation_time, checkpoint.run_id) == ("c2", 1795379884, "R-1")
    assert checkpoint.disks == {"vda": True, "vdb": False}
    assert checkpoint.xml == CHECKPOINT


def test_without_sizes_the_bitmaps_are_unknown():
    assert domain_xml.parse_checkpoint(CHECKPOINT, with_size=False).disks == {"vda": None, "vdb": None}


@pytest.mark.parametrize("description", ["", "made by nbdpull run R-1", "weekly"])
def test_a_foreign_checkpoint(description):
    assert Checkpoint("c", 0, description, {}, "").run_id is None


DISKS = """
<domain type='kvm'>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <nvram template='/t.fd'>/var/lib/libvirt/qemu/nvram/vm1_VARS.fd</nvram>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/i/a &amp; b.qcow2' index='4'/>
      <backingStore type='file'><format type='raw'/><source file='/base'/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/><source dev='/dev/vg/lv'/><target dev='vdb' bus='virtio'/><transient/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/><source protocol='rbd' name='pool/image'><host name='mon1'/></source>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='qcow2'/><source pool='p' volume='v'/><target dev='vdd' bus='sd'/>
    </disk>
    <disk type='nvme' device='disk'>
      <driver name='qemu' type='raw'/>
      <source type='pci' namespace='1'><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>
      <target dev='vde' bus='virtio'/>
    </disk>
    <disk type='vhostuser' device='disk'>
      <driver name='qemu' type='raw'/><source type='unix' path='/run/vhost.sock'/><target dev='vdf' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><driver name='qemu'/><target dev='sda' bus='sata'/><readonly/></disk>
  </devices>
</domain>"""


def test_disks_are_parsed():
    disks = domain_xml.parse_disks(DISKS)
    assert [(disk.target, disk.type, disk.source, disk.format, disk.bus) for disk in disks] == [
        ("vda", "file", "/i/a & b.qcow2", "qcow2", "virtio"),
        ("vdb", "block", "/dev/vg/lv", "raw", "virtio"),
        ("vdc", "network", "rbd:pool/image", "raw", "virtio"),
        ("vdd", "volume", "p:v", "qcow2", "sd"),
        ("vde", "nvme", "1:0x0000:0x01:0x00:0x0", "raw", "virtio"),
        ("vdf", "vhostuser", "/run/vhost.sock", "raw", "virtio"),
        ("sda", "file", "", "raw", "sata"),
    ]
    assert [disk.target for disk in disks if disk.empty] == ["sda"]
    assert [disk.target for disk in disks if disk.readonly] == ["sda"]
    assert [disk.target for disk in disks if disk.transient] == ["vdb"]
    assert [disk.target for disk in disks if disk.device != "disk"] == ["sda"]


def test_platform():
    assert domain_xml.platform(DISKS) == ("/usr/bin/qemu-system-x86_64", "x86_64", "pc-q35-7.2", "kvm")


@pytest.mark.parametrize(
    "read, root",
    [
        (domain_xml.parse_disks, "domain"),
        (domain_xml.platform, "domain"),
        (lambda xml: domain_xml.parse_checkpoint(xml, False), "domaincheckpoint"),
    ],
)
def test_a_definition_in_a_point_may_be_hostile(read, root):
    read(f"<{root}><not:bound/></{root}>")  # a prefix that libvirt will not have, and our writer gives out
    for strange in (f"<!DOCTYPE {root} [<!ENTITY a 'b'>]><{root}>&a;</{root}>", f"<{root}>" * 5000, "<x/>", "\0"):
        with pytest.raises(errors.Damaged):
            read(strange)


@pytest.mark.parametrize("feature, supported", [
    ("<backup supported='yes'/>", True),
    ("<backup supported='no'/>", False),
    ("", False),
])  # fmt: skip
def test_capabilities(feature, supported):
    xml = f"<domainCapabilities><features>{feature}</features></domainCapabilities>"
    assert domain_xml.supports_backup(xml) is supported


THREADED = """
<domain><devices>
  <controller type='scsi' index='0' model='virtio-scsi'/>
  <controller type='scsi' index='1' model='virtio-scsi'><driver iothread='2'/></controller>
  <controller type='virtio-serial' index='0'><driver iothread='1'/></controller>
  <disk><driver name='qemu' iothread='1'/><target dev='vda' bus='virtio'/></disk>
  <disk><driver name='qemu'><iothreads><iothread id='2'/></iothreads></driver><target dev='vdb' bus='virtio'/></disk>
  <disk><driver name='qemu'/><target dev='vdc' bus='virtio'/><address type='pci' bus='0x01'/></disk>
  <disk><target dev='sda' bus='scsi'/></disk>
  <disk><target dev='sdb' bus='scsi'/><address type='drive' controller='1' bus='0' target='0' unit='0'/></disk>
  <disk><target dev='sdc' bus='sata'/><address type='drive' controller='1' bus='0' target='0' unit='1'/></disk>
</devices></domain>"""


def test_disks_in_iothreads():
    assert [disk.target for disk in domain_xml.parse_disks(THREADED) if disk.iothread] == ["vda", "vdb", "sdb"]


@pytest.mark.parametrize(
    "models, user",
    [
        ("", None),
        ("<secmodel><model>none</model><doi>0</doi></secmodel>", None),
        ("<secmodel><model>dac</model><doi>0</doi></secmodel>", None),
        (
            "<secmodel><model>apparmor</model><doi>0</doi></secmodel><secmodel><model>dac</model><doi>0</doi>"
            "<baselabel type='kvm'>+64055:+108</baselabel><baselabel type='qemu'>+64055:+108</baselabel></secmodel>",
            64055,
        ),
        ("<secmodel><model>dac</model><baselabel type='kvm'>+0:+0</baselabel></secmodel>", 0),
    ],
)
def test_the_user_of_qemu(models, user):
    assert domain_xml.qemu_user(f"<capabilities><host>{models}</host></capabilities>") == user


def images_of(disk):
    return domain_xml.images(f"<domain><devices>{disk}<target dev='vda'/></disk></devices></domain>")["vda"]


BELOW = "<backingStore type='file'><format type='qcow2'/><source file='/b'/>{}</backingStore>"


@pytest.mark.parametrize(
    "below, chain, is_all",
    [
        ("", [], False),
        ("<backingStore/>", [], True),
        (BELOW.format(""), [("/b", "qcow2")], False),
        (BELOW.format("<backingStore/>"), [("/b", "qcow2")], True),
        (BELOW.format("<backingStore type='block'><format type='raw'/><source dev='/dev/c'/></backingStore>"),
         [("/b", "qcow2"), ("/dev/c", "raw")], False),
        ("<backingStore type='file'><source file='/b'/></backingStore>", [("/b", "")], False),
        ("<backingStore type='network'><format type='raw'/><source protocol='nbd'/></backingStore>",
         [("", "raw")], False),
    ],
)  # fmt: skip
def test_images_below_a_disk(below, chain, is_all):
    found = images_of(f"<disk type='file'><driver type='qcow2'/><source file='/a'/>{below}")
    assert (found.chain, found.is_all, found.altered) == ([("/a", "qcow2"), *chain], is_all, "")


@pytest.mark.parametrize("source, path", [
    ("type='file'><source file='/a'/>", "/a"),
    ("type='block'><source dev='/dev/a'/>", "/dev/a"),
    ("type='volume'><source pool='p' volume='v'/>", ""),
    ("type='network'><source protocol='rbd' name='p/i'/>", ""),
    ("type='file' device='cdrom'>", ""),
])  # fmt: skip
def test_image_of_a_disk(source, path):
    assert images_of(f"<disk {source}").chain == [(path, "raw")]


@pytest.mark.parametrize("inside, altered", [
    ("<encryption format='luks'/>", "is encrypted"),
    ("<backingStore type='file'><source file='/b'><encryption format='luks'/></source></backingStore>", "is encrypted"),
    ("<source file='/a'><slices><slice type='storage' offset='0' size='1'/></slices></source>", "is a part of a file"),
    ("<source file='/a'><dataStore type='file'/></source>", "keeps its data in another file"),
])  # fmt: skip
def test_images_that_are_not_what_the_guest_sees(inside, altered):
    assert images_of(f"<disk type='file'>{inside}").altered == altered


@pytest.mark.parametrize("device, takes", [
    ("<hostdev mode='subsystem' type='usb'/>", True),
    ("<interface type='hostdev'/>", True),
    ("<interface type='bridge'/>", False),
])  # fmt: skip
def test_devices_of_the_host(device, takes):
    assert domain_xml.has_host_devices(f"<domain><devices>{device}</devices></domain>") == takes
