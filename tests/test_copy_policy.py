"""What the copy of a domain may have: each device as one of its own, or not at all, which is then reported."""

import xml.etree.ElementTree as ET

import pytest

from nbdpull.definitions import copy_policy


def own(text):
    """Return (the device as a copy has it, or None; what is reported)."""
    device = ET.fromstring(text)
    rule = copy_policy.own(device)
    return (ET.tostring(device, encoding="unicode") if rule.kept else None), rule.warning


def same(text):
    return ET.tostring(ET.fromstring(text), encoding="unicode")


@pytest.mark.parametrize("text", [
    "<controller type='scsi' index='0' model='virtio-scsi'/>",
    "<input type='tablet' bus='usb'/>",
    "<memballoon model='virtio'/>",
    "<memory model='dimm'><target><size>1</size></target></memory>",
    "<watchdog model='i6300esb' action='reset'/>",
    "<serial type='pty'><target port='0'/></serial>",
    "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
    "<redirdev bus='usb' type='spicevmc'/>",
    "<rng model='virtio'><backend model='random'>/dev/random</backend></rng>",
    "<rng model='virtio'><backend model='builtin'/></rng>",
    "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>",
    "<audio id='1' type='spice'/>",
    "<graphics type='egl-headless'/>",
    "<interface type='network'><source network='default'/><model type='virtio'/></interface>",
])  # fmt: skip
def test_elements_of_one_domain_stay_unchanged(text):
    assert own(text) == (same(text), "")


@pytest.mark.parametrize("before, after", [
    ("<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='tap-vm1'/>"
     "<virtualport type='openvswitch'><parameters interfaceid='09b11c53' profileid='web'/></virtualport></interface>",
     "<interface type='bridge'><source bridge='br0'/>"
     "<virtualport type='openvswitch'><parameters profileid='web'/></virtualport></interface>"),
    ("<interface type='user'><backend type='passt' logFile='/log'/><portForward proto='tcp'><range start='22'/>"
     "</portForward></interface>", "<interface type='user'><backend type='passt'/></interface>"),
    ("<graphics type='vnc' port='5901' autoport='no' websocket='5701' listen='0.0.0.0' keymap='de'>"
     "<listen type='address' address='0.0.0.0'/></graphics>",
     "<graphics type='vnc' port='-1' autoport='yes' websocket='-1' listen='0.0.0.0' keymap='de'>"
     "<listen type='address' address='0.0.0.0'/></graphics>"),
    ("<graphics type='vnc' socket='/run/vm1.vnc'><listen type='socket' socket='/run/vm1.vnc'/></graphics>",
     "<graphics type='vnc' port='-1' autoport='yes'><listen type='socket'/></graphics>"),
    ("<graphics type='spice' port='5900' tlsPort='5901' autoport='no'/>",
     "<graphics type='spice' port='-1' autoport='yes'/>"),
    ("<channel type='unix'><source mode='bind' path='/run/vm1.agent'/><log file='/log'/>"
     "<target type='virtio' name='a'/></channel>",
     "<channel type='unix'><target type='virtio' name='a'/></channel>"),
    ("<console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><log file='/log'/><target port='0'/></console>",
     "<console type='pty'><target port='0'/></console>"),
    ("<vsock model='virtio'><cid auto='no' address='42'/></vsock>", "<vsock model='virtio'><cid auto='yes'/></vsock>"),
    ("<rng model='virtio'><rate bytes='1'/><backend model='egd' type='unix'><source mode='connect' path='/run/egd'/>"
     "</backend></rng>",
     "<rng model='virtio'><rate bytes='1'/><backend model='random'>/dev/urandom</backend></rng>"),
    ("<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>",
     "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"),
    ("<tpm model='tpm-tis'><backend type='emulator'><source type='dir' path='/srv/tpm'/></backend></tpm>",
     "<tpm model='tpm-tis'><backend type='emulator'/></tpm>"),
    ("<pstore backend='acpi-erst'><path>/srv/pstore</path><size>1</size></pstore>",
     "<pstore backend='acpi-erst'><size>1</size></pstore>"),
])  # fmt: skip
def test_resources_unique_on_a_host_become_automatic(before, after):
    assert own(before) == (same(after), "")


