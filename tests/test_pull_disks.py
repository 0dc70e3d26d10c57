"""Pulls of disks of every shape, and of images that change between two points: each point is compared with its source.

Must not know: the inside of the package.
"""

import os
import shutil
import subprocess

import pytest
from bed.machine import MIB, Disk, Machine
from command import PROJECT, said
from witness import CLUSTER, FULL_FIRST, GROWN, SINCE, dirty, modes

libvirt = pytest.importorskip("libvirt")

# -- shapes of disks --------------------------------------------------------------------------------------------------


def test_odd_sizes(pulled, tmp_path):
    """Not a multiple of 64 KiB; nor of 512 bytes if an image can have such a size: QEMU pads it with zeros."""
    odd = tmp_path / "odd.raw"
    odd.write_bytes(os.urandom(MIB + 1000))
    one = tmp_path / "one.raw"
    one.write_bytes(b"x")
    sizes = {"vda": CLUSTER + 512, "vdb": 512, "vdc": 3 * MIB - 512, "vdd": 0}
    disks = {**sizes, "vde": Disk(path=odd, format="raw"), "vdf": Disk(path=one, format="raw")}
    witness = pulled(disks)
    vm = witness.vm
    for disk in ("vda", "vdb", "vdc"):
        vm.write(disk, sizes[disk] - 1, 1, 0x11)
    first = witness.pull()
    assert {disk["name"]: disk["size"] for disk in first["disks"]} == {**sizes, "vde": MIB + 1024, "vdf": 512}
    vm.write("vda", CLUSTER + 100, 412, 0x21)
    vm.write("vdb", 0, 512, 0x22)
    vm.write_zeroes("vdc", 3 * MIB - 1024, 512)
    vm.write("vde", MIB + 999, 1, 0x24)
    second = witness.pull()
    assert dirty(second) == {"vda": 512, "vdb": 512, "vdc": CLUSTER - 512, "vdd": 0, "vde": MIB + 1024, "vdf": 512}
    witness.assert_restores()


def make_overlay(path, base, size):
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(path), str(size)]
    subprocess.run(command, check=True)
    return Disk(path=path)


def test_shapes_of_images(pulled, tmp_path):
    """The smallest and the largest clusters, subclusters, version 2, an external data file, compressed clusters; and
    overlays over a base that is longer or shorter."""
    base = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "6M"], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 0xbb 0 6M", str(base)], check=True)
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(MIB) + b"text" * MIB)
    compressed = tmp_path / "compressed.qcow2"
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(source), str(compressed)], check=True)
    disks = {
        "vda": Disk(4 * MIB, options="cluster_size=512"),
        "vdb": Disk(7 * MIB, options="cluster_size=2M"),
        "vdc": Disk(4 * MIB, options="cluster_size=128k,extended_l2=on"),
        "vdd": Disk(4 * MIB, options="compat=0.10"),
        "vde": make_overlay(tmp_path / "longer.qcow2", base, 7 * MIB),
        "vdf": make_overlay(tmp_path / "shorter.qcow2", base, 3 * MIB + 512),
        "vdg": Disk(4 * MIB, options=f"data_file={tmp_path}/external.raw,data_file_raw=on"),
        "vdh": Disk(path=compressed),
    }
    witness = pulled(disks)
    vm = witness.vm
    for disk in disks:
        vm.write(disk, 100, 2 * MIB, 0x11)
    witness.pull()
    for disk in disks:
        vm.discard(disk, 512, 512)
        vm.discard(disk, MIB + 512, 100 * 512)
        vm.discard(disk, 2 * MIB - 3 * CLUSTER, 2 * CLUSTER)
        vm.write_zeroes(disk, 3 * CLUSTER, 4096)
        vm.write_zeroes(disk, 5 * CLUSTER, CLUSTER, unmap=True)
        vm.write(disk, 2 * MIB + 300000, 1, 0x77)
    vm.discard("vde", 5 * MIB, MIB)  # back to the base's bytes, or to zero: that is the image's affair
    vm.write_zeroes("vdf", 3 * MIB, 512)
    second = witness.pull()
    assert modes(second) == {**dict.fromkeys(disks, SINCE), "vdd": ("full", "qcow2-v2-has-no-bitmaps")}
    vm.resize("vdf", 5 * MIB)  # the base's bytes must not shine through
    vm.write("vda", 7 * 512, 512, 0x31)
    third = witness.pull()
    assert dirty(third)["vda"] == 4096  # the finest granularity: a small record over a big frame
    witness.assert_restores()


