"""No encrypted data is overwritten, in whatever way a restore writes; no image is taken for another kind."""

import contextlib
import os
import random
import subprocess
from pathlib import Path

import pytest
import stores
from bed.images import as_root, exported, loop_device, raw_of
from bed.luks import SIZE, encrypted_image
from stores import KIB, MIB, Vm

from nbdpull.core import errors
from nbdpull.operations.restore import Options, restore


@pytest.fixture
def vm(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", SIZE)
    vm.write("vda", 0, random.Random(3).randbytes(MIB))
    vm.pull()
    return vm


@pytest.fixture
def changes(tmp_path):
    """A point without a parent, for --onto."""
    vm = Vm(tmp_path / "changes")
    vm.add_disk("vda", SIZE)
    vm.write("vda", 0, b"new" * KIB)
    vm.pull(since="elsewhere")
    return vm


@contextlib.contextmanager
def place_of(path, how):
    """Return a value for --to with which an image file is written in that way."""
    with contextlib.ExitStack() as stack:
        if how == "device":
            yield stack.enter_context(loop_device(path))
        elif how == "nbd":
            yield stack.enter_context(exported(path))
        else:
            yield path


MODES = [
    ("file", {"force": True, "kind": "raw"}),
    ("file", {"force": True, "kind": "qcow2"}),
    ("file", {"delta": True, "kind": "raw"}),
    ("file", {"onto": True, "kind": "raw"}),
    pytest.param("device", {"force": True}, marks=as_root),
    pytest.param("device", {"delta": True}, marks=as_root),
    pytest.param("device", {"onto": True}, marks=as_root),
    ("nbd", {"force": True}),
    ("nbd", {"delta": True}),
    ("nbd", {"onto": True}),
]


@pytest.mark.parametrize("place, how", MODES)
def test_a_luks_header_is_never_written_over(vm, changes, tmp_path, place, how):
    """Restored data is not encrypted: without the header, nobody can read what was there, with any passphrase."""
    path = encrypted_image(tmp_path / "old.img")
    before = Path(path).read_bytes()
    source = changes if "onto" in how else vm
    with place_of(path, place) as where, pytest.raises(errors.EncryptedTarget, match="LUKS.*nothing was written"):
        restore(Options(str(source.root), to={"vda": where}, **how))
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("how", [
    {"force": True, "kind": "qcow2"}, {"force": True, "kind": "raw"}, {"delta": True, "kind": "qcow2"},
    {"delta": True, "kind": "raw"}, {"onto": True, "kind": "qcow2"}
])  # fmt: skip
def test_an_encrypted_qcow2_is_never_written_over(vm, changes, tmp_path, how):
    path = encrypted_image(tmp_path / "old.qcow2", "qcow2")
    before = Path(path).read_bytes()
    with pytest.raises(errors.EncryptedTarget):
        restore(Options(str(changes.root if "onto" in how else vm.root), to={"vda": path}, **how))
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("place, how", MODES)
def test_a_disk_that_the_guest_encrypted_by_itself(tmp_path, place, how, encrypted):
    """It begins with such a header, too, which is restored with the rest. If QEMU encrypts that disk as well, the outer
    header is QEMU's."""
    path = encrypted_image(tmp_path / "guest.img")
    content = Path(path).read_bytes()
    size = len(content)
    vm = Vm(tmp_path / "guest")
    vm.xml = stores.domain_xml({"vda": "raw"}, vda="<encryption format='luks'/>" if encrypted else "")
    vm.add_disk("vda", size)
    vm.write("vda", 0, content)
    vm.disks["vda"].dirty[:] = False
    vm.write("vda", size - 100 * KIB, b"later" * KIB)
    vm.pull(since="elsewhere" if "onto" in how else "nothing")
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(place_of(path, place))
        if encrypted:
            stack.enter_context(pytest.raises(errors.EncryptedTarget))
        restore(Options(str(vm.root), to={"vda": where}, **how))
    expected = content if encrypted else vm.images[vm.points[-1].id]["vda"]
    found = raw_of(path, how.get("kind", "raw") if not encrypted else "raw")
    assert found == expected


def test_another_luks_header_than_the_guests_own(vm, tmp_path):
    """The guest encrypts the disk itself, and the existing header is another one."""
    path = encrypted_image(tmp_path / "other.img")
    header = Path(path).read_bytes()[:MIB]
    vm.write("vda", 0, header[:168] + b"3e3fce45-4f53-4fa7-bb32-11f34168b82b" + header[204:])
    vm.pull()
    with pytest.raises(errors.EncryptedTarget):
        restore(Options(str(vm.root), to={"vda": path}, delta=True, kind="raw"))


@pytest.mark.parametrize("how", ["delta", "onto"])
@pytest.mark.parametrize("kind, place", [
    *((kind, "file") for kind in ("qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed")), ("qcow2", "nbd"),
    pytest.param("qcow2", "device", marks=as_root),
])  # fmt: skip
def test_an_image_is_not_written_to_as_if_it_were_raw(vm, changes, tmp_path, kind, how, place):
    """The name or --format says raw, but it begins like another format."""
    path = str(tmp_path / "a.img")
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(8 * MIB)], check=True)
    with open(path, "r+b") as file:
        file.truncate(max(os.stat(path).st_size, 8 * MIB))
    before = Path(path).read_bytes()
    source = changes if how == "onto" else vm
    with place_of(path, place) as where, pytest.raises(errors.UsageError, match=f"is a {kind} image") as caught:
        restore(Options(str(source.root), to={"vda": where}, kind="raw", **{how: True}))
    assert ("use --format qcow2" in str(caught.value)) == (kind == "qcow2" and place == "file")
    assert Path(path).read_bytes() == before


def test_a_guest_whose_raw_disk_begins_like_an_image(tmp_path):
    """Such as a disk of a hypervisor in the guest: it is written as it is."""
    path = tmp_path / "a.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(8 * MIB)], check=True)
    content = path.read_bytes()
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", len(content))
    vm.write("vda", 0, content)
    vm.pull()
    vm.write("vda", 100 * KIB, b"more")
    point = vm.pull()
    restore(Options(str(vm.root), to={"vda": str(path)}, delta=True))
    assert path.read_bytes() == vm.images[point.id]["vda"]
