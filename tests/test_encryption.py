"""Disks that QEMU encrypts on the host: what is reported about them, and that they are restored encrypted, or with a
warning."""

import json
import os
import shutil
from pathlib import Path

import pytest
import stores
from bed import luks
from bed.images import as_root, loop_device
from bed.luks import PASSPHRASE, PATTERN, SIZE, encrypted_image
from bed.machine import MIB, Disk, Machine
from command import run_bytes
from host import Host
from stores import Vm

from nbdpull.core import errors
from nbdpull.operations.restore import Options, restore


class Encrypted(Machine):
    """vda is qcow2, vdb raw inside LUKS; vdc is not encrypted."""

    def __init__(self, bed, folder):
        self.encryption = luks.define_secret(bed)
        folder.mkdir()
        disks = {
            "vda": Disk(SIZE, "qcow2", path=Path(encrypted_image(folder / "vda.qcow2", "qcow2"))),
            "vdb": Disk(SIZE, "raw", path=Path(encrypted_image(folder / "vdb.luks"))),
            "vdc": Disk(MIB),
        }
        super().__init__(bed, folder, disks, name="vm1")

    def _disk_xml(self, target):
        """Return a disk with its encryption: inside <source>, as libvirt writes it now, or beside it, as before."""
        xml = super()._disk_xml(target)
        place = {"vda": "</source>", "vdb": "<target"}.get(target)
        return xml.replace(place, f"{self.encryption}{place}") if place else xml


@pytest.fixture
def vm(private_libvirt, tmp_path):
    with Encrypted(private_libvirt, tmp_path / "images") as vm:
        yield vm


@pytest.fixture
def host(private_libvirt, tmp_path):
    (tmp_path / "home").mkdir()
    return Host(private_libvirt, tmp_path / "home")


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key, of vm1"
    path.write_text(PASSPHRASE)
    return path


def pulled(vm, folder):
    """Pull into a new store in that directory; return {disk: its bytes}."""
    for number, disk in enumerate(("vda", "vdb", "vdc"), 1):
        vm.write(disk, 100 << 10, 64 << 10, number)
    done = run_bytes("pull", vm.name, "-c", vm.bed.uri, "-o", folder / "dir", "--quiet")
    assert done.returncode == 0
    then = {disk: bytearray([PATTERN]) * SIZE for disk in ("vda", "vdb")}
    then["vdc"] = bytearray(MIB)
    for number, disk in enumerate(then, 1):
        then[disk][100 << 10 : 164 << 10] = bytes([number]) * (64 << 10)
    return {disk: bytes(content) for disk, content in then.items()}, done.stderr.decode()


def test_encryption_is_reported(vm, tmp_path):
    """Nobody expects an unencrypted store of an encrypted disk: so this is reported even with --quiet."""
    _, said = pulled(vm, tmp_path)
    for disk in ("vda", "vdb"):
        assert f"warning: disk {disk} is encrypted on its host; the store and the scratch directory hold" in said
    assert "disk vdc" not in said
    plan = json.loads(run_bytes("plan", vm.name, "-c", vm.bed.uri, "--json").stdout)
    assert [each.split()[1] for each in plan["warnings"] if "encrypted" in each] == ["vda", "vdb"]
    doctor = json.loads(run_bytes("doctor", vm.name, "-c", vm.bed.uri, "--json").stdout)
    findings = [each for each in doctor if each["subject"].startswith("encryption of")]
    assert [(each["subject"], each["state"]) for each in findings] == [
        ("encryption of vda", "warn"), ("encryption of vdb", "warn")
    ]  # fmt: skip


def test_a_plain_restore_starts_with_a_warning(vm, host, tmp_path):
    then, _ = pulled(vm, host.folder)
    vm.stop()
    done = run_bytes("restore", host.folder / "dir", "-o", host.folder / "out", "--quiet")
    assert done.returncode == 0 and done.stderr.decode().splitlines() == [
        f"nbdpull: warning: disk {disk} was encrypted on its host and is restored unencrypted; "
        f"--encrypt-disk {disk}=FILE encrypts it"
        for disk in ("vda", "vdb")
    ]
    host.run("virsh define out/domain.xml && virsh start vm1")
    assert "<encryption" not in vm.domain.XMLDesc()
    assert host.seen_by("vm1") == then


def test_a_plain_image_where_the_domain_has_an_encrypted_one(vm, host, tmp_path):
    """The domain does not start as it is: so that is not the next command."""
    pulled(vm, host.folder)
    vm.stop()
    vm.disks["vda"].path.unlink()
    done = run_bytes("restore", host.folder / "dir", "--to", f"vda={vm.disks['vda'].path}", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["next_command"], result["misplaced"], result["encrypted"]) == ("virsh edit vm1", ["vda"], [])


