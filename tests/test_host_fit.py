"""What a host does not have is replaced, and what only the definition names is refused, by name."""

import xml.etree.ElementTree as ET

import pytest

from nbdpull.core import errors
from nbdpull.definitions import host_fit
from nbdpull.definitions.host_reach import Offer, Packaged, Reach
from nbdpull.hypervisor import domain_files

OFFER = Offer(frozenset({"/usr/bin/qemu"}), frozenset({"/usr/share/OVMF"}))
DRIVE = "<disk type='{}' device='{}'><source {}/><target dev='sda'/></disk>"


def of(os="", devices=""):
    return f"<domain><name>a</name>{os}<devices>{devices}</devices></domain>"


def look(path):
    return {"/disc": host_fit.DISC, "/gone": host_fit.NOTHING, "/unknown": host_fit.UNKNOWN}.get(path, host_fit.FILE)


def fitted(xml, trusted=False):
    text, warnings = host_fit.fitted(xml, OFFER, look, trusted)
    return ET.fromstring(text), warnings


@pytest.mark.parametrize("path, trusted, kept", [
    ("/usr/bin/qemu", False, True), ("/usr/bin/qemu", True, True), ("/other", False, False), ("/other", True, True),
    ("/gone", False, False), ("/gone", True, False),
])  # fmt: skip
def test_emulators(path, trusted, kept):
    root, warnings = fitted(of(devices=f"<emulator>{path}</emulator>"), trusted)
    assert (root.findtext("devices/emulator") == path) is kept
    assert warnings == ([] if kept else [f"libvirt does not offer the emulator {path} here: it uses its own"])


@pytest.mark.parametrize("path, trusted, kept", [
    ("/usr/share/OVMF/a.fd", False, True), ("/other.fd", False, False), ("/other.fd", True, True),
    ("/gone", True, False),
])  # fmt: skip
def test_firmware_that_libvirt_chose(path, trusted, kept):
    os = "<os firmware='efi'><loader secure='yes'>{}</loader><nvram template='/t'>/n</nvram></os>"
    root, warnings = fitted(of(os.format(path)), trusted)
    assert (root.findtext("os/loader") == path) is (root.find("os/nvram").get("template") == "/t") is kept
    assert root.find("os/loader").get("secure") == "yes" and root.findtext("os/nvram") == "/n"
    assert bool(warnings) is not kept


@pytest.mark.parametrize("path, here, stays", [
    ("/usr/libexec/qemu-kvm", ["/usr/bin/qemu-system-x86_64"], False),
    ("/usr/bin/qemu-system-x86_64", ["/usr/libexec/qemu-kvm"], False),
    ("/usr/bin/qemu-system-x86_64", ["/usr/bin/qemu-system-x86_64"], True),
    ("/usr/bin/qemu-system-x86_64", [], True), ("/strange", ["/usr/bin/qemu-system-x86_64"], True),
])  # fmt: skip
def test_an_emulator_of_another_distribution(path, here, stays):
    """Only the usual places are searched."""
    asked = []

    def is_here(path):
        asked.append(path)
        return path in here

    text, warnings = host_fit.loosened(of(devices=f"<emulator>{path}</emulator>"), is_here)
    assert (ET.fromstring(text).findtext("devices/emulator") == path) is stays
    assert warnings == ([] if stays else [f"the emulator {path} is not on this host: libvirt uses its own"])
    assert "/strange" not in asked


def test_no_medium_keeps_a_guest_from_its_start():
    drives = "".join(DRIVE.format(*each) for each in (("file", "cdrom", "file='/a'"), ("file", "floppy", "file='/b'"),
                     ("file", "cdrom", "file='/c' startupPolicy='mandatory'"), ("file", "disk", "file='/d'"),
                     ("block", "cdrom", "dev='/dev/sr0'")))  # fmt: skip
    text, warnings = host_fit.loosened(of(devices=drives + "<disk type='file' device='cdrom'><target dev='a'/></disk>"),
                                   lambda path: True)  # fmt: skip
    policies = [source.get("startupPolicy") for source in ET.fromstring(text).iterfind("devices/disk/source")]
    assert policies == ["optional", "optional", "mandatory", None, "optional"] and warnings == []


