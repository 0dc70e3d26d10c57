"""The domain is restored with its disks: its definition with the new paths, its NVRAM, TPM state, kernel and initrd.

It boots, and does not replace any other domain.
"""

import contextlib
import json
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from xml.sax.saxutils import escape

import command
import pytest
import stores
from bed.guest import Guest
from bed.machine import DOMAIN, MIB, Machine, wait_for

from nbdpull.definitions import definition
from nbdpull.hypervisor import domain_files

XML = """<domain type='kvm'>
  <name>vm1</name><uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid>
  <sysinfo type='smbios'><system><entry name='uuid'>3e3fce45-4f53-4fa7-bb32-11f34168b82b</entry></system></sysinfo>
  <os><type>hvm</type><loader readonly='yes' type='pflash'>/fw.fd</loader><nvram template='/t.fd'>/old/vars</nvram>
    <kernel>/old/vmlinuz</kernel><initrd>/old/initrd</initrd><cmdline>quiet</cmdline></os>
  <devices>
    <disk type='network' device='disk'><driver name='qemu' type='raw' cache='none'/><auth username='a'/>
      <source protocol='rbd' name='pool/image'><host name='h'/></source><backingStore/><target dev='vda' bus='virtio'/>
      <boot order='1'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/b'/><target dev='vdb'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/c'/><target dev='vdc'/></disk>
    <disk type='file' device='cdrom'><source file='/old/cd.iso'/><target dev='sda'/><readonly/></disk>
    <interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>"""
DISKS = {
    "vda": definition.Source("file", "/new/vda.qcow2", "qcow2"),
    "vdb": definition.Source("block", "/dev/b", "raw"),
}
REMOVE_NVRAM, KEEP_NVRAM, CHECKPOINTS_METADATA, REMOVE_TPM = 4, 8, 16, 32  # of undefineFlags


def nbdpull(*words):
    done = command.nbdpull(*words, timeout=90)
    assert "Traceback" not in done.stderr
    return done


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# -- the document -----------------------------------------------------------------------------------------------------


def test_paths_are_adapted_and_everything_else_is_kept():
    adapted, warnings = definition.adapted(XML, DISKS, {"nvram": "/new/nvram", "kernel": "/new/kernel"})
    root = ET.fromstring(adapted)
    vda, vdb, vdc, cdrom = root.iterfind("devices/disk")
    assert vda.get("type") == "file" and vda.find("source").attrib == {"file": "/new/vda.qcow2"}
    assert vda.find("driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}
    assert [child.tag for child in vda] == ["driver", "source", "target", "boot"]
    assert vdb.get("type") == "block" and vdb.find("source").attrib == {"dev": "/dev/b"}
    assert vdc.find("source").get("file") == "/old/c" and cdrom.find("source").get("file") == "/old/cd.iso"
    assert warnings == ["disk vdc was not restored: it remains unchanged"]
    assert root.findtext("os/nvram") == "/new/nvram" and root.findtext("os/kernel") == "/new/kernel"
    assert root.findtext("os/initrd") == "/old/initrd"  # it is not in the point
    assert definition.identity(adapted) == definition.identity(XML)
    assert root.find("devices/interface/mac") is not None


def test_a_copy_shares_nothing_with_the_original():
    adapted, warnings = definition.adapted(XML, DISKS, {}, name="vm2", new_uuid=True)
    root = ET.fromstring(adapted)
    name, uuid = definition.identity(adapted)
    assert name == "vm2" and uuid != definition.identity(XML)[1]
    assert root.findtext("sysinfo/system/entry") == uuid
    assert [disk.find("target").get("dev") for disk in root.iterfind("devices/disk")] == ["vda", "vdb", "sda"]
    assert warnings == ["disk vdc was not restored: it is left out"]
    assert root.find("devices/interface/mac") is None
    assert not root.findtext("os/nvram") and root.find("os/nvram").get("template") == "/t.fd"


def test_a_disk_restored_to_an_export_is_a_warning():
    elsewhere = {"vdc": "nbd://host/c"}
    assert definition.adapted(XML, DISKS, {}, elsewhere=elsewhere)[1] == [
        "disk vdc was restored to nbd://host/c, which is not named here: it remains unchanged"
    ]
    copy, warnings = definition.adapted(XML, DISKS, {}, name="vm2", elsewhere=elsewhere)
    assert warnings == ["disk vdc was restored to nbd://host/c, which is not named here: it is left out"]
    assert '"/old/c"' not in copy


def test_qemu_command_lines_survive():
    namespace = "http://libvirt.org/schemas/domain/qemu/1.0"
    extended = XML.replace("<domain ", f"<domain xmlns:qemu='{namespace}' ").replace(
        "</domain>", "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"
    )
    assert "<qemu:arg value" in definition.adapted(extended, {}, {})[0]


# -- the state of a TPM -----------------------------------------------------------------------------------------------


@pytest.fixture
def tpm_root(tmp_path, monkeypatch):
    monkeypatch.setattr(domain_files, "_tpm_root", lambda _uri: str(tmp_path / "swtpm"))
    return tmp_path / "swtpm"


def test_tpm_state_goes_into_the_point_and_back(tpm_root, tmp_path):
    state = tpm_root / "the-uuid" / "tpm2" / "tpm2-00.permall"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"sealed")
    (state.parent / ".lock").touch()
    files, warnings = domain_files.found(XML, None, "the-uuid", "qemu:///system")
    assert files[3:] == [("tpm.tpm2-00.permall", str(state))] and not warnings
    assert dict(files[:3]) == {"kernel": "/old/vmlinuz", "initrd": "/old/initrd", "nvram": "/old/vars"}
    kept = tmp_path / "tpm.tpm2-00.permall"
    shutil.copy(state, kept)
    assert domain_files.place_tpm(XML, "new-uuid", "qemu:///system", {kept.name: str(kept)}) == []
    assert (tpm_root / "new-uuid" / "tpm2" / "tpm2-00.permall").read_bytes() == b"sealed"


