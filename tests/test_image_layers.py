"""Backing chains read without a guest: what is dirty, what is read, what is refused; compared with qemu-img.

Owns: `Chain`, a disk that QEMU's own programs make of one or more layers, and which knows what the disk held at each
mark.
"""

import hashlib
import json
import os
import random
import subprocess
from pathlib import Path

import numpy
import pytest
from bed.device import run
from bed.images import used_by_qemu

from nbdpull.core import errors, extents
from nbdpull.nbd import source, storage_daemon
from nbdpull.nbd.image_layers import Layers, Place

MIB, CLUSTER = 1 << 20, 1 << 16
PIPES = {"capture_output": True, "text": True}


@pytest.fixture
def daemon():
    with storage_daemon.StorageDaemon() as running:
        yield running


class Chain:
    """The disk `path`, with its layers below."""

    def __init__(self, folder, size, form="qcow2", options=""):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.size = size
        self.layers = []
        self._create(form, options, size)

    @property
    def path(self):
        return self.layers[-1][0]

    @property
    def form(self):
        return self.layers[-1][1]

    @property
    def place(self):
        return Place(str(self.path), self.form)

    def _create(self, form, options, *words):
        path = self.folder / f"layer{len(self.layers)}.{form}"
        path.unlink(missing_ok=True)
        run("qemu-img", "create", "-q", "-f", form, *(["-o", options] if options else []), *words[1:], path, words[0])
        self.layers.append((path, form))

    def mark(self, name, options=()):
        """Let a bitmap start to record."""
        run("qemu-img", "bitmap", "--add", *options, self.path, name)

    def bitmaps(self):
        output = subprocess.run(
            ["qemu-img", "info", "--output=json", self.path], capture_output=True, check=True
        ).stdout
        data = json.loads(output).get("format-specific", {}).get("data", {})
        return {each["name"]: each["flags"] for each in data.get("bitmaps", [])}

    def snapshot(self, options="", with_bitmaps=True):
        """Add a layer, whose bitmap continues that of the one below, as with libvirt; or does not, as with qemu-img."""
        bitmaps, below = self.bitmaps() if with_bitmaps and self.form == "qcow2" else {}, self.layers[-1]
        self._create("qcow2", options, self.size, "-b", below[0], "-F", below[1])
        for name in bitmaps:
            self.mark(name)

    def commit(self):
        """Commit the top layer into the one below, whose bitmaps record that; its own are lost."""
        path, form = self.layers.pop()
        run("qemu-img", "commit", "-q", "-t", "unsafe", "-f", form, path)
        path.unlink()

    def resize(self, size):
        run("qemu-img", "resize", "-q", *["--shrink"] * (size < self.size), "-f", self.form, self.path, size)
        self.size = size

    def io(self, *commands):
        words = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(["qemu-io", "-t", "unsafe", "-d", "unmap", "-f", self.form, *words, self.path], **PIPES)
        assert not done.returncode and not done.stdout, done

    def crash(self):
        """Kill a QEMU that has it open for writing."""
        words = ["qemu-io", "-f", self.form, "-c", "write -q 0 512", "-c", "abort", self.path]
        assert subprocess.run(words, capture_output=True).returncode

    def content(self):
        raw = self.folder / "content.raw"
        run("qemu-img", "convert", "-f", self.form, "-O", "raw", self.path, raw)
        return raw.read_bytes()

    def state(self):
        """Return what must not change when the disk is read: each file's digest, size, modification and change time."""
        return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, path.stat().st_mtime_ns,
                       path.stat().st_ctime_ns) for path, _ in self.layers}  # fmt: skip


def change(daemon, layers, bitmap, disk="vda"):
    """Return [(offset, length, bytes)] that a pull since a bitmap would store; all of the disk without one."""
    name = layers.export(bitmap, "nbdpull-test")
    with source.Source(daemon.socket, disk, name, held=lambda _start, _stop: extents.of([])) as reader:
        assert reader.size == layers.size
        found = numpy.concatenate([numpy.empty(0, extents.EXTENT), *reader.extents()])
        return [(offset, length, reader.read(offset, length) if kind == extents.DATA else bytes(length))
                for offset, length, kind in found.tolist()]  # fmt: skip


def laid_over(content, changes):
    content = bytearray(content)
    for offset, length, data in changes:
        content[offset : offset + length] = data
    return bytes(content)


