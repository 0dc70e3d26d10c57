"""Drill: points boot from the store, one that does not boot fails; nothing is left behind, and nothing is changed."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import identities
import pytest
import stores
from bed.guest import Guest
from bed.machine import DOMAIN, MIB, wait_for
from command import nbdpull
from documents import PROJECT
from stores import Vm, files, package_environment

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.crypto import identity_files
from nbdpull.definitions import drill_xml
from nbdpull.definitions.host_reach import Offer
from nbdpull.operations import drill, listing
from nbdpull.repository import key_changes, keyring, marker

# Says its text on the first serial port, then stands still: xor ax,ax; mov ds,ax; cld; mov dx,0x3f8; mov si,text;
# next: lodsb; test al,al; jz end; out dx,al; jmp next; end: hlt; jmp end
BOOT_CODE = bytes.fromhex("31c0 8ed8 fc baf803 be167c ac 84c0 7403 ee ebf8 f4 ebfd")
HELLO = b"hello from the boot block\r\n"
LOGIN = b"login: "
BOOT_BLOCK = (BOOT_CODE + HELLO + LOGIN + b"\0").ljust(510, b"\0") + b"\x55\xaa"

DEVICES = """<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native'/>
  <source file='/nowhere/vda.qcow2'/><backingStore/><target dev='vda' bus='virtio'/></disk>
  <disk type='file' device='cdrom'><source file='/nowhere/cd.iso'/><target dev='hdc' bus='ide'/><readonly/></disk>
  <interface type='network'><source network='default'/></interface>
  <serial type='pty'><target port='0'/></serial><console type='pty'><target type='serial' port='0'/></console>
  <graphics type='vnc' port='5900' listen='0.0.0.0'/><video><model type='vga'/></video>"""

# The options of the manual's examples
PLAIN, EXPECTING = (
    shlex.split(line)[3:]
    for line in (PROJECT / "docs/nbdpull.1.md").read_text().splitlines()
    if line.startswith("nbdpull drill dir/")
)

FIRMWARE = [("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
            ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd")]  # fmt: skip


def domain_xml(devices=DEVICES):
    return DOMAIN.format(kind="qemu", name="vm1", memory=16, cpus=1, boot="", devices=devices)


@pytest.fixture
def bootable(tmp_path):
    """A point that boots, then one whose boot block is destroyed."""
    vm = Vm(tmp_path / "store")
    vm.xml = domain_xml()
    vm.add_disk("vda", 4 * MIB)
    vm.write("vda", 0, BOOT_BLOCK)
    vm.pull()
    vm.write("vda", 0, b"\xee" * 512)
    vm.pull()
    return vm


def drills_left(bed):
    """Return the domains that belong to no Machine of another test."""
    return [name for name in bed.virsh("list", "--all", "--name").split() if not name.startswith("bed-")]


def run(vm, bed, *options):
    """Return the result of `nbdpull drill --json` as a dict."""
    done = nbdpull("drill", vm.root, "-c", bed.uri, "--json", *options, timeout=100)
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["exit_code"] == done.returncode
    return result


@pytest.fixture
def work():
    """A directory with a short name: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


def test_a_point_boots_and_a_destroyed_boot_block_does_not(bootable, private_libvirt, work, tmp_path):
    good, _ = bootable.points
    before = files(bootable.folder)
    options = ("--expect", "^hello from .* block$", "--timeout", "90s", "--work-dir", work)
    log = tmp_path / "log"
    result = run(bootable, private_libvirt, "--point", good.id, *options, "--log-file", log)
    lines = re.findall(r"INFO ((?:drill|libvirt): .*)", log.read_text())
    steps = [*(f"drill: drill domain=vm1 point={good.id} step={step}" for step in ("serve", "boot")),
             r"libvirt: createXML \(.*\)", r"drill: the guest is up \(.* s\)", "libvirt: destroy"]  # fmt: skip
    assert len(lines) == len(steps) and all(map(re.fullmatch, steps, lines)), lines
    assert (result["ok"], result["verdict"], result["point"], result["waited_for"]) == (True, "ok", good.id, "console")
    assert 0 < result["seconds"] < 90 and "hello from" in result["console"]
    assert Path(result["screenshot"]).read_bytes()[:2] in (b"\x89P", b"P6")

    result = run(bootable, private_libvirt, *options[:2], "--timeout", "4s", "--work-dir", work)
    assert (result["ok"], result["verdict"], result["exit_code"]) == (False, "failed", 13)
    assert "did not show what was expected within 4 s" in result["reason"]

    points = listing.listing(listing.Options(str(bootable.root))).points
    assert [point["drilled"]["verdict"] for point in points] == ["ok", "failed"]
    assert points[0]["drilled"]["seconds"] > 0 and "@" in points[0]["drilled"]["who"]
    assert {name: result[name] for name in points[1]["drilled"]} == points[1]["drilled"]
    assert drills_left(private_libvirt) == []
    assert os.listdir(work) == []
    new = set(files(bootable.folder)) - set(before)
    assert {path.parent for path in new} == {bootable.folder} and set(before) <= set(files(bootable.folder))
    for point in bootable.points:
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=bootable.folder / point.id, check=True)


