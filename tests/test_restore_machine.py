"""The restored machine is the one that was pulled: restored domains are started, and inspected."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import uuid
import xml.etree.ElementTree as ET
from pathlib import Path

import command
import pytest
import stores
from bed.libvirtd import libvirt
from bed.machine import DOMAIN, MIB, Disk, Machine, wait_for

from nbdpull.core import errors
from nbdpull.hypervisor import domain_files
from nbdpull.operations.restore import Options, restore

INACTIVE = 2  # of XMLDesc
REMOVE_NVRAM, KEEP_NVRAM, CHECKPOINTS_METADATA = 4, 8, 16  # of undefineFlags
EFI = "/usr/share/qemu/firmware"  # descriptors, by which libvirt chooses


def nbdpull(*words):
    done = command.nbdpull(*words, timeout=90)
    assert "Traceback" not in done.stderr
    return done


def result_of(*words, uri):
    done = nbdpull(*words, "-c", uri, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# -- devices of the running domain alone ------------------------------------------------------------------------------


def test_a_disk_that_was_plugged_in_live_comes_back(private_libvirt, machine, tmp_path):
    """It was pulled and restored, but no definition had it: the domain was without it."""
    vm = machine({"vda": 2 * MIB})
    vm._make_image("vdd", 4 * MIB)
    vm._make_image("sdh", MIB)
    for plugged in (
        vm._disk_xml("vdd"),
        "<controller type='scsi' index='1' model='virtio-scsi'/>",
        vm._disk_xml("sdh").replace("</disk>", "<address type='drive' controller='1' unit='5'/></disk>"),
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
    ):
        vm.domain.attachDeviceFlags(plugged, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    for number, target in enumerate(vm.disks, 1):
        vm.write(target, 0, MIB, number)
    contents = {target: vm.content(target) for target in vm.disks}
    store = tmp_path / "store"
    result_of("pull", vm.name, "-o", store, uri=private_libvirt.uri)
    assert len(list(store.rglob("domain-live.xml"))) == 1
    words = ["restore", store, "-o", tmp_path / "out", "--define", "--name", "copy", "--new-uuid"]
    result = result_of(*words, uri=private_libvirt.uri)
    assert result["warnings"] == ["rng virtio was plugged into the running domain only: only domain-live.xml has it"]
    with restored(private_libvirt, result) as copy:
        assert {target: copy.content(target) for target in copy.disks} == contents
        root = ET.fromstring(copy.domain.XMLDesc())
        [address] = root.findall("devices/disk/target[@dev='sdh']/../address")
        assert (address.get("controller"), address.get("unit")) == ("1", "5")
        assert root.find("devices/controller[@type='scsi'][@index='1']").get("model") == "virtio-scsi"


def test_a_domain_without_such_devices_has_one_definition(private_libvirt, machine, tmp_path):
    vm = machine({"vda": MIB, "sdb": MIB})
    result_of("pull", vm.name, "-o", tmp_path / "store", uri=private_libvirt.uri)
    assert not list((tmp_path / "store").rglob("domain-live.xml"))


def restored(bed, result):
    """The domain that a restore defined: started at the beginning of the block, and removed at its end."""
    disks = {name: Disk(path=path, format=result["formats"][name]) for name, path in result["files"].items()}
    return Machine.of(bed, result["defined"]["uuid"], disks)


# -- a copy beside the original ---------------------------------------------------------------------------------------


class Fixed(Machine):
    """A machine with everything of which a host has only one."""

    def __init__(self, bed, folder):
        folder.mkdir()
        self.agent, self.log, self.nvdimm, self.floppy = (
            folder / name for name in ("agent", "log", "nvdimm", "floppy")
        )
        self.vnc, self.tcp = free_ports()
        self.nvdimm.write_bytes(bytes(64 * MIB))
        self.floppy.write_bytes(bytes(1440 * 1024))
        super().__init__(bed, folder, {"vda": 2 * MIB})

    def _xml(self):
        fixed = f"""
          <channel type='unix'><source mode='bind' path='{self.agent}'/>
            <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
          <serial type='file'><source path='{self.log}'/><target port='0'/></serial>
          <serial type='tcp'><source mode='bind' host='127.0.0.1' service='{self.tcp}'/><protocol type='raw'/>
            <target port='1'/></serial>
          <graphics type='vnc' port='{self.vnc}' autoport='no' listen='127.0.0.1'/>
          <memory model='nvdimm' access='shared'><source><path>{self.nvdimm}</path></source>
            <target><size unit='MiB'>64</size><node>0</node></target></memory>
          <filesystem type='mount'><source dir='{self.folder}'/><target dir='x'/></filesystem>
          <disk type='file' device='floppy'><source file='{self.floppy}'/><target dev='fda' bus='fdc'/></disk>
          <rng model='virtio'><backend model='egd' type='unix'><source mode='bind' path='{self.folder}/egd'/>
            </backend></rng>"""
        devices = "".join(map(self._disk_xml, self.disks)) + fixed
        xml = DOMAIN.format(kind="qemu", name=self.name, memory=80, cpus=1, boot="", devices=devices)
        slots, cell = (
            "<maxMemory slots='2' unit='MiB'>512</maxMemory>",
            "<cell id='0' cpus='0' memory='16' unit='MiB'/>",
        )
        return xml.replace("<vcpu>", f"{slots}<cpu><numa>{cell}</numa></cpu><vcpu>")


def free_ports():
    """Return two ports that no kernel assigns by itself, as it does those from 32768 on."""
    for port in range(20000 + os.getpid() % 10000, 32767):
        with socket.socket() as one, socket.socket() as other, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port, port + 1


def test_a_copy_runs_beside_the_original_and_shares_nothing(private_libvirt, tmp_path):
    """It took over the channel's socket from the running original, truncated its log, and shared its memory file; the
    ports kept the copy from starting."""
    with Fixed(private_libvirt, tmp_path / "images") as vm:
        vm.log.write_text("what the guest said\n")
        vm.write("vda", 0, MIB, 7)
        result_of("pull", vm.name, "-o", tmp_path / "store", uri=private_libvirt.uri)
        before = {path: identity_of(path) for path in (vm.agent, vm.log, vm.nvdimm, vm.floppy)}
        words = ["restore", tmp_path / "store", "-o", tmp_path / "out", "--define", "--name", "copy", "--new-uuid"]
        result = result_of(*words, uri=private_libvirt.uri)
        warnings = " ".join(result["warnings"])
        for named in ("serial, a file", "serial, a tcp", "memory nvdimm", "filesystem mount", "floppy fda"):
            assert named in warnings
        with restored(private_libvirt, result) as copy:
            assert copy.content("vda") == vm.content("vda")
            xml = copy.domain.XMLDesc()
            assert str(vm.folder) not in xml and f"'{vm.vnc}'" not in xml and f"'{vm.tcp}'" not in xml
            assert {path: identity_of(path) for path in before} == before
            for address in (str(vm.agent), ("127.0.0.1", vm.tcp), ("127.0.0.1", vm.vnc)):
                with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
                    client.connect(address)


def identity_of(path):
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


# -- what a definition names of the host ------------------------------------------------------------------------------


def point_of(tmp_path, devices="", **replaced):
    """Make a store with one point of a domain of another host; its disk holds b"guest"."""
    vm = stores.Vm(tmp_path / "store", name="of-old", uuid="5d1c7fd2-6a5c-4c0e-a6d4-0cc2a7a8ad0b")
    disk = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/nowhere/vda.qcow2'/>"
    disk += "<target dev='vda' bus='virtio'/></disk>"
    xml = DOMAIN.format(kind="qemu", name=vm.name, memory=16, cpus=1, boot="", devices=disk + devices)
    for before, after in replaced.values():
        assert before in xml
        xml = xml.replace(before, after)
    vm.xml = xml.replace("</name>", f"</name><uuid>{vm.uuid}</uuid>")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, b"guest")
    vm.pull()
    return vm


def define(bed, vm, tmp_path, *words):
    return nbdpull("restore", vm.root, "-o", tmp_path / "out", "--define", "-c", bed.uri, "--json", *words)


def starts(bed, done):
    """Start the restored domain, require that its disk holds what it held, and return its definition while it runs."""
    assert done.returncode == 0, done.stderr
    with restored(bed, json.loads(done.stdout.splitlines()[-1])) as vm:
        assert vm.content("vda") == b"guest".ljust(MIB, b"\0")
        return vm.domain.XMLDesc()


@pytest.mark.parametrize("emulator", ["/usr/libexec/qemu-kvm", "a program of the store"])
def test_an_emulator_of_another_host_is_replaced(private_libvirt, tmp_path, emulator):
    """It may be that of another distribution, or of somebody who wrote to the store: libvirt would run it, as root."""
    program, ran = tmp_path / "emulator", tmp_path / "ran"
    program.write_text(f'#!/bin/sh\ntouch {ran}\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    program.chmod(0o755)
    path = str(program) if emulator.startswith("a program") else emulator
    vm = point_of(tmp_path, emulator=("/usr/bin/qemu-system-x86_64", path))
    done = define(private_libvirt, vm, tmp_path)
    assert f"libvirt does not offer the emulator {path} here" in done.stderr + done.stdout
    assert "<emulator>/usr/bin/qemu-system-x86_64<" in starts(private_libvirt, done)
    assert not ran.exists()


def test_an_emulator_of_ones_own(private_libvirt, tmp_path):
    program = tmp_path / "emulator"
    program.write_text('#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    program.chmod(0o755)
    vm = point_of(tmp_path, emulator=("/usr/bin/qemu-system-x86_64", str(program)))
    assert str(program) in starts(private_libvirt, define(private_libvirt, vm, tmp_path, "--trust-definition"))


USUAL = """
  <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/nowhere/excluded'/>
    <target dev='vdb' bus='virtio'/></disk>
  <disk type='file' device='cdrom'><source file='/nowhere/a.iso' startupPolicy='optional'/>
    <target dev='sda' bus='sata'/><readonly/></disk>
  <controller type='sata' index='0'/><controller type='virtio-serial' index='0'/>
  <interface type='network'><source network='default'/><model type='virtio'/></interface>
  <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
  <serial type='pty'/><console type='pty'/>
  <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  <graphics type='vnc' autoport='yes'/><video><model type='vga'/></video>
  <watchdog model='i6300esb' action='reset'/>
  <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