def test_a_tpm_that_has_state_already_is_left_alone(tpm_root, tmp_path):
    state = tpm_root / "the-uuid" / "tpm2" / "tpm2-00.permall"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"its own")
    warnings = domain_files.place_tpm(XML, "the-uuid", "qemu:///system", {"tpm.tpm2-00.permall": "/nowhere"})
    assert "was kept" in warnings[0] and state.read_bytes() == b"its own"


def test_a_tpm_without_state_is_a_warning(tpm_root):
    files, warnings = domain_files.found(XML, None, "the-uuid", "qemu:///system")
    assert len(files) == 3 and "TPM's state" in warnings[0]


# -- in libvirt -------------------------------------------------------------------------------------------------------


class Firmware(Machine):
    """A machine with an NVRAM; any file of the right size passes for firmware as long as the machine does not run."""

    def _xml(self):
        code, variables = self.folder / "code.fd", self.folder / "vars.fd"
        code.write_bytes(b"c" * 128 * 1024)
        variables.write_bytes(b"v" * 64 * 1024)
        boot = (
            f"<loader readonly='yes' type='pflash'>{escape(str(code))}</loader><nvram>{escape(str(variables))}</nvram>"
        )
        devices = "".join(map(self._disk_xml, self.disks))
        return DOMAIN.format(kind="qemu", name=self.name, memory=16, cpus=1, boot=boot, devices=devices)

    def close(self):
        if self.domain.isActive():
            self.domain.destroy()
        self.domain.undefineFlags(KEEP_NVRAM | CHECKPOINTS_METADATA)


@pytest.fixture
def pulled(private_libvirt, tmp_path):
    """(machine with firmware, its store with two points)."""
    with Firmware(private_libvirt, tmp_path / "images", {"vda": 8 * MIB, "vdb": 2 * MIB}) as vm:
        for number in (1, 2):
            vm.write("vda", number * MIB, MIB, number)
            assert nbdpull("pull", vm.name, "-c", private_libvirt.uri, "-o", tmp_path / "store").returncode == 0
        yield vm, tmp_path / "store"


def test_nvram_is_stored_once_and_comes_back(pulled, tmp_path):
    vm, store = pulled
    first, second = json.loads(nbdpull("list", store, "--json").stdout)
    held = [path for path in Path(store).rglob("nvram")]
    assert [path.parent.name for path in held] == [first["id"]]
    assert nbdpull("verify", store).returncode == 0
    result = result_of(nbdpull("restore", store, "-o", tmp_path / "out", "--json"))
    assert result["point"] == second["id"]
    assert Path(result["beside"]["nvram"]).read_bytes() == b"v" * 64 * 1024
    assert os.stat(result["beside"]["nvram"]).st_mode & 0o777 == 0o600