@pytest.mark.parametrize("before, after, expected", [
    ("<serial type='file'><source path='/log' append='on'/><target port='0'/></serial>",
     "<serial type='pty'><target port='0'/></serial>", "serial, a file of the host, becomes a pty"),
    ("<serial type='tcp'><source mode='bind' host='h' service='1'/><protocol type='raw'/><target port='0'/></serial>",
     "<serial type='pty'><target port='0'/></serial>", "serial, a tcp of the host, becomes a pty"),
    ("<console type='file'><source path='/log'/><target type='serial' port='0'/></console>",
     "<console type='pty'><target type='serial' port='0'/></console>", ""),  # it is the serial port once more
    ("<console type='file'><source path='/log'/><target type='virtio' port='0'/></console>",
     "<console type='pty'><target type='virtio' port='0'/></console>", "console, a file of the host, becomes a pty"),
    ("<parallel type='dev'><source path='/dev/parport0'/><target port='0'/></parallel>",
     "<parallel type='pty'><target port='0'/></parallel>", "parallel, a dev of the host, becomes a pty"),
    ("<channel type='tcp'><source mode='connect' host='h' service='1'/><protocol type='raw'/>"
     "<target type='virtio' name='a'/></channel>",
     "<channel type='unix'><target type='virtio' name='a'/></channel>",
     "channel a, a tcp of the host, becomes a socket of its own"),
    ("<channel type='unix'><source mode='connect' path='/run/other'/><target type='virtio' name='a'/></channel>",
     "<channel type='unix'><target type='virtio' name='a'/></channel>",
     "channel a, a unix of the host, becomes a socket of its own"),
    ("<audio id='1' type='file' path='/log.wav'><input/></audio>", "<audio id='1' type='none'/>",
     "audio file of the host becomes none"),
])  # fmt: skip
def test_substitutions_are_warnings(before, after, expected):
    assert own(before) == (same(after), expected)


@pytest.mark.parametrize("text, named", [
    ("<filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>", "filesystem mount /srv"),
    ("<hostdev mode='subsystem' type='pci'><source><address domain='0'/></source></hostdev>", "hostdev pci"),
    ("<memory model='nvdimm' access='shared'><source><path>/nv</path></source></memory>", "memory nvdimm"),
    ("<memory model='virtio-pmem'><source><path>/nv</path></source></memory>", "memory virtio-pmem"),
    ("<shmem name='ivshmem0'/>", "shmem"),
    ("<lease><lockspace>a</lockspace></lease>", "lease"),
    ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "input evdev /dev/input/event1"),
    ("<smartcard mode='host'/>", "smartcard host"),
    ("<smartcard mode='passthrough' type='tcp'><source mode='bind'/></smartcard>", "smartcard tcp bind"),
    ("<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='4000'/></redirdev>", "redirdev tcp"),
    ("<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "tpm tpm-tis"),
    ("<graphics type='sdl' display=':0'/>", "graphics sdl"),
    ("<interface type='hostdev'><source><address/></source></interface>", "interface hostdev"),
    ("<interface type='vhostuser'><source type='unix' path='/run/v'/></interface>", "interface vhostuser"),
    ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", "interface vdpa /dev/vhost-vdpa-0"),
    ("<interface type='server'><source address='192.168.0.1' port='5558'/></interface>", "interface server"),
    ("<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>", "interface direct eth0"),
    ("<interface type='ethernet'><target dev='tap0' managed='no'/></interface>", "interface ethernet"),
    ("<channel type='tcp'><source/><target type='guestfwd' address='10.0.2.1' port='4600'/></channel>", "channel tcp"),
    ("<crypto model='virtio' type='qemu'><backend model='lkcf'/></crypto>", "crypto qemu"),
    ("<what-a-later-libvirt-brings/>", "what-a-later-libvirt-brings"),
])  # fmt: skip
def test_elements_that_cannot_be_duplicated_are_left_out_with_a_warning(text, named):
    device, warnings = own(text)
    assert device is None and warnings.startswith(f"{named} ") and "left out" in warnings


def test_labels_and_arguments_of_the_domain():
    root = ET.fromstring("""<domain xmlns:qemu='u'><name>a</name><seclabel type='static' model='selinux'/>
      <seclabel type='dynamic' model='dac'/><seclabel type='none' model='apparmor'/></domain>""")
    root.append(ET.Element("qemu:commandline"))
    root.append(ET.Element("q:override"))
    root.append(ET.Element("qemu:capabilities"))
    root.append(ET.Comment("of somebody"))
    warnings = copy_policy.own_domain(root)
    assert [each.get("type") or each.tag for each in root][1:4] == ["dynamic", "none", "qemu:capabilities"]
    assert [text.split()[0] for text in warnings] == ["seclabel", "qemu:commandline", "q:override"]