"""


def test_the_usual_machine_is_defined_where_it_never_was(private_libvirt, tmp_path):
    """Without any option, although a disk was never pulled, its CD is gone, and its variables are not in the point."""
    variables = domain_files.variables_homes("of-old", private_libvirt.uri)[0]
    os = ("<os>", f"<os firmware='efi'><nvram>{variables}</nvram>")
    vm = point_of(tmp_path, USUAL, machine=("'pc'", "'q35'"), os=os)
    result = result_of("restore", vm.root, "-o", tmp_path / "out", "--define", uri=private_libvirt.uri)
    assert result["warnings"] == ["disk vdb was not restored: it remains unchanged"]
    assert private_libvirt.virsh("list", "--all", "--name").split() == ["of-old"]
    private_libvirt.connection().lookupByName("of-old").undefineFlags(KEEP_NVRAM)


PCI = "<address domain='0' bus='9' slot='0' function='0'/>"
QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


@pytest.mark.parametrize("where, text, named", [
    ("devices", "<serial type='file'><source path='/etc/cron.d/evil'/></serial>", "serial /etc/cron.d/evil"),
    ("devices", "<interface type='ethernet'><script path='true'/></interface>", "interface true"),
    ("devices", "<disk type='file'><source file='swap.img'/><target dev='vdb'/></disk>", "disk vdb swap.img"),
    ("devices", "<disk type='block'><source dev='/dev/vda'/><target dev='vdb'/></disk>", "disk vdb /dev/vda"),
    ("devices", f"<hostdev mode='subsystem' type='pci'><source>{PCI}</source></hostdev>",
     "hostdev subsystem pci 0 9 0 0"),
    ("domain", f"<qemu:commandline {QEMU}><qemu:arg value='-version'/></qemu:commandline>",
     "qemu:commandline -version"),
])  # fmt: skip
def test_paths_in_a_definition_are_shown_and_refused(private_libvirt, tmp_path, where, text, named):
    vm = point_of(tmp_path, more=(f"</{where}>", f"{text}</{where}>"))
    done = define(private_libvirt, vm, tmp_path)
    assert done.returncode == 3 and f": {named};" in done.stderr and "--trust-definition" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    assert "of-old" not in private_libvirt.virsh("list", "--all", "--name")
    done = nbdpull("restore", vm.root, "-o", tmp_path / "out")
    reported = "disk vdb was not restored" if "vdb" in named else f"domain.xml names what is not in the point: {named};"
    assert done.returncode == 0 and reported in done.stderr


def test_a_script_is_not_run_when_a_domain_is_defined(private_libvirt, tmp_path):
    """libvirt runs that of an interface even when it only makes QEMU's command line."""
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    script.chmod(0o755)
    device = f"<interface type='ethernet'><script path='{script}'/></interface></devices>"
    vm = point_of(tmp_path, more=("</devices>", device))
    done = define(private_libvirt, vm, tmp_path, "--trust-definition")
    defined = private_libvirt.virsh("dumpxml", "of-old")
    private_libvirt.virsh("undefine", "of-old")
    assert done.returncode == 0 and not (tmp_path / "ran").exists() and str(script) in defined