def contents(vm):
    return {disk: vm.content(disk) for disk in vm.disks}


def test_define_a_copy(private_libvirt, pulled, tmp_path):
    vm, store = pulled
    words = ["restore", store, "-o", tmp_path / "out", "--define", "--name", f"{vm.name}-copy", "--new-uuid"]
    result = result_of(nbdpull(*words, "-c", private_libvirt.uri, "--json"))
    copy = private_libvirt.connection().lookupByUUIDString(result["defined"]["uuid"])
    try:
        assert copy.name() == f"{vm.name}-copy" and copy.UUIDString() != vm.uuid
        copy.createWithFlags(1)  # paused
        xml = copy.XMLDesc()
        assert stores.seen_by(xml) == contents(vm)
        assert f"<source file='{tmp_path}/out/vda.qcow2'" in xml and f"{tmp_path}/out/nvram" in xml
        assert str(vm.folder) not in ET.tostring(ET.fromstring(xml).find("devices"), encoding="unicode")
    finally:
        if copy.isActive():
            copy.destroy()
        copy.undefineFlags(KEEP_NVRAM)


@pytest.mark.parametrize("words, says", [
    ([], "runs at"), (["--name", "other"], "use --new-uuid"), (["--new-uuid"], "another domain"),
])  # fmt: skip
def test_a_domain_is_not_replaced(private_libvirt, pulled, tmp_path, words, says):
    vm, store = pulled
    done = nbdpull("restore", store, "-o", tmp_path / "out", "--define", "-c", private_libvirt.uri, *words)
    assert done.returncode == 3 and says in done.stderr
    assert not (tmp_path / "out").exists()


def test_replace_the_definition_of_the_same_domain(private_libvirt, pulled, tmp_path):
    vm, store = pulled
    vm.stop()
    words = ["restore", store, "-o", tmp_path / "out", "--define", "-c", private_libvirt.uri]
    assert "use --force" in nbdpull(*words).stderr
    assert result_of(nbdpull(*words, "--force", "--json"))["defined"]["uuid"] == vm.uuid
    assert f"{tmp_path}/out/vdb.qcow2" in vm.domain.XMLDesc()
    then = contents(vm)
    vm.write_offline("vda", ["write -q -P 9 0 64k"])  # the old images are not what it runs from
    vm.start()
    assert stores.seen_by(vm.domain.XMLDesc()) == then


def test_a_saved_state_that_would_undo_the_restore(private_libvirt, pulled, tmp_path):
    """virsh start went on from it, with the old disks, whatever the new definition said."""
    vm, store = pulled
    vm.domain.managedSave()
    words = ["restore", store, "-o", tmp_path / "out", "--define", "--force", "-c", private_libvirt.uri]
    done = nbdpull(*words)
    assert done.returncode == 3 and f"virsh managedsave-remove {vm.name}" in done.stderr
    assert not (tmp_path / "out").exists()
    vm.domain.managedSaveRemove()
    assert result_of(nbdpull(*words, "--json"))["defined"]["uuid"] == vm.uuid


def test_another_name_is_in_a_file_and_nowhere_else(private_libvirt, pulled, tmp_path):
    _, store = pulled
    result = result_of(nbdpull("restore", store, "-o", tmp_path / "out", "--name", "other", "--json"))
    assert result["defined"] is None and "other" not in private_libvirt.virsh("list", "--all", "--name").split()
    root = ET.parse(tmp_path / "out" / "domain.xml").getroot()
    assert root.findtext("name") == "other"
    assert root.find("devices/disk/source").get("file") == f"{tmp_path}/out/vda.qcow2"


