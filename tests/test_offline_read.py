"""A domain that is off, read without a start: real chains, real locks, every restored byte compared.

test_image_layers.py tests which images there are and what of them is dirty; here the whole program meets libvirt.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bed.device import run
from bed.images import loop_device, used_by_qemu
from bed.machine import MIB, Disk, wait_for
from command import doctor, environment, last_event, nbdpull, start_held
from witness import CLUSTER, GROWN, SINCE, assert_same, modes

libvirt = pytest.importorskip("libvirt")

READ = "--offline=read"
LOST = ("full", "bitmap-lost")


def images(vm):
    """Return what a read must not change: digest, size and modification time of every file of a disk."""
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, path.stat().st_mtime_ns)
            for image in vm.disks.values() for path in Path(image.path).parent.iterdir()}  # fmt: skip


def read(witness, *options):
    """Pull a domain that is off, which must leave no trace in its images."""
    before = images(witness.vm)
    point = witness.pull(READ, *options)
    assert images(witness.vm) == before and not witness.vm.active
    assert (witness.result["offline"], point["checkpoint"]) == ("read", None)
    return point


def refused(witness, *options):
    """Return (exit code, message) of a pull that leaves no trace at all."""
    before = images(witness.vm), set(witness.store.glob("*/*"))
    done = nbdpull(*witness.words(*options))
    assert (images(witness.vm), set(witness.store.glob("*/*"))) == before and not witness.vm.active
    assert last_event(done.stdout)["exit_code"] == done.returncode
    return done.returncode, done.stderr


def use_image(vm, disk, path):
    """Change the definition of a domain that is off."""
    root = ET.fromstring(vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    element = next(e for e in root.iterfind("devices/disk") if e.find("target").get("dev") == disk)
    element.find("driver").set("type", "qcow2")
    element.find("source").set("file", str(path))
    for below in element.findall("backingStore"):
        element.remove(below)
    vm.bed.connection().defineXML(ET.tostring(root, encoding="unicode"))
    vm.disks[disk].path, vm.disks[disk].format = Path(path), "qcow2"


# -- a series ---------------------------------------------------------------------------------------------------------


def test_series_continues(pulled):
    """The base keeps recording, so every point that is read is since the same checkpoint, and so is the next one of
    QEMU."""
    witness = pulled({"vda": 2 * MIB, "vdb": Disk(MIB, "raw")}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB)
    first = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.stop()
    for pattern in (0x22, 0x23):
        vm.write_offline("vda", [f"write -q -P {pattern} {pattern * CLUSTER % MIB} 64k"])
        point = read(witness)
        assert modes(point) == {"vda": SINCE, "vdb": ("full", "raw-has-no-bitmaps")}
        assert (point["consistency"], point["consistency_reason"]) == ("crash-consistent", "off")
        assert (point["parent"], point["since"]) == (first["id"], first["checkpoint"])
    started = witness.pull("--offline=start-paused")
    assert modes(started)["vda"] == SINCE and started["checkpoint"] and started["parent"] == first["id"]
    assert witness.result["offline"] == "start-paused"
    vm.start()
    vm.write("vda", 5 * CLUSTER, CLUSTER, 0x24)
    last = witness.pull()
    assert modes(last)["vda"] == SINCE and last["parent"] == started["id"] and witness.result["offline"] is None
    assert vm.checkpoints() == [last["checkpoint"]]
    witness.assert_restores()
    witness.assert_verified()


def test_what_is_damaged_is_read_again(pulled):
    """Of a disk with bitmaps, and of one that is read in full and stored as what changed."""
    witness = pulled({"vda": 8 * MIB, "vdb": Disk(8 * MIB, "raw")}, quick=True)
    vm = witness.vm
    for disk in vm.disks:
        vm.write_bytes(disk, 0, os.urandom(8 * MIB))
    first = witness.pull("--chunk-size", "2M")
    vm.stop()
    bad = [f"{first['id']}/{disk}.0000.zst" for disk in vm.disks]
    for path in bad:
        next(witness.store.glob(f"*/{path}")).unlink()
    point = read(witness)
    assert modes(point) == {"vda": ("incremental", "healed"), "vdb": ("full", "raw-has-no-bitmaps")}
    healed = [{"disk": disk, "bytes": 2 * MIB, "files": [path], "mended": []} for disk, path in zip(vm.disks, bad)]
    assert witness.result["healed"] == healed
    # the last 2 MiB are read each time, as the images of a domain that is off may be on top of others
    assert [(disk["dirty_bytes"], disk["read_bytes"]) for disk in point["disks"]] == [(0, 4 * MIB), (8 * MIB, 8 * MIB)]
    assert all(2 * MIB <= disk["stored_bytes"] < 2.1 * MIB for disk in point["disks"])
    witness.assert_restores(point["id"])


def test_first_point(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.stop()
    assert modes(read(witness))["vda"] == ("full", "first-point")
    assert modes(read(witness))["vda"] == ("full", "no-checkpoint")
    witness.assert_restores()


def assert_changes_since(witness, checkpoint, then, how):
    """Require that a pull since a checkpoint records all changes of what the disk held then; or, in full, all data."""
    held = witness.content()
    point = point_of_its_own(witness, "--since", checkpoint)
    assert modes(point) == {"vda": how}
    if how == LOST:
        assert_same(witness.restored(), held)
    else:
        assert_same({"vda": witness.change(point["id"], "vda", then["vda"])}, held)
    return point["disks"][0]["dirty_bytes"]


def test_layers(pulled):
    """Snapshots that libvirt makes live continue the bitmaps, each layer with its own part. One made by hand does
    not."""
    witness = pulled({"vda": 2 * MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    vm.create_checkpoint("mine")
    then = witness.content()
    for number in range(3):
        vm.write("vda", 3 * number * CLUSTER, CLUSTER, 0x20 + number)
        vm.write_zeroes("vda", (3 * number + 1) * CLUSTER, CLUSTER, unmap=True)
        vm.snapshot("vda", f"s{number}")
    vm.write("vda", 20 * CLUSTER, 512, 0x31)
    vm.stop()
    assert assert_changes_since(witness, "mine", then, SINCE) == 7 * CLUSTER

    vm.resize("vda", 3 * MIB)  # bitmaps of different sizes cannot be united
    assert_changes_since(witness, "mine", then, LOST)

    vm.resize("vda", 2 * MIB)
    by_hand = vm.disks["vda"].path.with_suffix(".hand")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", vm.disks["vda"].path, "-F", "qcow2", by_hand)
    use_image(vm, "vda", by_hand)
    vm.write_offline("vda", [f"write -q -P 67 {9 * CLUSTER} 64k"])
    assert_changes_since(witness, "mine", then, LOST)


def test_commit(pulled):
    """libvirt merges the bitmaps when it commits a layer, and QEMU records what qemu-img commits."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    base = vm.disks["vda"].path
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.snapshot("vda", "s0")
    vm.write("vda", 2 * CLUSTER, CLUSTER, 0x22)
    vm.stop()
    assert modes(read(witness))["vda"] == ("full", "source-changed")
    run("qemu-img", "commit", "-q", vm.disks["vda"].path)
    use_image(vm, "vda", base)
    point = read(witness)
    assert modes(point)["vda"] == SINCE and point["parent"] == first["id"]
    assert point["disks"][0]["dirty_bytes"] == 2 * CLUSTER
    witness.assert_restores()