def test_a_sealed_point_boots_by_an_identity(private_libvirt, tmp_path, work):
    store = marker.create(str(tmp_path / "store"), seal=key_changes.new([identities.recipient("age1")], None))
    vm = Vm(store.root, keys=keyring.keys_of(store, identity_files.given([identities.path("age1")])))
    vm.xml = domain_xml()
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, BOOT_BLOCK)
    vm.pull()
    options = ("--expect", "hello", "--timeout", "20s", "--work-dir", work)
    result = run(vm, private_libvirt, *options, "--identity", identities.path("age1"))
    assert (result["verdict"], result["screenshot"]) == ("ok", None), "a picture shows what is sealed"
    assert run(vm, private_libvirt, *options)["code"] == "key-needed"


def test_a_disk_of_the_running_domain_alone(private_libvirt, tmp_path, work):
    """It is only in the live definition, and it is the one that boots."""
    vm = Vm(tmp_path / "store")
    vm.xml = domain_xml(DEVICES.replace("vda", "vdb"))
    vm.files = {"domain-live.xml": domain_xml(DEVICES).encode()}
    for disk in ("vda", "vdz"):
        vm.add_disk(disk, MIB)
    vm.write("vda", 0, BOOT_BLOCK)
    vm.pull()
    result = run(vm, private_libvirt, *EXPECTING, "--work-dir", work)
    assert (result["verdict"], result["waited_for"]) == ("ok", "console") and "--expect" in EXPECTING
    assert result["warnings"] == ["disk vdz is in no definition of the point: the drill was without it"]


def test_an_agent_that_never_answers(private_libvirt, tmp_path, monkeypatch, work):
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    vm = Vm(tmp_path / "store")
    vm.xml = domain_xml(DEVICES + channel)
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, BOOT_BLOCK)
    vm.pull()
    booted = []

    def check():
        if any(HELLO in path.read_bytes() for path in Path(work).glob("*/*/console")):
            booted.append(1)

    clock = types.SimpleNamespace(**vars(time))
    clock.monotonic = lambda: time.monotonic() + (300 if booted else 0)  # so long as a drill waits
    monkeypatch.setattr(drill, "time", clock)
    result = drill.drill(drill.Options(str(vm.root), uri=private_libvirt.uri, work_dir=work), check=check)
    assert (result.verdict, result.waited_for) == ("failed", "agent")
    assert result.reason == "the agent did not answer within 300 s" and result.seconds > 300
    assert "hello from" in result.console  # what it did is shown all the same
    assert (drills_left(private_libvirt), os.listdir(work)) == ([], [])


def test_no_nvram_is_left(private_libvirt, tmp_path, work):
    """If a domain has UEFI firmware, and its NVRAM could not be pulled, libvirt creates one, and keeps it forever."""
    firmware = [pair for pair in FIRMWARE if all(map(os.path.exists, pair))]
    if not firmware:
        pytest.skip("not installed: OVMF (scripts/install --test installs it)")
    code, template = firmware[0]
    boot = (
        f"<loader readonly='yes' type='pflash'>{code}</loader><nvram template='{template}'>/nowhere/vm1_VARS.fd</nvram>"
    )
    vm = Vm(tmp_path / "store")
    vm.xml = DOMAIN.format(kind="qemu", name="vm1", memory=64, cpus=1, boot=boot, devices=DEVICES)
    vm.add_disk("vda", MIB)
    vm.pull()
    kept = Path("/var/lib/libvirt/qemu/nvram")
    before = files(kept)
    result = run(vm, private_libvirt, "--expect", "never", "--timeout", "1s", "--work-dir", work)
    assert (result["verdict"], os.listdir(work), files(kept)) == ("failed", [], before)


