"""A definition as a document: what it describes, and how it is adapted to what was restored."""

import xml.etree.ElementTree as ET

import pytest

from nbdpull.definitions import definition


def of(os="", devices="", more=""):
    return f"<domain type='kvm'><name>vm1</name>{os}<devices>{devices}</devices>{more}</domain>"


def adapted(xml, disks=None, files=None, **how):
    text, warnings = definition.adapted(xml, disks or {}, files or {}, **how)
    return ET.fromstring(text), warnings


# -- firmware's variables ---------------------------------------------------------------------------------------------

LOADER = "<loader readonly='yes' type='pflash'>/fw/code.fd</loader>"


@pytest.mark.parametrize("os", [
    "<os firmware='efi'><type>hvm</type></os>",  # all that libvirt 9.0 shows of it, unless the domain runs
    f"<os>{LOADER}</os>",
    f"<os>{LOADER}<nvram/></os>",
    f"<os>{LOADER}<nvram>/old</nvram></os>",
    f"<os>{LOADER}<nvram type='file'><source file='/old'/></nvram></os>",
    f"<os>{LOADER}<nvram type='block'><source dev='/dev/old'/></nvram></os>",
    f"<os>{LOADER}<nvram type='network'><source protocol='iscsi' name='old'><host name='h'/></source></nvram></os>",
])  # fmt: skip
def test_the_variables_of_the_point_are_those_of_the_machine(os):
    root, _ = adapted(of(os), files={"nvram": "/new"})
    assert root.findtext("os/nvram") == "/new"
    assert root.find("os/nvram").get("type") is None and len(root.find("os/nvram")) == 0


@pytest.mark.parametrize("os", ["", "<os><type>hvm</type></os>", "<os firmware='bios'/>",
                                "<os><loader stateless='yes' type='pflash'>/fw</loader></os>",
                                "<os firmware='efi'><loader stateless='yes'/></os>"])  # fmt: skip
def test_firmware_without_variables_gets_none(os):
    assert adapted(of(os), files={"nvram": "/new"})[0].find("os/nvram") is None


def test_variables_keep_their_format():
    """The file is what it was, even if it is qcow2; without the format, libvirt takes it for raw."""
    os = f"<os>{LOADER}<nvram template='/t' templateFormat='qcow2' format='qcow2'>/old</nvram></os>"
    nvram = adapted(of(os), files={"nvram": "/new"})[0].find("os/nvram")
    assert nvram.attrib == {"template": "/t", "templateFormat": "qcow2", "format": "qcow2"} and nvram.text == "/new"


def test_a_copy_without_variables_does_not_take_the_original_s():
    os = f"<os>{LOADER}<nvram type='block'><source dev='/dev/old'/></nvram></os>"
    nvram = adapted(of(os), name="vm2")[0].find("os/nvram")
    assert nvram.text is None and len(nvram) == 0 and nvram.get("type") is None
    assert adapted(of(os))[0].find("os/nvram/source").get("dev") == "/dev/old"


# -- a disk -----------------------------------------------------------------------------------------------------------


def test_a_second_driver_of_a_restored_disk_is_removed():
    """If it counted, a raw image would be opened in the format that its guest wrote into it."""
    disk = "<disk type='file'><driver type='raw'/><driver type='qcow2'/><target dev='vda'/></disk>"
    root, _ = adapted(of(devices=disk), {"vda": definition.Source("file", "/new", "raw")})
    assert [each.get("type") for each in root.iterfind("devices/disk/driver")] == ["raw"]


# -- a copy -----------------------------------------------------------------------------------------------------------

SHARED = """<disk type='file'><driver type='raw'/><source file='/old'/><target dev='vda'/><shareable/></disk>
  <disk type='block' device='cdrom'><source dev='/dev/sr0'/><target dev='sda'/><readonly/></disk>
  <disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sdb'/><readonly/></disk>
  <disk type='file' device='floppy'><source file='/f'/><target dev='fda'/></disk>
  <disk type='file' device='floppy'><source file='/g'/><target dev='fdb'/><readonly/></disk>
  <channel type='unix'><source mode='bind' path='/run/a'/><target type='virtio' name='a'/></channel>
  <hostdev mode='subsystem' type='pci'/><serial type='file'><source path='/log'/></serial>"""