@pytest.mark.parametrize("sizes, mode", [((3,), GROWN), ((1,), ("full", "shrunk")), ((1, 2), SINCE)])
def test_resized_while_it_was_off(pulled, sizes, mode):
    """What was cut off and grew again is zero, and its bits are clean."""
    witness = pulled({"vda": 2 * MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    witness.pull()
    vm.stop()
    for size in sizes:
        vm.resize("vda", size * MIB)
    assert modes(read(witness))["vda"] == mode
    witness.assert_restores()


def test_after_a_crash(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm = witness.vm
    witness.pull()
    vm.write("vda", 0, CLUSTER)
    vm.kill()
    assert modes(read(witness)) == {"vda": LOST, "vdb": LOST}
    assert refused(witness, READ, "--on-lost-base=fail")[0] == 4
    witness.assert_restores()


def test_checkpoint_that_libvirt_forgot_is_given_back(pulled):
    """Only its metadata is missing: its bitmaps exist."""
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm = witness.vm
    first = witness.pull()
    vm.write("vda", 0, CLUSTER)
    vm.stop()
    vm.forget_checkpoint(first["checkpoint"])
    result = witness.plan("-o", witness.store)
    assert modes(result)["vda"] == SINCE and vm.checkpoints() == []
    assert modes(read(witness)) == {"vda": SINCE, "vdb": SINCE} and vm.checkpoints() == [first["checkpoint"]]
    vm.forget_checkpoint(first["checkpoint"])
    run("qemu-img", "bitmap", "--remove", vm.disks["vdb"].path, first["checkpoint"])
    assert modes(read(witness)) == {"vda": SINCE, "vdb": LOST}
    witness.assert_restores()


class Life:
    """Random operations on a VM of two disks; each point is compared with what the disks held."""

    def __init__(self, witness, seed):
        self.witness, self.vm, self.chance = witness, witness.vm, random.Random(seed)

    def io(self):
        disk = self.chance.choice(list(self.vm.disks))
        for _ in range(self.chance.randrange(1, 5)):
            size = self.vm.disks[disk].size
            offset = self.chance.randrange(size // 512) * 512
            length = min(self.chance.choice([512, CLUSTER, 3 * CLUSTER]), size - offset)
            if not self.vm.active:
                verb = self.chance.choice(["write -q -P 7", "write -q -z", "write -q -z -u", "discard -q"])
                self.vm.write_offline(disk, [f"{verb} {offset} {length}"])
            elif self.chance.random() < 0.5:
                self.vm.write(disk, offset, length, self.chance.randrange(1, 256))
            else:
                self.vm.write_zeroes(disk, offset, length, unmap=self.chance.random() < 0.5)

    def switch(self):
        self.vm.stop() if self.vm.active else self.vm.start()

    def snapshot(self):
        if self.vm.active and len(self.vm.disks["vda"].below) < 3:
            self.vm.snapshot("vda", f"s{self.chance.randrange(1 << 30)}")

    def commit(self):
        if self.vm.active and self.vm.disks["vda"].below:
            self.vm.commit("vda")

    def resize(self):
        size = self.chance.choice([1, 2, 3]) * MIB
        if self.vm.active and size > self.vm.disks["vda"].size or not self.vm.active:
            self.vm.resize("vda", size)

    def pull(self):
        if self.vm.active:
            self.witness.pull()
        else:
            read(self.witness)

    def kill(self):
        if self.vm.active:
            self.vm.flush()
            self.vm.kill()

    def live(self, steps):
        deeds = [self.io] * 6 + [self.pull] * 5 + [self.switch] * 3 + [self.snapshot, self.commit, self.resize]
        for _ in range(steps):
            self.chance.choice([*deeds, self.kill] if self.chance.random() < 0.2 else deeds)()
        self.witness.assert_restores()
        self.witness.assert_verified()


@pytest.mark.parametrize("seed", [1, 2])
def test_random_lives(pulled, seed):
    witness = pulled({"vda": 2 * MIB, "vdb": Disk(MIB, "raw")}, quick=True)
    Life(witness, seed).live(20)


def test_since_and_full(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB)
    vm.create_checkpoint("mine")
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    held = witness.content()
    vm.stop()
    point = read(witness, "--since", "mine")
    assert modes(point)["vda"] == SINCE and point["disks"][0]["dirty_bytes"] == CLUSTER
    assert witness.change(point["id"], "vda", held["vda"]) == held["vda"]
    assert modes(read(witness, "--full"))["vda"] == ("full", "requested")
    assert refused(witness, READ, "--since", "none")[0] == 4
    assert vm.checkpoints() == ["mine"]


def point_of_its_own(witness, *options):
    """Make a point in a store of its own, which is the witness's from now on."""
    witness.store = witness.folder / f"store{len(witness.frozen)}"
    return read(witness, *options)


# -- which way --------------------------------------------------------------------------------------------------------


def iso(vm, folder):
    """A CD-ROM whose image is deleted."""
    path = folder / "x.iso"
    path.write_bytes(bytes(MIB))
    xml = f"<disk type='file' device='cdrom'><source file='{path}'/><target dev='hda' bus='ide'/></disk>"
    vm.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    path.unlink()


def test_read_where_it_cannot_be_started(pulled, tmp_path):
    """test_domain_start.py tests the reasons."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    first = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.stop()
    iso(vm, tmp_path)
    with pytest.raises(libvirt.libvirtError) as reason:
        vm.start()
    quiet = nbdpull("pull", vm.name, "-o", witness.store, "-c", vm.bed.uri, "--quiet")
    assert quiet.returncode == 0 and not vm.active
    assert "could not be started" in quiet.stderr and str(reason.value) in quiet.stderr
    point = witness.pull()
    assert modes(point)["vda"] == SINCE and point["parent"] == first["id"]
    assert refused(witness, "--offline=refuse")[0] == 3
    witness.assert_restores()


def test_started_where_it_can_be(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    witness.vm.stop()
    point = witness.pull()
    assert point["checkpoint"] and witness.result["offline"] == "start-paused" and witness.result["warnings"] == []
    text = nbdpull("pull", witness.vm.name, "-o", witness.store, "-c", witness.vm.bed.uri).stdout
    assert "was off: it was started" in text
    text = nbdpull("pull", witness.vm.name, "-o", witness.store, "-c", witness.vm.bed.uri, READ).stdout
    assert "is off: its images were read" in text and "checkpoint:" not in text


HOSTDEV = """<hostdev mode='subsystem' type='pci' managed='yes'>
<source><address domain='0x0000' bus='0xff' slot='0x1f' function='0x7'/></source></hostdev>"""


def test_devices_of_the_host_are_not_touched(pulled):
    """If they are missing, a start would fail; if they exist, it would take them away."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.stop()
    vm.domain.attachDeviceFlags(HOSTDEV, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    witness.pull()
    assert witness.result["offline"] == "read"
    (warning,) = witness.result["warnings"]
    assert "devices of the host" in warning and "could not be started" not in warning
    assert doctor(vm.name, "-c", vm.bed.uri)[1][vm.name]["state"] == "warn"


def test_disk_that_only_the_saved_state_has(pulled, tmp_path):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    run("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "live", MIB)
    source = f"<driver name='qemu' type='qcow2'/><source file='{tmp_path}/live'/>"
    xml = f"<disk type='file'>{source}<target dev='sda' bus='scsi'/></disk>"
    vm.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    vm.resume()
    vm.domain.managedSave(0)
    read(witness)
    assert f"sda ({tmp_path}/live)" in witness.result["warnings"][-1]


def test_saved_state_is_kept_and_reported(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    witness.pull()
    vm.resume()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.domain.managedSave(0)
    for option in ("--offline=auto", READ):
        point = witness.pull(option)
        assert modes(point)["vda"] == SINCE and witness.result["offline"] == "read"
        assert (point["consistency"], point["consistency_reason"]) == ("crash-consistent", "saved-state")
        assert any("saved state: its disks belong to the memory" in text for text in witness.result["warnings"])
    assert vm.domain.hasManagedSaveImage(0)
    found = doctor(vm.name, "-c", vm.bed.uri)[1][vm.name]
    assert "saved state" in found["text"] and "virsh start" in found["advice"]
    result = witness.plan("-o", witness.store)
    assert result["offline"] == "read" and any("saved state" in text for text in result["warnings"])
    with reading(witness), pytest.raises(libvirt.libvirtError):
        vm.domain.create()
    assert vm.domain.hasManagedSaveImage(0)
    vm.domain.create()
    assert vm.running and not vm.domain.hasManagedSaveImage(0)
    witness.assert_restores()


# -- nobody writes meanwhile ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(witness, *options, code=0):
    """Hold a pull, inside the block, where it begins to read; after the block, it has ended with this code."""
    gate = witness.folder / "gate"
    process = start_held("reading", gate, *witness.words(READ, "--threads", "1", *options))
    try:
        process.send_signal(signal.SIGSTOP)
        gate.touch()
        yield process
        process.send_signal(signal.SIGCONT)
        process.output, process.problem = process.communicate(timeout=60)
        assert process.returncode == code, process.problem
    finally:
        process.kill()
        process.communicate()


def large(pulled, form="qcow2"):
    """A Witness with so much to read that a pull can be stopped in the middle."""
    witness = pulled({"vda": Disk(24 * MIB, form)}, quick=True)
    witness.vm.write_bytes("vda", 0, os.urandom(24 * MIB))
    witness.vm.stop()
    return witness


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_domain_cannot_be_started_during_the_read(pulled, form):
    witness = large(pulled, form)
    vm, held = witness.vm, witness.content()
    with reading(witness) as process:
        with pytest.raises(libvirt.libvirtError, match="lock"):
            vm.start()
        assert not vm.active
        busy = nbdpull(*witness.words(READ))
        assert busy.returncode == 5 and str(process.pid) in busy.stderr
    witness.made(last_event(process.output), held)
    witness.assert_restores()
    vm.start()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_image_that_runs_elsewhere(pulled, form):
    """On another host, or under a libvirt that lost sight of its QEMU."""
    witness = pulled({"vda": Disk(MIB, form)}, quick=True)
    vm = witness.vm
    vm.stop()
    with used_by_qemu(vm.disks["vda"].path):
        done = nbdpull(*witness.words(READ))
        assert done.returncode == 5 and "runs elsewhere" in done.stderr and str(vm.disks["vda"].path) in done.stderr
        assert not list(witness.store.glob("*/*/*"))
        assert doctor(vm.name, "-c", vm.bed.uri)[1]["disk vda"]["state"] == "BAD"
    read(witness)


def test_base_that_another_vm_uses_is_read(pulled, machine):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    vm.stop()
    base, top, other = (vm.folder / name for name in ("base", "top", "other"))
    vm.disks["vda"].path.rename(base)
    for path in (top, other):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    vm.disks["vda"].path.symlink_to(base)
    use_image(vm, "vda", top)
    running = machine({"vda": Disk(path=other)})
    running.write("vda", 0, CLUSTER, 0x22)
    with read_of(witness):
        running.write("vda", CLUSTER, CLUSTER, 0x22)
    witness.assert_restores()


@contextlib.contextmanager
def read_of(witness):
    held = witness.content()
    yield
    done = nbdpull(*witness.words(READ))
    assert done.returncode == 0, done.stderr
    witness.made(last_event(done.stdout), held)


def overwrite(vm):
    with open(vm.disks["vda"].path, "r+b") as image:
        image.seek(20 * MIB)
        image.write(b"x")


def replace(vm):
    path = vm.disks["vda"].path
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)


def start_with_another_image(vm):
    run("qemu-img", "create", "-q", "-f", "qcow2", vm.folder / "another", "1M")
    use_image(vm, "vda", vm.folder / "another")
    vm.start()


@pytest.mark.parametrize("form, deed, why", [
    ("raw", overwrite, "was changed"),
    ("qcow2", replace, "was changed"),
    ("raw", start_with_another_image, "was started"),
])  # fmt: skip
def test_data_of_an_image_that_changed_is_discarded(pulled, deed, why, form):
    witness = large(pulled, form)
    with reading(witness, code=6) as process:
        deed(witness.vm)
    assert last_event(process.output)["code"] == "job-lost" and why in process.problem
    assert not list(witness.store.glob("*/*/*"))


# -- block devices ----------------------------------------------------------------------------------------------------


def use_device(vm, device):
    """Make this block device vda of a domain that is off."""
    root = ET.fromstring(vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    disk = root.find("devices/disk")
    disk.set("type", "block")
    disk.find("source").attrib.pop("file", None)
    disk.find("source").set("dev", str(device))
    vm.bed.connection().defineXML(ET.tostring(root, encoding="unicode"))
    vm.disks["vda"].path = Path(device)


@pytest.fixture
def on_a_device(request, pulled, tmp_path):
    """The Witness of a machine that is off, with one point, whose vda is on a block device, where the changes since
    then were made."""
    form, file = request.param, tmp_path / "device"
    file.write_bytes(bytes(24 * MIB))
    with loop_device(file) as device:
        if form == "qcow2":
            run("qemu-img", "create", "-q", "-f", form, device, 20 * MIB)
        witness = pulled({"vda": Disk(MIB, form)}, quick=True)
        witness.vm.stop()
        use_device(witness.vm, device)
        witness.vm.start()
        witness.vm.write("vda", 0, 8 * MIB, 0x11)
        witness.pull()
        witness.vm.write_bytes("vda", 4 * MIB, os.urandom(12 * MIB))
        witness.vm.stop()
        try:
            yield witness
        finally:
            if witness.vm.active:
                witness.vm.stop()


def expected(witness):
    return {"vda": SINCE if witness.vm.disks["vda"].format == "qcow2" else ("full", "no-checkpoint")}


@pytest.mark.parametrize("on_a_device", ["qcow2", "raw"], indirect=True)
def test_block_device(on_a_device):
    witness = on_a_device
    held = witness.content()
    with reading(witness) as process, pytest.raises(libvirt.libvirtError, match="lock"):
        witness.vm.start()
    point = witness.made(last_event(process.output), held)
    assert modes(point) == expected(witness) and point["checkpoint"] is None
    witness.assert_restores()


@pytest.mark.parametrize("on_a_device, on", [("raw", True), ("qcow2", False)], indirect=["on_a_device"])
def test_block_device_that_a_vm_reaches_by_a_dev_of_its_own(on_a_device, tmp_path, on):
    """libvirt gives each VM its own by default, with its own nodes and so its own locks: it can be started."""
    witness = on_a_device
    vm, device, node = witness.vm, witness.vm.disks["vda"].path, tmp_path / "vda"
    os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
    with reading(witness, code=6) as process:
        use_device(vm, node)
        vm.start()
        vm.write("vda", 18 * MIB, CLUSTER, 0x77)
        if not on:
            vm.stop()
    assert last_event(process.output)["code"] == "job-lost"
    assert ("was started" if on else f"{device} was changed") in process.problem
    if on:
        vm.stop()
    use_device(vm, device)
    point = witness.pull(READ)
    assert modes(point) == expected(witness) and len(witness.points()) == 2
    witness.assert_restores()


# -- faults -----------------------------------------------------------------------------------------------------------


def server(process):
    """Return the process id of the server of a pull."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "qemu-storage-da"], capture_output=True, text=True).stdout
    return int(found)


def gone(pid):
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.fixture
def short():
    """A directory with a short name: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_pull_that_is_ended_leaves_nothing(pulled, short, number):
    witness = large(pulled)
    vm, gate = witness.vm, witness.folder / "gate"
    process = start_held(
        "copying", gate, *witness.words(READ, "--threads", "1"), env={**environment(), "TMPDIR": short}
    )
    pid = server(process)
    process.send_signal(number)
    gate.touch()
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: gone(pid), "the end of the server")
    vm.start()  # nothing holds the images
    vm.stop()
    if number == signal.SIGKILL:
        done = nbdpull("cleanup", vm.name, "-o", witness.store, "-c", vm.bed.uri, "--json")
        found = last_event(done.stdout)["found"]
        assert done.returncode == 0 and [item["what"].split()[0] for item in found] == ["partial"]
    assert not list(witness.store.glob("*/*/*")) and os.listdir(short) == []
    read(witness)
    witness.assert_restores()


def test_server_that_is_killed(pulled):
    witness = large(pulled)
    with reading(witness, code=6) as process:
        os.kill(server(process), signal.SIGKILL)
    assert last_event(process.output)["code"] == "job-lost" and "by signal 9" in process.problem
    assert not list(witness.store.glob("*/*/*"))
    witness.vm.start()


def test_server_that_hangs(pulled):
    witness = large(pulled)
    with reading(witness, "--stall-timeout", "1", code=6) as process:
        os.kill(server(process), signal.SIGSTOP)
    assert "silent for 1 s" in process.problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_store_that_is_full(pulled, tmp_path):
    witness = large(pulled)
    witness.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", witness.store], check=True)
    try:
        done = nbdpull(*witness.words(READ, "--no-space-check"))
        assert done.returncode == 9 and last_event(done.stdout)["code"] == "output-full"
        assert not list(witness.store.glob("*/*/*"))
    finally:
        subprocess.run(["umount", witness.store], check=True)
    read(witness)


def test_image_that_is_gone_or_broken(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm = witness.vm
    vm.stop()
    path = vm.disks["vdb"].path
    for content, why in ((None, "No such file"), (b"nonsense", "not in qcow2 format")):
        held = path.read_bytes()
        path.unlink()
        if content:
            path.write_bytes(content)
        for option in (READ, "--offline=auto"):
            done = nbdpull(*witness.words(option))
            assert done.returncode == 6 and why in done.stderr and "vdb" in done.stderr
        code, found = doctor(vm.name, "-c", vm.bed.uri)
        assert (code, found["disk vda"]["state"], found["disk vdb"]["state"]) == (6, "good", "BAD")
        done = nbdpull(*witness.words(READ, "--exclude", "vdb", "-o", witness.folder / f"without {why}"))
        assert modes(last_event(done.stdout)["details"]) == {"vda": ("full", "first-point")}
        path.write_bytes(held)


# -- what cannot be read so -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, why",
    [
        ("<disk type='network'><source protocol='nbd' name='x'><host name='localhost' port='9'/></source>",
         "not a file"),
        ("<disk type='file'><source file='/x'><slices><slice type='storage' offset='0' size='512'/></slices></source>",
         "a part of a file"),
        ("<disk type='file'><source file='/x'><encryption format='luks'>"
         "<secret type='passphrase' uuid='6a3e2e0c-5c5a-4b43-9c0a-0f0b1a0b3f0e'/></encryption></source>", "encrypted"),
    ],
)  # fmt: skip
def test_disk_that_can_only_be_read_while_running(pulled, source, why):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.stop()
    xml = source.replace("<source", "<driver name='qemu' type='raw'/><source", 1) + "<target dev='vdb'/></disk>"
    vm.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    code, said = refused(witness, READ)
    assert code == 6 and f"disk vdb of domain '{vm.name}' can only be read while the domain" in said and why in said
    assert doctor(vm.name, "-c", vm.bed.uri)[1]["disk vdb"]["state"] == "warn"
    assert modes(read(witness, "--exclude", "vdb")) == {"vda": ("full", "first-point")}


def test_options_that_need_a_running_domain(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    witness.vm.stop()
    code, said = refused(witness, READ, "--checkpoint", "mine")
    assert code == 6 and "its images are only read" in said
    code, said = refused(witness, READ, "--quiesce=require")
    assert code == 6 and last_event(nbdpull(*witness.words(READ, "--quiesce=require")).stdout)["code"] == "not-quiesced"


def test_without_the_server(pulled, monkeypatch, tmp_path):
    """It is needed if a domain cannot be started, and for nothing else."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.stop()
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "qemu-img").symlink_to(shutil.which("qemu-img"))
    monkeypatch.setenv("PATH", str(programs))
    code, said = refused(witness, READ)
    assert code == 8 and "qemu-storage-daemon is not installed" in said
    assert witness.pull()["checkpoint"]
    iso(vm, tmp_path)
    code, said = refused(witness)
    assert code == 8 and "x.iso" in said and "qemu-storage-daemon is not installed" in said
    found = doctor(vm.name, "-c", vm.bed.uri)[1]
    assert found["qemu-storage-daemon"]["state"] == "warn" and found["disk vda"]["state"] == "good"


# -- plan, doctor -----------------------------------------------------------------------------------------------------


def test_plan_predicts_what_a_pull_reads(pulled):
    witness = pulled({"vda": 4 * MIB, "vdb": Disk(MIB, "raw")}, quick=True)
    vm = witness.vm
    witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.write_zeroes("vda", MIB, 2 * CLUSTER, unmap=True)
    vm.stop()
    before = images(vm)
    result = witness.plan("-o", witness.store)
    assert images(vm) == before and not vm.active and result["offline"] == "read"
    point = read(witness)
    assert modes(result) == modes(point) and result["since"] == point["since"]
    assert [disk["dirty_bytes"] for disk in result["disks"]] == [disk["dirty_bytes"] for disk in point["disks"]]
    assert result["disks"][0]["zero_bytes"] == point["disks"][0]["zero_bytes"] == 2 * CLUSTER
    table = nbdpull("plan", vm.name, "-o", witness.store, "-c", vm.bed.uri)
    assert table.returncode == 0 and "vda   incr " in table.stdout
    vm.start()
    assert witness.plan()["offline"] is None


def test_doctor_checks_the_bitmaps(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm = witness.vm
    name = f"checkpoint {witness.pull()['checkpoint']}"
    vm.stop()
    before = images(vm)
    found = doctor(vm.name, "-c", vm.bed.uri)[1]
    assert images(vm) == before
    assert {found[key]["state"] for key in (vm.name, "disk vda", "disk vdb", name)} == {"good"}
    assert "shut off" in found[vm.name]["text"]
    run("qemu-img", "bitmap", "--remove", vm.disks["vdb"].path, name.split()[1])
    found = doctor(vm.name, "-c", vm.bed.uri)[1]
    assert found[name]["state"] == "warn" and "broken on vdb" in found[name]["text"]