def test_a_point_that_cannot_be_read_fails_at_once(bootable, private_libvirt):
    point = bootable.points[0]
    chunk = bootable.folder / stores.chunks_of(bootable, point, "vda")[0].path
    with stores.damaged(chunk, stores.flipped(chunk.read_bytes(), 130)):
        result = run(bootable, private_libvirt, "--point", point.id, "--expect", "hello", "--timeout", "60")
    assert result["verdict"] == "failed" and "cannot be read" in result["reason"] and result["seconds"] < 30


@pytest.fixture
def threaded_guest(private_libvirt, guest_parts, tmp_path):
    """A Linux guest whose disk is in an I/O thread."""
    with Guest(private_libvirt, tmp_path / "guest", guest_parts, iothreads=1) as vm:
        vm.wait_agent()
        yield vm


@pytest.mark.timeout_seconds(200)
def test_the_linux_guest_in_a_drill(threaded_guest, private_libvirt, tmp_path):
    """Pulled while it runs, booted beside it: the agent answers."""
    guest, pid = threaded_guest, threaded_guest.pid
    store = tmp_path / "store"
    for _ in range(2):
        assert cli.main(["pull", guest.name, "-o", str(store), "-c", private_libvirt.uri, "--quiet"]) == 0
        guest.run("echo more > /mnt/more; sync")

    class Root:
        root = store

    result = run(Root, private_libvirt, *PLAIN)
    assert result["ok"] and result["waited_for"] == "agent" and "bed: vda is mounted" in result["console"]
    assert private_libvirt.virsh("list", "--name").split() == [guest.name]
    assert guest.run("cat /mnt/more") == "more\n" and guest.pid == pid


def test_it_can_be_stopped(bootable, private_libvirt, work):
    looks = []

    def check():
        looks.append(1)
        if len(looks) == 20:
            raise errors.Interrupted(15)

    request = drill.Options(str(bootable.root), uri=private_libvirt.uri, expect="never", work_dir=work)
    with pytest.raises(errors.Interrupted):
        drill.drill(request, check=check)
    assert drills_left(private_libvirt) == []
    assert os.listdir(work) == []
    assert listing.listing(listing.Options(str(bootable.root))).points[1]["drilled"] is None


def closed_to_nobody(folder):
    """Return whether the user nobody, even with the names, can access none of the files in a directory."""
    names = [str(path) for path in folder.rglob("*") if not path.is_dir()]
    assert any(name.endswith("nbd.sock") for name in names)
    tried = "import os, sys\nos.setgid(65534)\nos.setuid(65534)\nsys.exit(any(map(os.path.exists, sys.argv[1:])))"
    return subprocess.run([sys.executable, "-c", tried, *names]).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody else")
def test_a_drill_whose_disks_everybody_could_read(bootable, private_libvirt, work):
    """The path of its socket is in QEMU's command line, which every list of processes shows."""
    os.chmod(work, 0o755)
    seen = []

    def report(event, step, **_):
        if step == "boot":
            seen.append(closed_to_nobody(Path(work)))

    drill.drill(drill.Options(str(bootable.root), point=bootable.points[0].id, uri=private_libvirt.uri, expect="hello",
                              work_dir=work, keep=False), report)  # fmt: skip
    assert seen == [True]


def test_sigkill_leaves_nothing_that_runs(bootable, private_libvirt, work):
    """And the next drill removes its files."""
    words = ["drill", bootable.root, "-c", private_libvirt.uri, "--json", "--expect", "never", "--work-dir", work]
    process = subprocess.Popen([sys.executable, "-m", "nbdpull", *map(str, words)], stdout=subprocess.DEVNULL,
                               env=package_environment())  # fmt: skip
    wait_for(lambda: drills_left(private_libvirt), "the domain of the drill")
    assert processes_of(work)
    process.kill()
    process.wait()
    wait_for(lambda: not drills_left(private_libvirt), "end of the domain")
    wait_for(lambda: not processes_of(work), "end of all processes")
    [left] = os.listdir(work)
    run(bootable, private_libvirt, "--expect", "never", "--timeout", "1s", "--work-dir", work)
    assert os.listdir(work) == [left]  # it is too young: its drill could be about to hold it
    os.utime(os.path.join(work, left), (1, 1))
    run(bootable, private_libvirt, "--expect", "never", "--timeout", "1s", "--work-dir", work)
    assert os.listdir(work) == []