def test_paths_that_the_existing_domain_names_are_accepted(private_libvirt, machine, tmp_path):
    """A restore over the domain itself may name again what the domain names."""
    vm = machine({"vda": MIB})
    vm.destroy()
    log = f"<serial type='file'><source path='{tmp_path}/log'/></serial></devices>"
    private_libvirt.connection().defineXML(vm.domain.XMLDesc().replace("</devices>", log))
    result_of("pull", vm.name, "-o", tmp_path / "store", uri=private_libvirt.uri)
    words = ["restore", tmp_path / "store", "-o", tmp_path / "out", "--define", "--force"]
    assert result_of(*words, uri=private_libvirt.uri)["warnings"] == []
    vm.start()
    assert f"{tmp_path}/log" in vm.domain.XMLDesc() and f"{tmp_path}/out/vda.qcow2" in vm.domain.XMLDesc()


@pytest.mark.parametrize("medium", ["gone", "a file", "a disc"])
def test_a_medium_that_is_gone_is_ejected(private_libvirt, tmp_path, medium):
    """The domain would not start; and the guest would read a file that is not a disc."""
    iso = tmp_path / "a.iso"
    if medium != "gone":
        iso.write_bytes(bytes(32769) + (b"CD001" if medium == "a disc" else b"other") + bytes(MIB))
    drive = f"<disk type='file' device='cdrom'><source file='{iso}'/><target dev='hda' bus='ide'/><readonly/></disk>"
    vm = point_of(tmp_path, drive)
    done = define(private_libvirt, vm, tmp_path)
    why = {"gone": "does not exist here", "a file": "is not an image of a disc"}.get(medium)
    warnings = json.loads(done.stdout.splitlines()[-1])["warnings"]
    assert warnings == ([f"cdrom hda has no medium: {iso} {why}"] if why else [])
    assert (str(iso) in starts(private_libvirt, done)) is (medium == "a disc")