@pytest.mark.parametrize("disk, within", [("vda", "encrypt."), ("vdb", "")])
def test_an_encrypted_restore_starts(vm, host, key, monkeypatch, tmp_path, disk, within):
    """With libvirt's secret; neither the secret nor the disk can be seen from outside."""
    then, _ = pulled(vm, host.folder)
    vm.stop()
    words, out = watched(monkeypatch, tmp_path), host.folder / "out"
    options = ["--disk", disk, "--encrypt-disk", f"{disk}={key}", "--image-options", f"{within}iter-time=10"]
    done = run_bytes("restore", host.folder / "dir", "-o", out, *options, "--json", "-vv")
    assert done.returncode == 0, done.stderr
    assert b" program: qemu-img create " in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["encrypted"] == [disk] and result["misplaced"] == []
    assert [each for each in result["warnings"] if "the domain starts if libvirt has the secret" in each]
    path = Path(result["files"][disk])
    assert sorted(os.listdir(out)) == ["domain.xml", path.name] and path.name in ("vda.qcow2", "vdb.luks")
    assert bytes([PATTERN]) * 512 not in path.read_bytes()
    assert luks.content(path, "qcow2" if within else "luks", key) == then[disk]
    vm.disks[disk].path.unlink()
    host.run(result["next_command"])
    assert vm.domain.XMLDesc().count("<encryption format='luks'") == 2
    number = int.from_bytes(then[disk][100 << 10 :][:1], "big")
    vm.qemu_io(disk, f"read -q -P {number} {100 << 10} {64 << 10}")  # as the guest reads it
    vm.qemu_io(disk, f"read -q -P {PATTERN} {164 << 10} 512k")
    said = words.read_text()
    assert "qemu-img create" in said and PASSPHRASE not in said + done.stdout.decode() + done.stderr.decode()


def watched(monkeypatch, tmp_path):
    """A file that receives each command line of QEMU's programs."""
    (tmp_path / "bin").mkdir()
    log = tmp_path / "words"
    for name in ("qemu-img", "qemu-nbd"):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\necho {name} "$@" >>{log}\nexec {shutil.which(name)} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return log


