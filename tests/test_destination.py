"""Where a restored disk is written, and in which format: no domain gets a disk that it would read in another format."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import stores
from bed.images import as_root, loop_device, raw_of
from command import run_bytes
from stores import KIB, MIB, Vm

from nbdpull.core import errors
from nbdpull.operations.restore import Options, restore


def store_of(root, disks, **inner):
    """Return a Vm whose definition has these disks {target: format}."""
    vm = Vm(root)
    for disk in disks:
        vm.add_disk(disk, MIB)
        vm.write(disk, 0, disk.encode() * 100 * KIB)
    vm.xml = stores.domain_xml(disks, **inner)
    vm.pull()
    return vm


def placed(vm, disk, path):
    """Return the definition with a disk at that path."""
    vm.xml = vm.xml.replace(f'"/images/{disk}.{stores.disks_of(vm.xml)[disk][0]}"', f'"{path}"')
    vm.pull()


def content(vm, disk="vda"):
    return vm.images[vm.points[-1].id][disk]


def test_a_restored_disk_is_of_the_format_of_its_domain(tmp_path):
    """With a qcow2 file under a definition that says raw, the guest would see what its disk never held."""
    vm = store_of(tmp_path / "store", {"vda": "raw", "vdb": "qcow2"})
    result = restore(Options(str(vm.root), str(tmp_path / "out")))
    assert sorted(os.listdir(tmp_path / "out")) == ["domain.xml", "vda.raw", "vdb.qcow2"]
    assert result.formats == {"vda": "raw", "vdb": "qcow2"} and not result.warnings and not result.misplaced
    assert [raw_of(result.files[disk], result.formats[disk]) for disk in ("vda", "vdb")] == [
        content(vm, disk) for disk in ("vda", "vdb")
    ]
    assert stores.disks_of((tmp_path / "out/domain.xml").read_text()) == {
        "vda": ("raw", str(tmp_path / "out/vda.raw")),
        "vdb": ("qcow2", str(tmp_path / "out/vdb.qcow2")),
    }


@pytest.mark.parametrize("domain, name, how, expected", [
    ("raw", "disk", {}, "raw"), ("qcow2", "disk", {}, "qcow2"),
    ("raw", "a.img", {}, "raw"), ("qcow2", "a.img", {}, "qcow2"),  # many a qcow2 image has that name
    ("raw", "a.qcow2", {}, "qcow2"), ("qcow2", "a.raw", {}, "raw"),
    ("raw", "a.img", {"kind": "qcow2"}, "qcow2"), ("qcow2", "a.qcow2", {"kind": "raw"}, "raw"),
    ("raw", "disk", {"image_options": "cluster_size=4k"}, "qcow2"),
    ("vmdk", "disk", {}, "qcow2"), ("vmdk", "a.raw", {}, "raw"),
])  # fmt: skip
def test_the_format_at_a_path(tmp_path, domain, name, how, expected):
    vm = store_of(tmp_path / "store", {"vda": domain})
    result = restore(Options(str(vm.root), to={"vda": str(tmp_path / name)}, **how))
    assert result.formats == {"vda": expected}
    assert raw_of(tmp_path / name, expected) == content(vm)
    warnings = ["disk vda is vmdk in the domain's definition: it is restored as qcow2 (see --format)"]
    assert result.warnings == (warnings if (domain, name) == ("vmdk", "disk") else [])


@pytest.mark.parametrize("xml", ["<domain><name>vm1</name></domain>", "no XML at all", ""])
def test_a_definition_without_the_format(tmp_path, xml):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.xml = xml or " "
    vm.pull()
    done = run_bytes("restore", vm.root, "-o", tmp_path / "out", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and sorted(os.listdir(tmp_path / "out")) == ["domain.xml", "vda.qcow2"]
    expected = ["disk vda is not in the domain's definition: it is restored as qcow2 (see --format)"]
    if xml.startswith("<"):
        expected.append("disk vda is in no definition of the point: the domain is without it")
    else:
        expected.append("domain.xml is not a domain definition: it is unchanged")
        assert (tmp_path / "out/domain.xml").read_text() == vm.xml
        for words in (["--define"], ["--name", "other"]):
            done = run_bytes("restore", vm.root, "-o", tmp_path / "refused", *words)
            assert done.returncode == 11 and b"is not a domain definition" in done.stderr
        assert not (tmp_path / "refused").exists()
    assert sorted(result["warnings"]) == sorted(expected) and result["misplaced"] == ["vda"]
    assert result["next_command"] == f"virsh define {tmp_path}/out/domain.xml && virsh edit vm1"


@pytest.mark.parametrize("domain, name", [("raw", "a.qcow2"), ("qcow2", "a.raw"), ("qcow2", "a.img"), ("raw", "a")])
def test_the_domains_own_file_whatever_its_name(tmp_path, domain, name):
    """The definition counts more than the ending of the name."""
    path = tmp_path / name
    vm = store_of(tmp_path / "store", {"vda": domain})
    placed(vm, "vda", path)
    path.write_bytes(b"old")
    done = run_bytes("restore", vm.root, "--to", f"vda={path}", "--force", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["formats"] == {"vda": domain} and result["misplaced"] == []
    assert result["next_command"] == "virsh start vm1 --force-boot"
    assert raw_of(path, domain) == content(vm)


@pytest.mark.parametrize("domain, other", [("raw", "qcow2"), ("qcow2", "raw"), ("vmdk", "qcow2")])
def test_another_format_where_the_domain_has_its_own(tmp_path, domain, other):
    """The guest would see the structure of a file as its disk, or no disk: so this needs a definition that fits."""
    path = tmp_path / "disk"
    vm = store_of(tmp_path / "store", {"vda": domain})
    placed(vm, "vda", path)
    path.write_bytes(b"old")
    how = {"to": {"vda": str(path)}, "kind": other, "force": True}
    with pytest.raises(errors.UsageError, match=f"is {domain} at {path}, and would be .* if it were {other}:"):
        restore(Options(str(vm.root), **how))
    assert path.read_bytes() == b"old"
    result = restore(Options(str(vm.root), str(tmp_path / "out"), **how))
    assert stores.disks_of((tmp_path / "out/domain.xml").read_text()) == {"vda": (other, str(path))}
    assert not result.misplaced and raw_of(path, other) == content(vm)


@as_root
def test_a_device_that_the_domain_takes_for_a_qcow2_image(tmp_path):
    """Some use logical volumes so: raw bytes there do not start the domain, unless its definition changes."""
    (tmp_path / "image").write_bytes(bytes(8 * MIB))
    vm = store_of(tmp_path / "store", {"vda": "qcow2"})
    with loop_device(str(tmp_path / "image")) as device:
        placed(vm, "vda", device)
        with pytest.raises(errors.UsageError, match="give -o|a directory with -o"):
            restore(Options(str(vm.root), to={"vda": device}, force=True))
        assert (tmp_path / "image").read_bytes() == bytes(8 * MIB)
        restore(Options(str(vm.root), str(tmp_path / "out"), to={"vda": device}, force=True))
    assert stores.disks_of((tmp_path / "out/domain.xml").read_text()) == {"vda": ("raw", device)}
    assert (tmp_path / "image").read_bytes() == content(vm).ljust(8 * MIB, b"\0")


@pytest.mark.parametrize("domain", ["raw", "qcow2"])
def test_an_existing_image_keeps_its_format(tmp_path, domain):
    """--delta without a format; and a file of another format is refused, not spoiled."""
    path, other = tmp_path / "disk", {"raw": "qcow2", "qcow2": "raw"}[domain]
    vm = store_of(tmp_path / "store", {"vda": domain})
    subprocess.run(["qemu-img", "create", "-q", "-f", domain, path, str(MIB)], check=True)
    restore(Options(str(vm.root), to={"vda": str(path)}, delta=True))
    assert raw_of(path, domain) == content(vm)
    subprocess.run(["qemu-img", "create", "-q", "-f", other, path, str(MIB)], check=True)
    before = Path(path).read_bytes()
    with pytest.raises(errors.UsageError, match="--format"):
        restore(Options(str(vm.root), to={"vda": str(path)}, delta=True))
    assert Path(path).read_bytes() == before


# -- what comes next --------------------------------------------------------------------------------------------------


def next_of(vm, *words):
    done = run_bytes("restore", vm.root, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_next_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vm = store_of("store", {"vda": "raw", "vdb": "qcow2"})
    assert next_of(vm, "-o", "out")["next_command"] == "virsh define out/domain.xml && virsh start vm1 --force-boot"
    expected = next_of(vm, "-o=-a b", "-c", "qemu:///session", "--name=-x y", "--new-uuid")["next_command"]
    assert expected == (
        "virsh -c qemu:///session define './-a b/domain.xml' && "
        "virsh -c qemu:///session start '--domain=-x y' --force-boot"
    )
    elsewhere = next_of(vm, "--to", "vda=a.raw")
    assert (elsewhere["next_command"], elsewhere["misplaced"]) == ("virsh edit vm1", ["vda"])
    done = run_bytes("restore", vm.root, "--to", "vda=b.raw")
    assert done.stdout.decode().splitlines()[-2:] == [
        "disk vda is raw at b.raw: change its definition to match", "next: virsh edit vm1"
    ]  # fmt: skip


def test_a_lost_definition_is_not_to_be_defined(tmp_path):
    vm = store_of(tmp_path / "store", {"vda": "raw"})
    with stores.damaged(vm.folder / vm.points[-1].id / "domain.xml", b"<domain/>"):
        done = run_bytes("restore", vm.root, "-o", tmp_path / "out", "--salvage", "--json")
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["next_command"], result["misplaced"]) == ("virsh edit vm1", ["vda"])


def test_a_folder_that_no_definition_can_name(tmp_path):
    """libvirt could not open it, either: the images exist nevertheless, but nothing is defined that would use
    others."""
    vm, out = store_of(tmp_path / "store", {"vda": "raw"}), f"{tmp_path}/a\x01\udcff"
    for words in (["--define"], ["--name", "other"]):
        done = run_bytes("restore", vm.root, "-o", out, *words)
        assert done.returncode == 2 and b"cannot be written into a definition" in done.stderr
    assert not os.path.exists(out)
    result = restore(Options(str(vm.root), out))
    assert raw_of(result.files["vda"], "raw") == content(vm)
    assert result.misplaced == ["vda"] and "which is not named here" in result.warnings[0]


def test_a_tpm_state_that_no_start_would_find(tmp_path):
    """The domain would start with an empty TPM, without the key of its disk, for example."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.files = {"tpm.tpm2-00.permall": b"sealed"}
    vm.pull()
    result = restore(Options(str(vm.root), str(tmp_path / "out")))
    assert [each for each in result.warnings if "TPM" in each and "--define" in each] == result.warnings != []


def test_the_stored_definition_is_shown(tmp_path):
    vm = store_of(tmp_path / "store", {"vda": "raw"})
    vm.xml = vm.xml.replace("<devices>", "\t<!-- ü -->\r\n<devices>")
    vm.pull()
    done = run_bytes("show", vm.root, "latest", "--xml")
    assert done.stdout == vm.xml.encode()
    with stores.damaged(vm.folder / vm.points[-1].id / "domain.xml", b"<domain/>"):
        assert run_bytes("show", vm.root, "latest", "--xml").returncode == 11