def processes_of(folder):
    """Return the command lines that name a directory."""
    return subprocess.run(["pgrep", "-a", "-f", f" -.*{folder}/"], capture_output=True, text=True).stdout.splitlines()


def test_bad_input(bootable, private_libvirt, capsys):
    def code(*words):
        found = cli.main(["drill", str(bootable.root), "-c", private_libvirt.uri, *words])
        assert capsys.readouterr().err.count("\n") == 1
        return found

    assert code() == 2  # no agent, and no --expect
    assert code("--expect", "(") == 2
    for everything in ("", ".*", "^", "x?|y"):  # found before the guest ran: any point passed
        assert code("--expect", everything) == 2
    assert code("--expect", "x", "--point", "20200101T000000Z-aaaaaa") == 10
    assert code("--expect", "x", "--work-dir", "/nowhere") == 9
    assert code("--expect", "x", "-c", "qemu+unix:///system?socket=/nowhere") == 6


# -- the definition ---------------------------------------------------------------------------------------------------


OFFER = Offer(frozenset({"/usr/bin/qemu-system-x86_64"}), frozenset({"/usr/share/OVMF"}))


def adapted(devices, xml=None, files=None, offer=OFFER):
    xml = xml or domain_xml(devices)
    return ET.fromstring(
        drill_xml.adapted(xml, "n", "u", {"vda": "/new/vda.qcow2"}, "/new/console", files or {}, offer)
    )


