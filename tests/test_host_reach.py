"""Everything that a definition names of its host is found, wherever it is."""

import random
import xml.etree.ElementTree as ET

import pytest

from nbdpull.definitions import host_reach
from nbdpull.definitions.host_reach import Offer, Reach

ORDINARY = """<domain type='kvm'><name>a</name><title>a/b</title><description>/etc/passwd</description>
  <metadata><x y='/etc/passwd'>/etc/passwd</x></metadata><clock offset='timezone' timezone='Europe/Berlin'/>
  <resource><partition>/machine</partition></resource><launchSecurity type='sev'><session>a/b</session></launchSecurity>
  <sysinfo type='smbios'><system><entry name='product'>a/b</entry></system></sysinfo>
  <sysinfo type='fwcfg'><entry name='opt/a/b'>text</entry></sysinfo>
  <os><type arch='x86_64' machine='pc'>hvm</type><cmdline>root=/dev/vda1</cmdline><boot dev='hd'/></os>
  <seclabel type='dynamic' model='dac' relabel='yes'/>
  <devices>
    <disk type='file' device='cdrom'><target dev='sda'/><alias name='ua-a/b'/></disk>
    <disk type='block' device='disk'><serial>a/b</serial><source><seclabel model='dac' relabel='no'/></source></disk>
    <interface type='network'><source network='default'/>
      <filterref filter='f'><parameter name='CIDR' value='10.0.0.0/8'/></filterref></interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='pty'/><tpm><backend type='emulator'/></tpm><smartcard mode='passthrough' type='spicevmc'/>
    <rng><backend model='builtin'/></rng>
  </devices></domain>"""


def found(inner="", devices=""):
    return [str(each) for each in host_reach.reaches(tree(inner, devices))]


def tree(inner="", devices=""):
    return ET.fromstring(f"<domain><name>a</name>{inner}<devices>{devices}</devices></domain>")


def test_an_ordinary_machine_reaches_nothing():
    assert host_reach.reaches(ET.fromstring(ORDINARY)) == []


@pytest.mark.parametrize("devices, expected", [
    ("<emulator>/usr/bin/qemu</emulator>", ["emulator /usr/bin/qemu"]),
    ("<disk type='file'><source file='/a'/><backingStore><source file='/b'/></backingStore><target dev='vda'/></disk>",
     ["disk vda /a", "disk vda /b"]),
    ("<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/></disk>", ["cdrom sda /a.iso"]),
    ("<disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>", ["disk vda volume p v"]),
    ("<disk type='nvme'><source type='pci' namespace='1'><address bus='1'/></source><target dev='vda'/></disk>",
     ["disk vda nvme pci 1 1"]),
    ("<filesystem type='mount'><binary path='/evil'/><source dir='/'/><target dir='x'/></filesystem>",
     ["filesystem mount /evil /"]),
    ("<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>",
     ["hostdev subsystem usb 0x1"]),
    ("<interface type='ethernet'><script path='/evil'/></interface>", ["interface /evil"]),
    ("<interface type='ethernet'><script path='evil'/><downscript path='worse'/></interface>",
     ["interface evil", "interface worse"]),
    ("<interface type='direct'><source dev='eth0' mode='bridge'/><target dev='tap0'/></interface>", []),
    ("<emulator>evil</emulator>", ["emulator evil"]),
    ("<disk type='file'><source file='swap.img'/><target dev='vda'/></disk>", ["disk vda swap.img"]),
    ("<disk type='block'><source dev='sda'/><target dev='vda'/></disk>", ["disk vda sda"]),
    ("<disk type='network'><source name='x'/><backingStore type='file'><source file='/etc/shadow'/></backingStore>"
     "<target dev='vda'/></disk>", ["disk vda network x", "disk vda /etc/shadow"]),
    ("<input type='evdev'><source dev='event0'/></input>", ["input event0"]),
    ("<graphics type='vnc'><listen type='socket' socket='s'/></graphics>", ["graphics s"]),
    ("<memory model='nvdimm'><source><path>shadow</path></source></memory>", ["memory shadow"]),
    ("<rng><backend model='random'>shadow</backend></rng>", ["rng shadow"]),
    ("<interface type='hostdev'><source><address bus='0x3'/></source></interface>", ["interface hostdev 0x3"]),
    ("<serial type='file'><source path='/etc/cron.d/x'/></serial>", ["serial /etc/cron.d/x"]),
    ("<serial type='tcp'><source mode='connect' host='127.0.0.1' service='6379'/></serial>",
     ["serial tcp connect 127.0.0.1 6379"]),
    ("<console type='pty'><log file='/etc/cron.d/x'/></console>", ["console /etc/cron.d/x"]),
    ("<serial type='file'><source path='/x'/></serial><console type='file'><source path='/x'/></console>",
     ["serial /x"]),
    ("<rng><backend model='egd' type='udp'><source host='h' service='1'/></backend></rng>", ["rng egd udp h 1"]),
    ("<rng><backend model='random'>etc/shadow</backend></rng>", ["rng etc/shadow"]),
    ("<shmem name='s'/>", ["shmem s"]),
    ("<smartcard mode='host'/>", ["smartcard host"]),
    ("<tpm><backend type='passthrough'/></tpm>", ["tpm passthrough"]),
    ("<disk type='file'><source file='a'><seclabel model='dac' relabel='yes'><label>0:0</label></seclabel></source>"
     "<target dev='vda'/></disk>", ["disk vda a", "disk vda seclabel dac yes 0:0"]),
])  # fmt: skip
def test_devices(devices, expected):
    assert found(devices=devices) == expected