def some_io(chance, size):
    """Return commands that write, zero and discard at random places, few bytes or many."""
    commands = []
    for _ in range(chance.randrange(1, 6)):
        offset = chance.randrange(size // 512) * 512
        length = min(chance.choice([512, 4096, CLUSTER, 5 * CLUSTER, MIB]), size - offset)
        verb = chance.choice(["write -q -P {}", "write -q -P {}", "write -q -z", "write -q -z -u", "discard -q"])
        commands.append(f"{verb.format(chance.randrange(1, 256))} {offset} {length}")
    return commands


OPTIONS = ["", "cluster_size=4096", "cluster_size=2M", "extended_l2=on", "lazy_refcounts=on"]


@pytest.mark.parametrize("seed", range(20))
def test_random_chains(tmp_path, seed):
    """What the union of the bitmaps leaves out is unchanged since the mark, and the rest is read as QEMU shows it to a
    guest."""
    chance = random.Random(seed)
    chain = Chain(tmp_path, chance.choice([3 * MIB, 5 * MIB + 512]), options=chance.choice(OPTIONS))
    chain.io(*some_io(chance, chain.size))
    held = {}
    for step in range(12):
        deed = chance.choice(["mark", "snapshot", "commit", "io", "io", "io"])
        if deed == "mark" and len(held) < 3:
            held[f"mark{step}"] = chain.content()
            chain.mark(f"mark{step}", chance.choice([(), ("-g", "4096"), ("-g", "131072")]))
        elif deed == "snapshot" and len(chain.layers) < 4:
            chain.snapshot(chance.choice(OPTIONS))
        elif deed == "commit" and len(chain.layers) > 1:
            chain.commit()
            held = {name: content for name, content in held.items() if name in chain.bitmaps()}
        else:
            chain.io(*some_io(chance, chain.size))
    now, state = chain.content(), chain.state()
    for name, then in [*held.items(), (None, bytes(chain.size))]:
        with storage_daemon.StorageDaemon() as daemon:
            layers = Layers(daemon, "vda", [chain.place])
            assert name is None or layers.records_since(name)
            changes = change(daemon, layers, name)
            assert laid_over(then, changes) == now, name
            assert not layers.changed()
            layers.close()
            if name is None:
                assert sum(length for _, length, _ in changes) == chain.size
    assert chain.state() == state


def layers_of(daemon, chain, *places, **options):
    return Layers(daemon, "vda", list(places) or [chain.place], **options)


def refusal(chain, kind, *places):
    with pytest.raises(kind) as raised, storage_daemon.StorageDaemon() as daemon:
        layers_of(daemon, chain, *places)
    assert type(raised.value) is kind
    return str(raised.value)


# -- which bitmaps tell all -------------------------------------------------------------------------------------------


def test_bitmap_of_every_layer_is_united(daemon, tmp_path):
    """qemu-nbd -B shows only the first one."""
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    for number in range(4):
        chain.io(f"write -q -P {number + 1} {3 * number * CLUSTER} 64k")
        if number < 3:
            chain.snapshot()
    changes = change(daemon, layers_of(daemon, chain), "mark")
    assert [(offset, length, set(data)) for offset, length, data in changes] == [
        (3 * number * CLUSTER, CLUSTER, {number + 1}) for number in range(4)
    ]


def test_top_without_the_bitmap(daemon, tmp_path):
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    chain.snapshot(with_bitmaps=False)
    layers = layers_of(daemon, chain)
    assert not layers.records_since("mark")
    with pytest.raises(errors.CheckpointUnusable):
        layers.export("mark", "union")


def test_gap_in_the_chain(daemon, tmp_path):
    """The bitmap above the gap is another one of that name."""
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    chain.snapshot(with_bitmaps=False)
    chain.snapshot()
    chain.mark("mark")
    assert not layers_of(daemon, chain).records_since("mark")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_bitmap_that_does_not_record(daemon, tmp_path, layer):
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    chain.mark("other")
    chain.snapshot()
    chain.snapshot()
    run("qemu-img", "bitmap", "--disable", chain.layers[layer][0], "mark")
    layers = layers_of(daemon, chain)
    assert not layers.records_since("mark") and layers.records_since("other")


@pytest.mark.parametrize("layer", [0, 1])
def test_image_that_a_crash_left(daemon, tmp_path, layer):
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    if layer == 1:
        chain.snapshot()
    chain.crash()
    if layer == 0:
        chain.snapshot()
    assert not layers_of(daemon, chain).records_since("mark")


@pytest.mark.parametrize("size", [2 * MIB, MIB // 2])
def test_layers_of_different_sizes(daemon, tmp_path, size):
    """Bitmaps of different sizes cannot be merged; the disk itself is read nevertheless."""
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    chain.io("write -q -P 1 0 1M")
    chain.snapshot()
    chain.resize(size)
    layers = layers_of(daemon, chain)
    assert not layers.records_since("mark")
    assert layers.size == size and laid_over(bytes(size), change(daemon, layers, None)) == chain.content()


def test_program_that_knows_no_bitmaps_wrote_to_the_image(daemon, tmp_path):
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    with open(chain.path, "r+b") as image:  # as it has to: it clears the autoclear bits
        image.seek(88)
        image.write(bytes(8))
    assert not layers_of(daemon, chain).records_since("mark")


def test_what_can_hold_bitmaps(daemon, tmp_path):
    reported = {}
    for form, options in [("qcow2", ""), ("qcow2", "compat=0.10"), ("raw", "")]:
        chain = Chain(tmp_path / f"{form}{options}", MIB, form, options)
        reported[form, options] = Layers(daemon, f"vd{len(reported)}", [chain.place]).can_hold_bitmaps
    assert reported == {("qcow2", ""): True, ("qcow2", "compat=0.10"): False, ("raw", ""): False}


def test_raw_disk(daemon, tmp_path):
    """Its last sector may be short: QEMU pads it, for a guest too."""
    chain = Chain(tmp_path, MIB, "raw")
    data = os.urandom(300_000)
    chain.path.write_bytes(data)
    layers = layers_of(daemon, chain)
    assert layers.size == 300_032
    assert laid_over(bytes(layers.size), change(daemon, layers, None)) == data + bytes(32)


# -- which images make a disk -----------------------------------------------------------------------------------------


def test_raw_base_is_never_taken_for_what_its_guest_wrote(daemon, tmp_path):
    chain = Chain(tmp_path, MIB, "raw")
    secret = Chain(tmp_path / "secret", MIB)
    secret.io("write -q -P 7 0 1M")
    header = Chain(tmp_path / "header", MIB)
    run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", secret.path, header.path)
    with open(chain.path, "r+b") as image:
        image.write(header.path.read_bytes())
    held = chain.path.read_bytes()
    assert laid_over(bytes(MIB), change(daemon, layers_of(daemon, chain), None)) == held[:MIB]
    chain.snapshot()
    layers = Layers(daemon, "vdb", [chain.place])
    assert laid_over(bytes(MIB), change(daemon, layers, None, "vdb")) == held[:MIB]


def test_format_of_a_base_is_not_guessed(tmp_path):
    chain = Chain(tmp_path, MIB)
    chain.snapshot()
    image = bytearray(chain.path.read_bytes())
    at = image.index(bytes.fromhex("e2792aca00000005"))  # the extension that names the format: now an unknown one
    image[at] = 0xE3
    chain.path.write_bytes(image)
    said = refusal(chain, errors.Unsupported)
    assert "does not name the format" in said and "qemu-img rebase -u -F" in said


def test_definition_counts_more_than_the_image(daemon, tmp_path):
    """libvirt passes QEMU the format in the definition, whatever the image itself says."""
    chain, other = Chain(tmp_path, MIB), Chain(tmp_path / "other", MIB)
    chain.io("write -q -P 1 0 64k")
    other.io("write -q -P 2 0 64k")
    chain.snapshot()
    assert layers_of(daemon, chain).size == MIB
    named = Layers(daemon, "vdb", [chain.place, other.place])
    alone = Layers(daemon, "vdc", [chain.place], is_all=True)
    assert {bytes(data[:1]) for *_, data in change(daemon, named, None, "vdb")} == {b"\2", b"\0"}
    assert {bytes(data[:1]) for *_, data in change(daemon, alone, None, "vdc")} == {b"\0"}


def test_refused(daemon, tmp_path):
    chain = Chain(tmp_path, MIB)
    assert "No such file" in refusal(chain, errors.HypervisorError, Place(str(tmp_path / "none"), "qcow2"))
    assert "not in qcow2 format" in refusal(chain, errors.HypervisorError, Place("/etc/passwd", "qcow2"))
    assert "of format vmdk" in refusal(chain, errors.Unsupported, Place(str(chain.path), "vmdk"))
    assert "vda" in refusal(chain, errors.HypervisorError, Place(str(tmp_path), "raw"))
    assert layers_of(daemon, chain).size == MIB


def test_refused_below(tmp_path):
    chain = Chain(tmp_path, MIB)
    chain.snapshot()
    run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", chain.path, chain.path)
    assert "is its own backing file" in refusal(chain, errors.HypervisorError)
    run("qemu-img", "rebase", "-u", "-F", "vmdk", "-b", chain.layers[0][0], chain.path)
    assert "of format vmdk" in refusal(chain, errors.Unsupported)
    run("qemu-img", "rebase", "-u", "-F", "raw", "-b", "nbd://localhost:1/x", chain.path)
    assert "is nbd://localhost:1/x, which is not a file" in refusal(chain, errors.Unsupported)
    run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "gone.qcow2", chain.path)
    assert "gone.qcow2: No such file" in refusal(chain, errors.HypervisorError)


def test_image_that_shows_other_data_than_its_own(tmp_path):
    chain = Chain(tmp_path, MIB, options=f"data_file={tmp_path}/data")
    assert "another file" in refusal(chain, errors.Unsupported)


def test_image_marked_as_corrupt(tmp_path):
    """QEMU does not start with such a disk."""
    chain = Chain(tmp_path, MIB)
    with open(chain.path, "r+b") as image:
        image.seek(79)
        image.write(b"\x02")
    assert "marked as corrupt" in refusal(chain, errors.Unsupported)


def test_bitmap_that_is_damaged(tmp_path):
    """QEMU opens no image with a damaged bitmap."""
    chain = Chain(tmp_path, MIB)
    chain.mark("mark")
    image = bytearray(chain.path.read_bytes())
    extension = image.index(bytes.fromhex("23852875"))  # of the bitmaps: their count, size and place of the directory
    directory = int.from_bytes(image[extension + 24 : extension + 32], "big")
    image[directory : directory + 8] = b"\xff" * 8
    chain.path.write_bytes(image)
    assert "as qcow2: " in refusal(chain, errors.HypervisorError)


def test_encrypted_image(tmp_path):
    chain = Chain(tmp_path, MIB)
    with open(chain.path, "r+b") as image:
        image.seek(35)
        image.write(b"\x01")  # AES: one of LUKS takes a second to make
    assert "encrypt.key-secret" in refusal(chain, errors.HypervisorError)


# -- who else is there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_nobody_can_write_to_a_layer(daemon, tmp_path, form):
    chain = Chain(tmp_path, MIB, form)
    chain.snapshot()
    layers = layers_of(daemon, chain)
    for path, kind in chain.layers:
        done = subprocess.run(["qemu-io", "-f", kind, "-c", "write -q 0 512", path], **PIPES)
        assert done.returncode and 'Failed to get "write" lock' in done.stderr
        run("qemu-io", "-r", "-f", kind, "-c", "read -q 0 512", path)
    assert not layers.changed()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("layer", [0, 1])
def test_image_in_use(tmp_path, form, layer):
    chain = Chain(tmp_path, MIB, form)
    chain.snapshot()
    path, _form = chain.layers[layer]
    with used_by_qemu(path):
        said = refusal(chain, errors.Busy)
    assert "runs elsewhere" in said and str(path) in said


def overwritten(path):
    with open(path, "r+b") as file:
        file.write(b"x")


def replaced(path):
    path.rename(path.with_suffix(".old"))
    path.write_bytes(path.with_suffix(".old").read_bytes())


DEEDS = {
    "overwritten": overwritten,
    "replaced": replaced,
    "shortened": lambda path: os.truncate(path, 100),
    "removed": os.unlink,
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_image_that_changed_meanwhile(daemon, tmp_path, deed, layer):
    chain = Chain(tmp_path, MIB)
    chain.snapshot()
    layers = layers_of(daemon, chain)
    DEEDS[deed](chain.layers[layer][0])
    assert layers.changed() == str(chain.layers[layer][0])


def test_what_libvirt_does_before_a_start_that_fails_is_no_change(daemon, tmp_path):
    chain = Chain(tmp_path, MIB)
    layers = layers_of(daemon, chain)
    os.chmod(chain.path, 0o600)
    os.utime(chain.path, ns=(1, chain.path.stat().st_mtime_ns))
    assert not layers.changed()


# -- block devices ----------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path):
    """A block device of 8 MiB."""
    if os.geteuid():
        pytest.skip("needs root")
    image = tmp_path / "device"
    image.write_bytes(bytes(8 * MIB))
    loop = run("losetup", "--find", "--show", image).strip()
    yield Path(loop)
    run("losetup", "--detach", loop)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_block_device(daemon, tmp_path, device, form):
    if form == "qcow2":
        run("qemu-img", "create", "-q", "-f", "qcow2", device, 4 * MIB)
        run("qemu-img", "bitmap", "--add", device, "mark")
    run("qemu-io", "-f", form, "-c", "write -q -P 3 1M 64k", device)
    layers = Layers(daemon, "vda", [Place(str(device), form)])
    assert layers.size == (8 if form == "raw" else 4) * MIB and layers.can_hold_bitmaps == (form == "qcow2")
    since = change(daemon, layers, "mark") if form == "qcow2" else change(daemon, layers, None)
    assert laid_over(bytes(layers.size), since)[MIB : MIB + CLUSTER] == b"\3" * CLUSTER
    assert not layers.changed()
    assert subprocess.run(["qemu-io", "-f", form, "-c", "write -q 0 512", device], **PIPES).returncode


def test_write_to_a_block_device_is_seen(daemon, device):
    """By default, a VM has a /dev of its own: QEMU's locks there are not visible here."""
    overwritten(device)
    layers = Layers(daemon, "vda", [Place(str(device), "raw")])
    change(daemon, layers, None)
    assert not layers.changed()
    with open(device, "r+b", buffering=0) as other:
        other.write(b"y" * 512)
        os.fsync(other.fileno())
    assert layers.changed() == str(device)