def test_nothing_of_the_host_is_reached():
    root = adapted(
        DEVICES
        + """<hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev>
        <filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem><tpm model='tpm-tis'/>
        <channel type='unix'><source mode='bind' path='/old'/>
          <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
        <input type='evdev'><source dev='/dev/input/event1'/></input><input type='tablet' bus='usb'/>
        <memory model='nvdimm'><source><path>/old</path></source></memory>
        <rng model='virtio'><backend model='random'>/old</backend></rng>
        <rng model='virtio'><backend model='egd' type='unix'><source path='/old'/></backend></rng>
        <video><model type='virtio'><acceleration rendernode='/old'/></model><driver name='vhost-user'/></video>
        <vsock model='virtio'/><redirdev bus='usb' type='spicevmc'/><sound model='ich9'/>"""
    )
    tags = [child.tag for child in root.find("devices")]
    gone = {"hostdev", "filesystem", "tpm", "interface", "vsock", "redirdev", "sound", "graphics", "memory"}
    assert not set(tags) & gone
    assert tags.count("disk") == tags.count("channel") == tags.count("input") == tags.count("serial") == 1
    assert root.find("devices/disk/source").get("file") == "/new/vda.qcow2"
    assert root.find("devices/disk/driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "unsafe"}
    assert root.find("devices/channel/source") is None
    assert [backend.text for backend in root.iterfind("devices/rng/backend")] == ["/dev/urandom"] * 2
    assert (root.findtext("name"), root.findtext("uuid")) == ("n", "u")
    assert b"/nowhere" not in ET.tostring(root) and b"/old" not in ET.tostring(root)


def test_firmware_kernel_and_arguments_of_qemu():
    xml = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name>
      <metadata><x/></metadata><cputune/><seclabel type='none'/>
      <os><type>hvm</type><nvram template='/t' format='qcow2'>/old/nvram</nvram><kernel>/old/k</kernel></os>
      <devices><video><model type='qxl' ram='1'><acceleration accel3d='yes'/></model></video>
      <emulator>/no/qemu</emulator><console type='pty'><target type='sclp'/></console></devices>
      <qemu:commandline><qemu:arg value='-net'/></qemu:commandline></domain>"""
    files = {"nvram": "/new/nvram", "kernel": "/new/k"}
    root = adapted("", xml, files)
    assert {child.tag for child in root} == {"name", "uuid", "os", "devices", "on_poweroff", "on_crash"}
    assert (root.findtext("os/nvram"), root.findtext("os/kernel")) == ("/new/nvram", "/new/k")
    assert root.find("os/nvram").attrib == {"format": "qcow2"}  # the file's bytes are as they were
    assert root.find("devices/video/model").attrib == {"type": "vga"}
    assert root.find("devices/console/target").get("type") == "sclp" and root.find("devices/serial") is None
    assert root.find("devices/emulator") is None  # libvirt has one


def test_variables_of_firmware_that_no_definition_names():
    """With <os firmware='efi'>, the definition of old libvirts names no variables, but there are some."""
    xml = domain_xml("").replace("<os>", "<os firmware='efi'>")
    assert adapted("", xml, {"nvram": "/new/nvram"}).findtext("os/nvram") == "/new/nvram"
    assert adapted("", domain_xml(""), {"nvram": "/new/nvram"}).find("os/nvram") is None
    loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>"
    assert adapted("", with_os(loader), {"nvram": "/new/nvram"}).findtext("os/nvram") == "/new/nvram"
    stateless = loader.replace("readonly", "stateless='yes' readonly")
    assert adapted("", with_os(stateless), {"nvram": "/new/nvram"}).find("os/nvram") is None


def with_os(boot):
    return DOMAIN.format(kind="qemu", name="vm1", memory=16, cpus=1, boot=boot, devices="")


def test_a_host_s_own_emulator_and_firmware_stay():
    nvram = "<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/old</nvram>"
    root = adapted("", with_os("<loader>/usr/share/OVMF/OVMF_CODE.fd</loader>" + nvram), {"nvram": "/new/nvram"})
    assert root.findtext("devices/emulator") == "/usr/bin/qemu-system-x86_64"
    assert root.findtext("os/loader") == "/usr/share/OVMF/OVMF_CODE.fd"
    assert root.find("os/nvram").attrib == {"template": "/usr/share/OVMF/OVMF_VARS.fd"}


@pytest.mark.parametrize("boot, error, says", [
    ("<loader>/store/evil.fd</loader>", errors.Unsupported, "loader /store/evil.fd"),
    ("<loader>/usr/share/OVMF/../../../store/evil.fd</loader>", errors.Unsupported, "evil.fd"),
    ("<loader>evil.fd</loader>", errors.Unsupported, "loader evil.fd"),
    ("<kernel>/etc/shadow</kernel>", errors.StoreError, "the domain's kernel is not in the point"),
    ("<initrd>/etc/shadow</initrd>", errors.StoreError, "the domain's initrd"),
    ("<dtb>/etc/shadow</dtb>", errors.StoreError, "the domain's dtb"),
    ("<acpi><table type='slic'>/etc/shadow</table></acpi>", errors.Unsupported, "acpi /etc/shadow"),
    ("<acpi><table type='slic'>etc/shadow</table></acpi>", errors.Unsupported, "acpi etc/shadow"),
    ("</os><sysinfo type='fwcfg'><entry name='opt/a/b' file='/etc/shadow'/></sysinfo><pm>", errors.Unsupported,
     "sysinfo /etc/shadow"),
    ("<x><y z='/etc/shadow'/></x>", errors.Unsupported, "x /etc/shadow"),
])  # fmt: skip
def test_a_file_that_the_store_alone_names(boot, error, says):
    with pytest.raises(error, match=f"^no drill: .*{says}"):
        adapted("", with_os(boot).replace("<pm></os>", "<pm/>"))


@pytest.mark.parametrize("tag", ["devices", "os", "name"])
def test_a_second_element_of_one_that_is_one(tag):
    """libvirt accepts both; a change of one of them would leave the other as it came."""
    xml = domain_xml().replace("</domain>", f"<{tag}><interface type='network'/></{tag}></domain>")
    with pytest.raises(errors.Damaged, match=f"<{tag}> twice"):
        adapted("", xml)


def test_a_program_in_the_store_is_not_run(private_libvirt, tmp_path, work):
    """Anyone who can write to the store can name one in domain.xml; libvirt also runs an emulator to find out its
    capabilities."""
    program, ran = tmp_path / "emulator", tmp_path / "ran"
    program.write_text(f'#!/bin/sh\ntouch {ran}\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    program.chmod(0o755)
    vm = Vm(tmp_path / "store")
    vm.xml = domain_xml().replace("/usr/bin/qemu-system-x86_64", str(program))
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, BOOT_BLOCK)
    vm.pull()
    result = run(vm, private_libvirt, "--expect", "hello", "--timeout", "20s", "--work-dir", work)
    assert not ran.exists()
    assert result["verdict"] == "ok"  # by the host's own emulator