def test_a_plain_restore_names_a_missing_medium(tmp_path):
    """With its domain.xml, the domain would not start if that is gone."""
    drive = "<disk type='file' device='cdrom'><source file='/nowhere/a.iso'/><target dev='hda' bus='ide'/></disk>"
    done = nbdpull("restore", point_of(tmp_path, drive).root, "-o", tmp_path / "out")
    assert "domain.xml names what is not in the point: cdrom hda /nowhere/a.iso;" in done.stderr


# -- what libvirt would refuse ----------------------------------------------------------------------------------------

LUN = ("device='disk'>", "device='lun' rawio='no'>")
SIZE = "<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>"
CACHE = ("type='qcow2'/>", f"type='qcow2'>{SIZE}</driver>")
NUMA = ("<features>", "<numatune><memory mode='strict' nodeset='77'/></numatune><features>")


@pytest.mark.parametrize("replaced, words, says", [
    (("machine='pc'", "machine='pc-q35-rhel9.2.0'"), [], "does not support machine type"),
    (("<target dev='vda'", "<shareable/><target dev='vda'"), [], "shared access for disk 'vda'"),
    (("</devices>", "<disk device='lun' type='file'><source file='/a'/><target dev='sda'/></disk></devices>"),
     ["--trust-definition"], "'lun' is only valid for block"),
])  # fmt: skip
def test_what_libvirt_would_refuse_is_refused_before_the_first_byte(private_libvirt, tmp_path, replaced, words, says):
    """It was refused when all images were written, which may take hours."""
    vm = point_of(tmp_path, replaced=replaced)
    done = define(private_libvirt, vm, tmp_path, *words)
    assert done.returncode == 6 and says in done.stderr and "correct domain.xml" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    assert private_libvirt.virsh("list", "--all", "--name").split() == []