@pytest.mark.libvirt_since("10.10")
def test_raw_disk_with_its_bitmaps_in_a_qcow2_image(pulled, tmp_path):
    """Made from an existing raw image, by the commands of the manual; the definition names both files."""
    raw = tmp_path / "vm1.raw"
    raw.write_bytes(os.urandom(MIB) + bytes(7 * MIB))
    was = raw.read_bytes()
    subprocess.run(["bash", "-ec", commands_of_the_manual("data_file=")], check=True, cwd=tmp_path)
    assert raw.read_bytes() == was
    witness = pulled({"vda": Disk(8 * MIB, path=tmp_path / "vm1.qcow2", data_file=raw)})
    vm = witness.vm
    vm.write("vda", 2 * MIB, MIB, 0x11)
    assert modes(witness.pull()) == {"vda": FULL_FIRST}
    vm.write("vda", 3 * MIB, 512, 0x12)
    vm.discard("vda", 0, CLUSTER)
    second = witness.pull()
    assert (modes(second), dirty(second)) == ({"vda": SINCE}, {"vda": 2 * CLUSTER})
    vm.stop()
    third = witness.pull()
    assert (modes(third), dirty(third)) == ({"vda": SINCE}, {"vda": 0})
    assert raw.read_bytes() == witness.frozen[third["id"]]["vda"]  # whose bytes are the guest's, one by one
    witness.assert_restores()
    said("restore", witness.store, "-o", tmp_path / "new", "--define", "--name", "copy", "--new-uuid", "-c", vm.bed.uri)
    with Machine.of(vm.bed, vm.bed.virsh("domuuid", "copy").strip(), {}) as copy:
        assert "<dataStore" not in copy.domain.XMLDesc()  # two domains would write to that file


def commands_of_the_manual(word):
    """Return the manual's block of commands that contains this word."""
    blocks = (PROJECT / "docs/nbdpull.1.md").read_text().split("```sh\n")[1:]
    return next(code for code in (block.split("```")[0] for block in blocks) if word in code)