def test_firmware_that_the_user_chose_stays():
    """No other firmware can replace it: it is refused, see below."""
    root, warnings = fitted(of("<os><loader>/other.fd</loader></os>"))
    assert root.findtext("os/loader") == "/other.fd" and warnings == []


@pytest.mark.parametrize("drive, source, expected", [
    (("file", "cdrom"), "file='/disc'", None),
    (("file", "cdrom"), "file='/gone'", "cdrom sda has no medium: /gone does not exist here"),
    (("file", "cdrom"), "file='/etc/shadow'", "cdrom sda has no medium: /etc/shadow is not an image of a disc"),
    (("file", "cdrom"), "file='/gone' startupPolicy='optional'", None),
    (("file", "cdrom"), "file='/unknown'", None),
    (("file", "floppy"), "file='/image'", None),
    (("file", "floppy"), "file='/gone'", "floppy sda has no medium: /gone does not exist here"),
    (("block", "cdrom"), "dev='/gone'", "cdrom sda has no medium: /gone does not exist here"),
    (("block", "cdrom"), "dev='/dev/sr0'", None),
    (("network", "cdrom"), "protocol='http' name='a.iso'", None),
    (("file", "disk"), "file='/gone'", None),
])  # fmt: skip
def test_media(drive, source, expected):
    root, found = fitted(of(devices=DRIVE.format(*drive, source)))
    assert found == ([expected] if expected else []) and (root.find("devices/disk/source") is None) is bool(expected)


def test_a_medium_that_is_no_disc_stays_where_it_is_trusted():
    assert fitted(of(devices=DRIVE.format("file", "cdrom", "file='/etc/shadow'")), trusted=True)[1] == []
    assert fitted(of(devices=DRIVE.format("file", "cdrom", "file='/gone'")), trusted=True)[1] != []


def foreign(devices, own=(), known=(), os="", offer=OFFER):
    return list(map(str, host_fit.foreign(of(os, devices), offer, look, own, known)))


def test_foreign_paths():
    devices = "<emulator>/usr/bin/qemu</emulator><serial type='file'><source path='/log'/></serial>" + "".join(
        DRIVE.format(*each) for each in (("file", "cdrom", "file='/disc'"), ("block", "cdrom", "dev='/dev/sr0'"),
                                         ("block", "cdrom", "dev='/dev/sdb'"), ("file", "disk", "file='/own'"))
    )  # fmt: skip
    assert foreign(devices, own=["/own"]) == ["serial /log", "cdrom sda /dev/sdb"]
    assert foreign(devices, own=["/own"], known=[Reach("serial", "/log")]) == ["cdrom sda /dev/sdb"]
    assert foreign(devices, own=["/own"], known=[Reach("console", "/log")]) == ["serial /log", "cdrom sda /dev/sdb"]


@pytest.mark.parametrize("kind, path, below, expected", [
    ("disk", "/known", "<driver type='raw'/>", []),
    ("disk", "/known", "<driver type='qcow2'/>", ["disk sda /known"]),
    ("disk", "/known", "<driver type='raw'/><driver type='qcow2'/>", ["disk sda /known"]),
    ("disk", "/known", "<backingStore><format type='vmdk'/></backingStore>", ["disk sda /known"]),
    ("cdrom", "/disc", "<driver name='qemu' type='raw'/>", []),
    ("cdrom", "/disc", "<driver name='qemu' type='qcow2'/>", ["cdrom sda /disc"]),
])  # fmt: skip
def test_an_image_that_is_taken_for_another_format(kind, path, below, expected):
    """What a guest wrote to a raw disk may be the header of a qcow2 image, with a file of the host as its backing
    file."""
    device = f"<disk type='file' device='{kind}'>{below}<source file='{path}'/><target dev='sda'/></disk>"
    assert foreign(device, known=[Reach("disk sda", "/known")]) == expected