@pytest.mark.timeout_seconds(180)
def test_a_restored_domain_boots(private_libvirt, guest_parts, tmp_path):
    """A Linux guest that is gone altogether, with its kernel and initrd; its copy boots and has its files."""
    parts = tmp_path / "boot"
    parts.mkdir()
    own = guest_parts.__class__(*(shutil.copy(p, parts) for p in (guest_parts.kernel, guest_parts.initrd)),
                                guest_parts.disk)  # fmt: skip
    with Guest(private_libvirt, tmp_path / "guest", own) as vm:
        vm.wait_agent()
        vm.run("echo precious > /mnt/letter; sync")
        assert nbdpull("pull", vm.name, "-c", private_libvirt.uri, "-o", tmp_path / "store").returncode == 0
        vm.run("echo changed > /mnt/letter; echo more > /mnt/second; sync")
        assert nbdpull("pull", vm.name, "-c", private_libvirt.uri, "-o", tmp_path / "store").returncode == 0
        assert len(list((tmp_path / "store").rglob("initrd"))) == 1
    shutil.rmtree(parts)
    result = result_of(
        nbdpull(
            "restore",
            tmp_path / "store",
            "-o",
            tmp_path / "out",
            "--define",
            "-c",
            private_libvirt.uri,
            "--json",
            "--trust-definition",
        )  # the file that has its console
    )
    vm.uuid = result["defined"]["uuid"]  # from here on `vm` is the restored domain
    (tmp_path / "guest" / f"{vm.name}.console").unlink()
    try:
        vm.start()
        vm.wait_agent()
        assert vm.run("cat /mnt/letter /mnt/second") == "changed\nmore\n"
    finally:
        vm.close()


FIRMWARE = [("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
            ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd")]  # fmt: skip


class WithTpm(Machine):
    """UEFI firmware that runs, and an emulated TPM."""

    def __init__(self, *where):
        found = [pair for pair in FIRMWARE if all(map(os.path.exists, pair))]
        if not found or not shutil.which("swtpm_setup"):
            pytest.skip("not installed: OVMF or swtpm (scripts/install --test installs them)")
        self.code, self.template = found[0]
        super().__init__(*where, {"vda": 2 * MIB}, paused=False)

    @property
    def variables(self):
        return self.folder / "vars.fd"

    def _xml(self):
        boot = (
            f"<loader readonly='yes' type='pflash'>{self.code}</loader>"
            f"<nvram template='{self.template}'>{escape(str(self.variables))}</nvram>"
        )
        tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
        devices = "".join(map(self._disk_xml, self.disks)) + tpm
        return DOMAIN.format(kind="qemu", name=self.name, memory=128, cpus=1, boot=boot, devices=devices)

    def forget(self):
        """End it, and let libvirt remove its NVRAM and the state of its TPM."""
        self.domain.destroy()
        self.domain.undefineFlags(REMOVE_NVRAM | REMOVE_TPM | CHECKPOINTS_METADATA)

    def close(self):
        with contextlib.suppress(Exception):
            self.forget()


@pytest.mark.timeout_seconds(240)
def test_real_firmware_and_a_real_tpm_come_back(private_libvirt, tmp_path):
    """What the firmware wrote to its NVRAM, and what the TPM holds; the next start uses both."""
    if not private_libvirt.root:
        pytest.skip("the emulated TPM's folders: run as root")
    with WithTpm(private_libvirt, tmp_path / "images") as vm:
        vm.write("vda", MIB, 4096, 0x31)
        template = Path(vm.template).read_bytes()
        wait_for(lambda: vm.variables.read_bytes() != template, "variables written by the firmware", 120)
        vm.suspend()
        state = Path("/var/lib/libvirt/swtpm") / vm.uuid / "tpm2/tpm2-00.permall"
        before, then = (vm.variables.read_bytes(), state.read_bytes()), contents(vm)
        done = nbdpull("pull", vm.name, "-c", private_libvirt.uri, "-o", tmp_path / "store")
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        vm.forget()
        assert not vm.variables.exists() and not state.exists()
        words = ["restore", tmp_path / "store", "-o", tmp_path / "out", "--define", "-c", private_libvirt.uri]
        result = result_of(nbdpull(*words, "--json"))
        assert result["defined"]["uuid"] == vm.uuid and result["warnings"] == []
        assert (Path(result["beside"]["nvram"]).read_bytes(), state.read_bytes()) == before
        vm.write_offline("vda", ["write -q -P 9 0 64k"])
        vm.start()  # swtpm refuses a state that is not whole
        assert stores.seen_by(vm.domain.XMLDesc()) == then
        assert "tpm-tis" in vm.hmp("info tpm")
        written = Path(result["beside"]["nvram"])
        wait_for(lambda: written.read_bytes() != before[0], "the restored NVRAM in use by the firmware", 120)