def test_disk_that_grows_and_shrinks(pulled):
    witness = pulled({"vda": MIB + 512, "vdb": 4 * MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB + 512, 0x11)
    vm.write("vdb", 0, 4 * MIB, 0x12)
    witness.pull()
    vm.resize("vda", 2 * MIB + 512)
    grown = witness.pull()
    assert modes(grown) == {"vda": GROWN, "vdb": SINCE} and grown["disks"][0]["size"] == 2 * MIB + 512
    vm.write("vda", 2 * MIB, 512, 0x21)
    witness.pull()
    vm.stop()
    vm.resize("vda", 3 * MIB)
    vm.resize("vdb", MIB)
    vm.start()
    vm.write("vda", 3 * MIB - 1, 1, 0x31)
    shrunk = witness.pull()
    assert modes(shrunk) == {"vda": GROWN, "vdb": ("full", "shrunk")}
    vm.stop()
    vm.resize("vdb", 3 * MIB)  # what the shrinking cut off must not come back
    vm.start()
    assert modes(witness.pull()) == {"vda": SINCE, "vdb": GROWN}
    witness.assert_restores()


def test_disk_added_replaced_and_taken_away_between_points(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    vm.attach_disk("sdb", Disk(2 * MIB))
    vm.write("sdb", MIB, MIB, 0x21)
    vm.write("vda", 0, 512, 0x22)
    added = witness.pull()
    assert modes(added) == {"vda": SINCE, "sdb": ("full", "not-in-checkpoint")}
    vm.write_zeroes("sdb", MIB, CLUSTER)
    assert modes(witness.pull()) == {"vda": SINCE, "sdb": SINCE}
    vm.detach_disk("sdb")
    assert modes(witness.pull()) == {"vda": SINCE}
    vm.attach_disk("sdb", Disk(2 * MIB))  # another disk under the old one's name
    vm.write("sdb", 0, CLUSTER, 0x51)
    assert modes(witness.pull()) == {"vda": SINCE, "sdb": ("full", "not-in-checkpoint")}
    witness.assert_restores()
    assert len(vm.checkpoints()) == 1


def test_other_image_at_the_same_target(pulled):
    """A copy under another name has the bitmap that is requested."""
    witness = pulled({"vda": MIB, "vdb": MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    vm.stop()
    copy = vm.disks["vda"].path.with_name("copy.qcow2")
    shutil.copyfile(vm.disks["vda"].path, copy)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 0x22 0 64k", str(copy)], check=True)
    subprocess.run(["qemu-img", "bitmap", "--clear", str(copy), witness.result["details"]["checkpoint"]], check=True)
    xml = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    vm.bed.connection().defineXML(xml.replace(str(vm.disks["vda"].path), str(copy)))
    vm.disks["vda"].path = copy
    vm.start()
    assert modes(witness.pull()) == {"vda": ("full", "source-changed"), "vdb": SINCE}
    witness.assert_restores()


# -- lives of images --------------------------------------------------------------------------------------------------


def test_writes_while_the_domain_was_off(pulled):
    witness = pulled({"vda": 2 * MIB})
    witness.vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    witness.vm.stop()
    witness.vm.write_offline("vda", ["write -q -P 9 1M 64k", "discard -q 0 64k"])
    witness.vm.start()
    second = witness.pull()
    assert modes(second) == {"vda": SINCE} and dirty(second)["vda"] == 2 * CLUSTER
    witness.assert_restores()


def test_bitmaps_lost_in_a_crash(pulled):
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    vm.write("vda", MIB, CLUSTER, 0x21)
    vm.kill()
    vm.start()
    vm.write("vda", 0, CLUSTER, 0x22)
    second = witness.pull()
    assert modes(second) == {"vda": ("full", "bitmap-lost")}
    assert vm.checkpoints() == [second["checkpoint"]] and set(vm.bitmaps("vda")) == {second["checkpoint"]}
    vm.write("vda", 0, 512, 0x31)
    assert modes(witness.pull()) == {"vda": SINCE}
    witness.assert_restores()


def test_one_of_two_images_was_replaced(pulled):
    """Created again at the same path, without the bitmap: only that disk is pulled in full."""
    witness = pulled({"vda": MIB, "vdb": MIB})
    vm = witness.vm
    for disk in vm.disks:
        vm.write(disk, 0, MIB, 0x11)
    witness.pull()
    vm.stop()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(vm.disks["vdb"].path), "1M"], check=True)
    vm.start()
    vm.write("vda", 0, 512, 0x21)
    assert modes(witness.pull()) == {"vda": SINCE, "vdb": ("full", "bitmap-lost")}
    assert modes(witness.pull()) == {"vda": SINCE, "vdb": SINCE}
    witness.assert_restores()


def test_image_rolled_back_to_an_older_copy(pulled):
    """The bitmap is rolled back with the data: the point before the copy is a good base, the one after it is not."""
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull("--checkpoint", "daily")
    vm.write("vda", CLUSTER, CLUSTER, 0x22)
    vm.stop()
    copy = shutil.copyfile(vm.disks["vda"].path, vm.folder / "older")
    vm.start()
    vm.write("vda", 2 * CLUSTER, CLUSTER, 0x23)
    witness.pull()
    vm.stop()
    shutil.copyfile(copy, vm.disks["vda"].path)
    vm.start()
    third = witness.pull()
    assert modes(third) == {"vda": SINCE} and third["parent"] == first["id"]
    witness.assert_restores()


def test_external_snapshot_and_its_commit(pulled):
    witness = pulled({"vda": 2 * MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    vm.snapshot("vda", "s1")  # there and back between two points
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    vm.discard("vda", 3 * CLUSTER, CLUSTER)
    vm.commit("vda")
    vm.write("vda", MIB, 512, 0x22)
    assert modes(witness.pull()) == {"vda": SINCE}

    vm.snapshot("vda", "s2")  # and points on the overlay
    vm.write("vda", 5 * CLUSTER, CLUSTER, 0x31)
    assert modes(witness.pull()) == {"vda": ("full", "source-changed")}
    vm.write("vda", 6 * CLUSTER, CLUSTER, 0x32)
    assert modes(witness.pull()) == {"vda": SINCE}
    vm.write("vda", 7 * CLUSTER, CLUSTER, 0x33)
    vm.commit("vda")
    witness.pull()
    vm.write("vda", 8 * CLUSTER, CLUSTER, 0x34)
    assert modes(witness.pull()) == {"vda": SINCE}
    witness.assert_restores()


@pytest.mark.parametrize("cluster", ["64k", "2M"])
def test_a_disk_on_a_snapshot_that_was_shrunk_and_grown(pulled, cluster):
    """QEMU writes zeroes there up to the end of the cluster, and sets no bit; a cluster has 64 KiB."""
    witness = pulled({"vda": Disk(8 * MIB, options=f"cluster_size={cluster}")}, quick=True)
    vm, end = witness.vm, 4 * MIB + 3 * 512
    vm.write("vda", 0, 8 * MIB, 0x11)
    vm.snapshot("vda", "s1")
    witness.pull()
    vm.resize("vda", end)
    vm.resize("vda", 8 * MIB)
    assert vm.content("vda")[end:] == bytes(8 * MIB - end)
    vm.write("vda", 4 * MIB + 5 * CLUSTER, 512, 0x22)
    assert modes(witness.pull()) == {"vda": SINCE}
    witness.assert_restores()