def test_a_disk_at_the_path_of_a_medium_counts_as_foreign():
    assert foreign(DRIVE.format("file", "disk", "file='/disc'")) == ["disk sda /disc"]


@pytest.mark.parametrize("drive, source", [
    (("file", "disk"), "file='/gone'"), (("block", "disk"), "dev='/gone'"),
    (("file", "cdrom"), "file='/gone' startupPolicy='optional'"),
    (("file", "floppy"), "file='/gone' startupPolicy='requisite'"),
])  # fmt: skip
def test_a_missing_image_is_reported_and_not_refused(drive, source):
    device = DRIVE.format(*drive, source)
    host_fit.require_known(of(devices=device), OFFER, look, (), ())
    assert foreign(device) == [f"{drive[1]} sda /gone"]


@pytest.mark.parametrize("device, named", [
    (DRIVE.format("file", "disk", "file='/unknown'"), "disk sda /unknown"),
    (DRIVE.format("network", "disk", "protocol='nbd' name='/gone'"), "disk sda network disk nbd /gone"),
    ("<disk more='/gone' type='dir'><source dir='/etc'/><target dev='sda'/></disk>", "disk sda /gone dir /etc"),
    ("<serial type='file'><source path='/gone'/></serial>", "serial /gone"),
])  # fmt: skip
def test_what_is_no_image_or_not_known_to_be_gone_is_refused(device, named):
    """The file of a port is created if it is missing; and what no path names by itself is never taken for a path."""
    with pytest.raises(errors.ForeignDefinition, match=f": {named};"):
        host_fit.require_known(of(devices=device), OFFER, look, (), ())


def test_what_hosts_usually_have():
    """If no libvirt was asked, a warning is printed: it must not appear for every machine."""
    os = "<os><loader>/usr/share/OVMF/CODE.fd</loader><nvram template='/usr/share/OVMF/VARS.fd'>/own</nvram></os>"
    emulators = "<emulator>/usr/libexec/qemu-kvm</emulator><emulator>/usr/bin/kvm</emulator>"
    assert foreign(emulators, ["/own"], os=os, offer=Packaged()) == []
    strange = "<emulator>/usr/bin/../../store/evil</emulator><emulator>/opt/qemu</emulator>"
    strange += "<emulator>/usr/bin/python3</emulator><emulator>/usr/bin/qemu-img</emulator><emulator>kvm</emulator>"
    os = "<os><loader>/usr/share/../../evil.fd</loader></os>"
    assert len(foreign(strange, os=os, offer=Packaged())) == 6


def test_a_refusal_names_what_it_is_about():
    devices = "".join(f"<serial type='file'><source path='/log{n}'/></serial>" for n in range(8))
    with pytest.raises(errors.ForeignDefinition, match="serial /log0, serial /log1.*/log5, and 2 more; .*--trust-def"):
        host_fit.require_known(of(devices=devices), OFFER, look, (), ())
    with pytest.raises(errors.ForeignDefinition, match=r"loader /x \(firmware of this host is in /usr/share/OVMF\)"):
        host_fit.require_known(of("<os><loader>/x</loader></os>"), OFFER, look, (), ())
    host_fit.require_known(of(devices=devices), OFFER, look, [f"/log{n}" for n in range(8)], ())


def test_checked_paths(tmp_path):
    disc = tmp_path / "disc"
    disc.write_bytes(bytes(32769) + b"CD001" + bytes(100))
    (tmp_path / "short").write_bytes(b"CD001")
    assert domain_files.look(str(disc)) == host_fit.DISC
    assert domain_files.look(str(tmp_path / "short")) == domain_files.look(str(tmp_path)) == host_fit.FILE
    assert domain_files.look("/dev/zero") == host_fit.FILE  # and it was not read
    assert domain_files.look("none") == host_fit.FILE  # of libvirt's working directory
    assert domain_files.look(str(tmp_path / "none")) == domain_files.look(str(disc / "x")) == host_fit.NOTHING