@pytest.mark.parametrize("replaced, words, says", [
    (LUN, ["--format", "raw"], "disk vda was a LUN"),
    (CACHE, ["--format", "raw"], None),
    (CACHE, [], None),
])  # fmt: skip
def test_elements_that_fit_only_another_format_are_adapted(private_libvirt, tmp_path, replaced, words, says):
    vm = point_of(tmp_path, replaced=replaced)
    done = define(private_libvirt, vm, tmp_path, *words)
    warnings = json.loads(done.stdout.splitlines()[-1])["warnings"]
    assert [text for text in warnings if says and text.startswith(says)] == warnings
    assert ("metadata_cache" in starts(private_libvirt, done)) is (replaced == CACHE and not words)


def test_a_definition_that_would_not_start_is_a_warning(private_libvirt, tmp_path):
    """The host may be repaired while the images are written."""
    done = define(private_libvirt, point_of(tmp_path, replaced=NUMA), tmp_path)
    result = json.loads(done.stdout.splitlines()[-1])
    [reported] = result["warnings"]
    assert "but not start it" in reported and "NUMA node 77" in reported
    assert private_libvirt.virsh("list", "--all", "--name").split() == ["of-old"]
    private_libvirt.connection().lookupByName("of-old").undefine()


def test_a_definition_that_a_killed_restore_left_is_removed(private_libvirt, tmp_path):
    """By the next one; a domain of the user's that only has such a name is left alone."""
    vm, theirs = point_of(tmp_path, replaced=NUMA), "nbdpull-trial-0123abcd"
    words = ["restore", vm.root, "-o", tmp_path / "out", "--define", "-c", private_libvirt.uri]
    process = command.start_held("judging", tmp_path / "gate", *words)
    process.kill()
    process.communicate()
    [left] = private_libvirt.virsh("list", "--all", "--name").split()
    private_libvirt.connection().defineXML(
        DOMAIN.format(kind="qemu", name=theirs, memory=16, cpus=1, boot="", devices="")
    )
    [reported, _] = json.loads(define(private_libvirt, vm, tmp_path).stdout.splitlines()[-1])["warnings"]
    assert reported == f"domain '{left}' was left by a killed restore, and was removed"
    assert sorted(private_libvirt.virsh("list", "--all", "--name").split()) == [theirs, "of-old"]
    for name in (theirs, "of-old"):
        private_libvirt.connection().lookupByName(name).undefine()