MORE = "<seclabel type='static' model='dac'/><metadata><a/></metadata>"


def test_a_copy_has_everything_for_itself():
    root, warnings = adapted(
        of(devices=SHARED, more=MORE), {"vda": definition.Source("file", "/new", "raw")}, name="vm2"
    )
    media = {target.get("dev"): source for target, source in [(disk.find("target"), disk.find("source"))
             for disk in root.iterfind("devices/disk")]}  # fmt: skip
    assert {name: None if source is None else list(source.attrib.values()) for name, source in media.items()} == {
        "vda": ["/new"], "sda": None, "sdb": ["/a.iso"], "fda": None, "fdb": ["/g"],
    }  # fmt: skip
    assert root.find("devices/disk/shareable") is None
    assert root.find("devices/channel/source") is None and root.find("devices/hostdev") is None
    assert root.find("metadata/a") is not None and root.find("seclabel") is None
    assert warnings == [
        "in the copy seclabel is left out: it may name something of the original",
        "in the copy cdrom sda has no medium: it belongs to the original",
        "in the copy floppy fda has no medium: it belongs to the original",
        "in the copy hostdev pci is left out: it belongs to the original, or to the host",
        "in the copy serial, a file of the host, becomes a pty",
    ]


def test_the_original_keeps_its_unique_properties():
    xml = of(devices=SHARED, more=MORE)
    root, warnings = adapted(xml, {"vda": definition.Source("file", "/new", "raw")}, name="vm1")
    assert warnings == []
    before, after = (
        [ET.tostring(each).strip() for each in tree.find("devices")[1:]] for tree in (ET.fromstring(xml), root)
    )
    assert before == after and root.find("devices/disk/shareable") is not None and root.find("seclabel") is not None


# -- displays that had a password -------------------------------------------------------------------------------------


def test_the_secret_of_a_tpm_is_not_in_the_point():
    """Without it the state is of no use, and libvirt said so only at the start."""
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'>{}</backend></tpm>"
    root, warnings = adapted(of(devices=tpm.format("<encryption secret='5a7f'/>")))
    assert root.find("devices/tpm/backend/encryption") is not None
    assert [text[:63] for text in warnings] == ["the TPM's state is encrypted with libvirt's secret 5a7f, which "]
    assert adapted(of(devices=tpm.format("")))[1] == []


@pytest.mark.parametrize("before, after", [
    ("<graphics type='vnc' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/></graphics>",
     "<graphics type='vnc'><listen type='address' address='127.0.0.1'/></graphics>"),
    ("<graphics type='vnc'><listen type='network' network='default' address='192.168.0.1'/></graphics>",
     "<graphics type='vnc'><listen type='address' address='127.0.0.1'/></graphics>"),
    ("<graphics type='vnc' autoport='yes'/>", "<graphics type='vnc' autoport='yes' listen='127.0.0.1'/>"),
    ("<graphics type='vnc' socket='/run/a'><listen type='socket' socket='/run/a'/></graphics>",
     "<graphics type='vnc' socket='/run/a'><listen type='socket' socket='/run/a'/></graphics>"),
    ("<graphics type='vnc'><listen type='none'/></graphics>", "<graphics type='vnc'><listen type='none'/></graphics>"),
])  # fmt: skip
@pytest.mark.parametrize("name", [None, "vm2"])
def test_a_display_that_had_a_password_is_not_open_to_all(before, after, name):
    """Its password is in no point; without one, everybody on its network could see and type."""
    spice = "<graphics type='spice' listen='0.0.0.0'/>"
    root, warnings = adapted(of(devices=before + spice), passwords=["vnc"], name=name)
    vnc, other = root.iterfind("devices/graphics")
    wanted = ET.fromstring(after)
    assert vnc.get("listen") == wanted.get("listen") and other.get("listen") == "0.0.0.0"
    if name is None:
        assert ET.tostring(vnc) == ET.tostring(wanted)
    assert warnings == [
        "graphics vnc had a password, which is not in the point: it listens on 127.0.0.1; see virsh edit"
    ]