@pytest.mark.parametrize("inner, expected", [
    ("<os><loader>/l</loader><nvram template='/t' format='raw'>/n</nvram><kernel>/k</kernel></os>",
     ["loader /l", "nvram /n", "nvram template /t", "kernel /k"]),
    ("<os><acpi><table type='slic'>/t</table></acpi></os>", ["acpi /t"]),
    ("<os><nvram type='block'><source dev='/dev/sda'/></nvram></os>", ["nvram /dev/sda"]),
    ("<sysinfo type='fwcfg'><entry name='opt/a/b' file='shadow'/></sysinfo>", ["sysinfo shadow"]),
    ("<seclabel type='static' model='dac' relabel='no'><label>0:0</label></seclabel>", ["seclabel static dac no 0:0"]),
    ("<seclabel type='none' model='apparmor'/>", ["seclabel none apparmor"]),
    ("<os><loader>l</loader><nvram template='t'>n</nvram><kernel>k</kernel><acpi><table>s</table></acpi></os>",
     ["loader l", "nvram n", "nvram template t", "kernel k", "acpi s"]),
    ("<launchSecurity type='tdx'><quoteGenerationService path='/run/s'/></launchSecurity>", ["launchSecurity /run/s"]),
    ("<seclabel type='dynamic' model='selinux'><baselabel>unconfined</baselabel></seclabel>",
     ["seclabel dynamic selinux unconfined"]),
    ("<q:commandline xmlns:q='u'/>", []),  # which says nothing
    ("<bootloader>/evil</bootloader>", ["bootloader /evil"]),
])  # fmt: skip
def test_the_domain_itself(inner, expected):
    assert found(inner) == expected


def test_arguments_of_qemu():
    root = tree()
    line = ET.SubElement(root, "q:commandline")
    ET.SubElement(line, "q:arg", value="-device")
    ET.SubElement(line, "q:env", name="A", value="b")
    assert host_reach.reaches(root) == [Reach("q:commandline", "-device A b", is_path=False)]


@pytest.mark.parametrize("seed", range(20))
def test_a_path_is_found_wherever_it_stands(seed):
    """Even in elements that are not known yet."""
    rng = random.Random(seed)
    root = tree()
    at = root.find("devices") if rng.random() < 0.5 else root
    for _ in range(rng.randrange(1, 6)):
        at = ET.SubElement(at, rng.choice(["source", "backend", "x", "y"]))
    if rng.random() < 0.5:
        at.text = "/secret"
    else:
        at.set(rng.choice(["file", "path", "z"]), "/secret")
    assert [each.value for each in host_reach.reaches(root)] == ["/secret"]


def test_what_a_host_offers():
    offer = Offer(frozenset({"/usr/bin/qemu"}), frozenset({"/usr/share/OVMF"}))
    covered = [("emulator", "/usr/bin/qemu"), ("loader", "/usr/share/OVMF/a.fd"), ("rng", "/dev/urandom"),
               ("nvram template", "/usr/share/OVMF/b.fd")]  # fmt: skip
    assert all(offer.covers(Reach(*each)) for each in covered)
    foreign = [("emulator", "/usr/bin/qemu2"), ("loader", "/usr/share/OVMF/../a.fd"), ("rng", "/etc/shadow"),
               ("nvram", "/usr/share/OVMF/a.fd"), ("serial", "/dev/urandom")]  # fmt: skip
    assert not any(offer.covers(Reach(*each)) for each in foreign)