@pytest.mark.parametrize("disk", ["vda", "vdb"])
def test_a_rollback_through_the_encryption(vm, host, key, disk):
    """Of the same images: their headers stay, and what differs is written encrypted."""
    then, _ = pulled(vm, host.folder)
    vm.write(disk, 0, MIB, 0xEE)
    vm.stop()
    path, kind = vm.disks[disk].path, {"vda": "qcow2", "vdb": "luks"}[disk]
    before = path.read_bytes()[: 64 << 10]
    words = ["restore", host.folder / "dir", "--to", f"{disk}={path}", "--delta", "--json"]
    done = run_bytes(*words, "--encrypt-disk", f"{disk}={key}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["next_command"] == "virsh start vm1 --force-boot" and result["written_bytes"][disk] <= MIB + 4096
    assert path.read_bytes()[: 64 << 10] == before or kind == "qcow2"
    assert luks.content(path, kind, key) == then[disk]
    vm.start()
    vm.qemu_io(disk, "read -q -P 7 0 64k")


def encrypted_store(root, disks=(("vda", "raw"),)):
    vm = Vm(root)
    for disk, _ in disks:
        vm.add_disk(disk, SIZE)
        vm.write(disk, 0, b"plain012" * (32 << 10))
    encryption = "<encryption format='luks'><secret type='passphrase' usage='u1'/></encryption>"
    vm.xml = stores.domain_xml(dict(disks), **{disk: encryption for disk, _ in disks})
    vm.pull()
    return vm


@as_root
@pytest.mark.parametrize("how", ["--force", "--delta"])
def test_a_device_that_is_encrypted(tmp_path, key, how):
    """A logical volume may be encrypted: data is written through its header, which stays."""
    vm = encrypted_store(tmp_path / "store")
    path = encrypted_image(tmp_path / "device")
    before = Path(path).read_bytes()[:MIB]
    with loop_device(path) as device:
        words = ["restore", vm.root, "--to", f"vda={device}", "--encrypt-disk", f"vda={key}", how]
        done = run_bytes(*words)
        assert done.returncode == 0, done.stderr
    assert Path(path).read_bytes()[:MIB] == before
    assert luks.content(path, "luks", key) == vm.images[vm.points[-1].id]["vda"]


@pytest.mark.parametrize("kind", ["qcow2", "luks"])
def test_another_secret_than_that_of_the_image(tmp_path, key, kind):
    vm = encrypted_store(tmp_path / "store", [("vda", "raw" if kind == "luks" else "qcow2")])
    path = Path(encrypted_image(tmp_path / "image", kind))
    before = path.read_bytes()
    key.write_text("wrong")
    done = run_bytes("restore", vm.root, "--to", f"vda={path}", "--delta", "--encrypt-disk", f"vda={key}")
    assert done.returncode == 9 and b"Invalid password" in done.stderr and done.stderr.count(b"\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["qcow2", "luks"])
def test_an_encrypted_image_is_replaced_by_one(tmp_path, key, kind):
    """With --force, and larger than before; what was never written reads as zero, although raw LUKS has no holes."""
    vm = encrypted_store(tmp_path / "store", [("vda", "raw" if kind == "luks" else "qcow2")])
    vm.grow("vda", SIZE + 300 * 1024 + 512)
    vm.pull()
    path = Path(encrypted_image(tmp_path / "image", kind))
    before = path.read_bytes()
    words = ["restore", vm.root, "--to", f"vda={path}", "--encrypt-disk", f"vda={key}", "--json"]
    words += ["--image-options", "encrypt.iter-time=10" if kind == "qcow2" else "iter-time=10"]
    assert run_bytes(*words).returncode == 9 and path.read_bytes() == before
    key.write_text(f"{PASSPHRASE}\n")
    done = run_bytes(*words, "--force")
    assert done.returncode == 0, done.stderr
    warnings = json.loads(done.stdout.splitlines()[-1])["warnings"]
    assert [each for each in warnings if "ends in a newline" in each] and "secret u1" in warnings[0]
    assert luks.content(path, kind, key) == vm.images[vm.points[-1].id]["vda"]


def test_what_cannot_be_encrypted(tmp_path, key):
    vm = encrypted_store(tmp_path / "store", [("vda", "raw"), ("vdb", "qcow2")])
    plain = encrypted_store(tmp_path / "plain")
    plain.xml = stores.domain_xml({"vda": "raw"})
    plain.pull()
    (tmp_path / "empty").touch()
    (tmp_path / "plain.raw").write_bytes(bytes(SIZE))
    to = {"vda": str(tmp_path / "a")}
    for root, how, kind in (
        (plain.root, {"to": to, "secrets": {"vda": str(key)}}, errors.UsageError),
        (vm.root, {"to": to, "secrets": {"vdz": str(key)}}, errors.NoSuchDisk),
        (vm.root, {"to": to, "secrets": {"vda": str(tmp_path / "none")}}, errors.UsageError),
        (vm.root, {"to": to, "secrets": {"vda": str(tmp_path / "empty")}}, errors.UsageError),
        (vm.root, {"to": to, "secrets": {"vda": str(tmp_path)}}, errors.UsageError),
        (vm.root, {"to": {"vda": "nbd://h/"}, "secrets": {"vda": str(key)}}, errors.UsageError),
        (vm.root, {"to": {"vda": "-"}, "secrets": {"vda": str(key)}}, errors.UsageError),
        (vm.root, {"to": {"vda": str(tmp_path / "plain.raw")}, "delta": True, "secrets": {"vda": str(key)}},
         errors.UsageError),
    ):  # fmt: skip
        with pytest.raises(kind):
            restore(Options(str(root), **how))
    assert set(os.listdir(tmp_path)) == {"store", "plain", "empty", "plain.raw", key.name}
    done = run_bytes("restore", vm.root, "-o", tmp_path / "out", "--encrypt-disk", "vda")
    assert done.returncode == 2


def test_qemu_img_that_gives_up_for_want_of_a_clock(tmp_path, key, monkeypatch):
    """This happens now and then if a kernel counts CPU time by ticks. It says nothing about the image."""
    monkeypatch.setenv("REAL", shutil.which("qemu-img"))
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/qemu-img"
    script.write_text(
        f'#!/bin/sh\necho >>{tmp_path}/tries\n[ $(wc -l <{tmp_path}/tries) -gt 3 ] && exec "$REAL" "$@"\n'
        "echo 'qemu-img: a: Unable to get accurate CPU usage' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    vm = encrypted_store(tmp_path / "store", [("vda", "qcow2")])
    how = {"secrets": {"vda": str(key)}, "image_options": "encrypt.iter-time=10"}
    restore(Options(str(vm.root), to={"vda": str(tmp_path / "a")}, **how))
    monkeypatch.undo()
    assert luks.content(tmp_path / "a", "qcow2", key) == vm.images[vm.points[-1].id]["vda"]


def test_the_drill_of_an_encrypted_disk(vm, host, private_libvirt):
    """It runs from the point, which is not encrypted."""
    pulled(vm, host.folder)
    words = ["drill", host.folder / "dir", "-c", private_libvirt.uri, "--expect", "never", "--timeout", "1s"]
    done = run_bytes(*words)
    assert done.returncode == 13 and b"did not show what was expected" in done.stdout