def test_two_restores_do_not_need_the_trials_of_each_other(private_libvirt, tmp_path, monkeypatch):
    """One removes the trial that the other has just checked, and would remove itself."""
    vm, removed, real = point_of(tmp_path, replaced=NUMA), [], libvirt.virDomain.undefineFlags

    def undefine(dom, flags):
        removed.append(real(dom, flags))
        return real(dom, flags)

    monkeypatch.setattr(libvirt.virDomain, "undefineFlags", undefine)
    options = Options(str(vm.root), str(tmp_path / "out"), define=True, uri=private_libvirt.uri)
    assert restore(options).defined["name"] == "of-old" and removed == [0]
    private_libvirt.connection().lookupByName("of-old").undefine()


def test_a_device_that_libvirt_cannot_check_in_advance_is_accepted(private_libvirt, tmp_path):
    """Without the PCI device of the host, libvirt cannot make QEMU's command line; the domain can be defined."""
    device = f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{PCI}</source></hostdev></devices>"
    done = define(private_libvirt, point_of(tmp_path, replaced=("</devices>", device)), tmp_path, "--trust-definition")
    assert json.loads(done.stdout.splitlines()[-1])["warnings"] == []
    dom = private_libvirt.connection().lookupByName("of-old")
    assert "<hostdev" in dom.XMLDesc()
    dom.undefine()


# -- what no definition contains --------------------------------------------------------------------------------------


def test_a_domain_that_started_with_its_host_does_so_again(private_libvirt, machine, tmp_path):
    """And a copy does not, nor a domain that did not."""
    vm, store, uri = machine({"vda": MIB}), tmp_path / "store", private_libvirt.uri
    for autostart in (0, 1):
        vm.domain.setAutostart(autostart)
        result_of("pull", vm.name, "-o", store, uri=uri)
    first, _ = json.loads(nbdpull("list", store, "--json").stdout)
    vm.stop()
    vm.domain.undefineFlags(CHECKPOINTS_METADATA)

    def back(out, *words):
        result = result_of("restore", store, "-o", tmp_path / out, *words, uri=uri)
        return result["warnings"], private_libvirt.connection().lookupByUUIDString(result["defined"]["uuid"])

    warnings, copy = back("copy", "--define", "--name", "copy", "--new-uuid")
    assert (warnings, copy.autostart()) == ([], 0)
    copy.undefine()
    warnings, dom = back("before", "--define", "--point", first["id"])
    assert (warnings, dom.autostart()) == ([], 0)
    dom.undefine()
    warnings, dom = back("again", "--define")
    assert (warnings, dom.autostart(), dom.UUIDString()) == ([], 1, vm.uuid)
    assert "virsh autostart" in nbdpull("restore", store, "-o", tmp_path / "plain").stderr


# -- passwords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True])
def test_a_display_with_a_password_does_not_come_back_open(private_libvirt, machine, tmp_path, live):
    """The password is in no point: a restore without a warning left the console of the domain open."""
    vm = machine({"vda": MIB})
    vm.destroy()
    display = "<graphics type='vnc' autoport='yes'{}><listen type='address' address='0.0.0.0'/></graphics>"
    without = vm.domain.XMLDesc(INACTIVE)
    for password in (" passwd='Secret7'", "") if live else (" passwd='Secret7'",):
        xml = without.replace("</devices>", f"{display.format(password)}</devices>")
        private_libvirt.connection().defineXML(xml)
        if not vm.active:
            vm.start()
    store, uri = tmp_path / "store", private_libvirt.uri
    report = [result_of("pull", vm.name, "-o", store, uri=uri) for _ in range(2)]
    assert [["password of graphics vnc" in text for text in each["warnings"]] for each in report] == [[True], []]
    assert report[1]["details"]["passwords"] == ["vnc"]
    words = ["restore", store, "-o", tmp_path / "out", "--define", "--name", "copy", "--new-uuid"]
    result = result_of(*words, uri=uri)
    assert any("had a password" in text for text in result["warnings"])
    with restored(private_libvirt, result) as copy:
        [listen] = ET.fromstring(copy.domain.XMLDesc()).findall("devices/graphics/listen")
        assert listen.get("address") == "127.0.0.1"
        assert copy.qmp("query-vnc")["host"] == "127.0.0.1"


def test_a_display_with_an_unknown_password_does_not_come_back_open(machine, tmp_path, monkeypatch):
    """libvirt lets a user read a definition without its secrets: there may be a password."""
    from nbdpull.hypervisor import domain
    from nbdpull.operations import pull

    vm = machine({"vda": MIB})
    vm.destroy()
    display = "<graphics type='vnc' autoport='yes' listen='0.0.0.0' passwd='Secret7'/></devices>"
    vm.bed.connection().defineXML(vm.domain.XMLDesc(INACTIVE).replace("</devices>", display))

    def refused(_):
        raise errors.AccessDenied("no permission")

    monkeypatch.setattr(domain.Domain, "passwords", refused)
    warnings = [pull.pull(pull.Options(vm.name, str(tmp_path / "store"), uri=vm.bed.uri)).warnings for _ in range(2)]
    assert [["of graphics vnc, if any (no permission)" in text for text in each] for each in warnings] == [[True], []]
    result = json.loads(
        nbdpull("restore", tmp_path / "store", "-o", tmp_path / "out", "--json").stdout.splitlines()[-1]
    )
    assert any("listens on 127.0.0.1" in text for text in result["warnings"])
    assert "0.0.0.0" not in (tmp_path / "out/domain.xml").read_text()


# -- firmware ---------------------------------------------------------------------------------------------------------


class Uefi(Machine):
    """A machine with firmware that libvirt selects: libvirt 9.0 reports its variables only while it runs."""

    def __init__(self, *where):
        if not os.path.isdir(EFI):
            pytest.skip("not installed: OVMF (scripts/install --test installs it)")
        super().__init__(*where, {"vda": 2 * MIB})

    def _xml(self):
        devices = "".join(map(self._disk_xml, self.disks))
        xml = DOMAIN.format(kind="qemu", name=self.name, memory=128, cpus=1, boot="", devices=devices)
        return xml.replace("<os>", "<os firmware='efi'>")

    def forget(self):
        """End it, and let libvirt remove its variables."""
        if self.active:
            self.destroy()
        self.domain.undefineFlags(REMOVE_NVRAM | CHECKPOINTS_METADATA)

    def close(self):
        if any(each.UUIDString() == self.uuid for each in self.bed.connection().listAllDomains()):
            self.forget()


BOOT_ENTRY = "nbdpull's own".encode("utf-16-le") + bytes(2)


def add_boot_entry(path):
    """Append the variable Boot0042 to a store of UEFI variables (edk2's layout, authenticated)."""
    data = bytearray(path.read_bytes())
    [header] = struct.unpack_from("<H", data, 0x30)
    at = header + 28
    while data[at : at + 2] == b"\xaa\x55":
        name, content = struct.unpack_from("<II", data, at + 36)
        at += (60 + name + content + 3) // 4 * 4
    name = "Boot0042".encode("utf-16-le") + bytes(2)
    end_of_path = bytes.fromhex("7fff0400")
    content = struct.pack("<IH", 1, len(end_of_path)) + BOOT_ENTRY + end_of_path
    vendor = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
    about = struct.pack("<HBBIQ16sIII", 0x55AA, 0x3F, 0, 7, 0, b"", 0, len(name), len(content)) + vendor
    data[at : at + 60 + len(name) + len(content)] = about + name + content
    path.write_bytes(data)


@pytest.mark.timeout_seconds(240)
def test_boot_entries_come_back_where_no_definition_names_them(private_libvirt, tmp_path):
    if not private_libvirt.root:
        pytest.skip("libvirt's folder of variables: run as root")
    with Uefi(private_libvirt, tmp_path / "images") as vm:
        variables = Path(f"/var/lib/libvirt/qemu/nvram/{vm.name}_VARS.fd")
        vm.destroy()  # before its firmware has written anything
        add_boot_entry(variables)
        vm.start()
        vm.write("vda", MIB, 4096, 0x31)
        then = {disk: vm.content(disk) for disk in vm.disks}
        result_of("pull", vm.name, "-o", tmp_path / "store", uri=private_libvirt.uri)
        vm.forget()
        assert not variables.exists()
        result = result_of("restore", tmp_path / "store", "-o", tmp_path / "out", "--define", uri=private_libvirt.uri)
        restored = Path(result["beside"]["nvram"])
        before = restored.read_bytes()
        vm.paused = False
        vm.start()
        assert str(restored) in vm.domain.XMLDesc() and not variables.exists()
        assert stores.seen_by(vm.domain.XMLDesc()) == then
        wait_for(lambda: restored.read_bytes() != before, "the restored variables in use by the firmware", 120)
        assert BOOT_ENTRY in restored.read_bytes()


class OnDevice(Machine):
    """A machine whose variables are on a block device. Any device passes for them as long as the machine does not
    run."""

    def __init__(self, bed, folder, device):
        self._device_of_variables = device
        super().__init__(bed, folder, {"vda": 2 * MIB})

    def _xml(self):
        (self.folder / "code.fd").write_bytes(b"c" * 128 * 1024)
        boot = f"<loader readonly='yes' type='pflash'>{self.folder}/code.fd</loader>"
        boot += f"<nvram type='block'><source dev='{self._device_of_variables}'/></nvram>"
        devices = "".join(map(self._disk_xml, self.disks))
        return DOMAIN.format(kind="qemu", name=self.name, memory=16, cpus=1, boot=boot, devices=devices)

    def close(self):
        if self.active:
            self.destroy()
        self.domain.undefineFlags(KEEP_NVRAM | CHECKPOINTS_METADATA)


def test_variables_on_a_block_device_come_back(private_libvirt, tmp_path):
    image = tmp_path / "variables"
    image.write_bytes(b"v" * 64 * 1024)
    try:
        device = device_of(image)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no loop device can be made here")
    try:
        with OnDevice(private_libvirt, tmp_path / "images", device) as vm:
            vm.write("vda", MIB, 4096, 0x31)
            result_of("pull", vm.name, "-o", tmp_path / "store", uri=private_libvirt.uri)
            words = ["restore", tmp_path / "store", "-o", tmp_path / "out", "--define", "--name", "copy", "--new-uuid"]
            result = result_of(*words, uri=private_libvirt.uri)
            assert Path(result["beside"]["nvram"]).read_bytes() == b"v" * 64 * 1024
            copy = private_libvirt.connection().lookupByName("copy")
            try:
                copy.createWithFlags(1)  # paused
                assert result["beside"]["nvram"] in copy.XMLDesc() and device not in copy.XMLDesc()
                assert stores.seen_by(copy.XMLDesc()) == {disk: vm.content(disk) for disk in vm.disks}
                copy.destroy()
            finally:
                copy.undefineFlags(KEEP_NVRAM)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def device_of(image):
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    return made.stdout.strip()


def test_unreadable_variables_are_a_warning():
    network = "<nvram type='network'><source protocol='iscsi' name='iqn/0'><host name='h'/></source></nvram>"
    xml = f"<domain><name>a</name><os>{network}</os></domain>"
    assert domain_files.found(xml, None, "u", "qemu:///system") == (
        [], ["the firmware's variables (network iscsi iqn/0) are not in the point"],
    )  # fmt: skip


def test_variables_of_a_domain_that_never_named_them(tmp_path, monkeypatch):
    """While the domain is off, the definition with <os firmware='efi'> does not name them before libvirt 9.2."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    xml, uri = "<domain><name>a</name><os firmware='efi'/></domain>", "qemu:///session"
    assert domain_files.found(xml, None, "u", uri) == ([], [])
    place = tmp_path / "libvirt/qemu/nvram/a_VARS.fd"
    place.parent.mkdir(parents=True)
    place.touch()
    assert domain_files.found(xml, None, "u", uri) == ([("nvram", str(place))], [])
    assert domain_files.found(xml.replace("efi", "bios"), None, "u", uri) == ([], [])
    live = "<domain><name>a</name><os firmware='efi'><nvram>/there</nvram></os></domain>"
    assert domain_files.found(xml, live, "u", uri) == ([("nvram", "/there")], [])
