"""Pull and restore end to end: the real command line, a real libvirt and QEMU, every point compared with its source.

Owns: `Witness`, which pulls a VM into a store and remembers what each point must restore to, and `Before`, which tells
whether a failed run left anything; the other end-to-end tests use both. Must not know: the package's inside. What a
disk held is told by the bed alone.
"""

import contextlib
import grp
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import zstandard
from bed.machine import MIB, Disk, Machine
from stores import verify_store

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.operations import restore

libvirt = pytest.importorskip("libvirt")

PROJECT = Path(__file__).resolve().parent.parent
HELD = Path(__file__).with_name("faults") / "held.py"
KIB = 1 << 10
CLUSTER = 64 * KIB

# -- the command line, and witnesses of what it does ------------------------------------------------------------------


def environment():
    return {**os.environ, "PYTHONPATH": str(PROJECT)}


def nbdpull(*words, timeout=60, **options):
    """Run one command line; what subprocess.run returns, with texts."""
    command = [sys.executable, "-m", "nbdpull", *map(str, words)]
    options = {"env": environment(), "capture_output": True, "text": True, **options}
    return subprocess.run(command, timeout=timeout, **options)


def said(*words):
    """Run one command line in this process, which saves Python's start; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert cli.main(list(map(str, words))) == 0, "the reason is in the captured stderr"
    return output.getvalue()


def start_nbdpull(*words, program=("-m", "nbdpull"), **options):
    """Start a command line; the Popen, its output in pipes. Its JSON events are read with `next_event`."""
    command = [sys.executable, *map(str, [*program, *words])]
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(command, **options)


def start_held(phase, gate, *words, **options):
    """The same of a command line that stands where it has reached a phase of faults/held.py, until `gate` exists."""
    gate.unlink(missing_ok=True)
    process = start_nbdpull(*words, program=(HELD, phase, gate), **options)
    next_event(process, "held")
    return process


@contextlib.contextmanager
def stopped_in_the_middle(witness, *options, before_start=None):
    """Give a pull that stands still (SIGSTOP) with its job active: its first reads are done, its last ones are not.

    So it needs something to read: it reads some 10 MiB ahead of what it has written. It goes on when the block is left,
    and has ended then.
    """
    gate = witness.folder / "gate"
    process = start_held("copying", gate, *witness.words("--threads", "1", *options), preexec_fn=before_start)
    try:
        process.send_signal(signal.SIGSTOP)
        gate.touch()
        assert witness.vm.job_active()
        yield process
        process.send_signal(signal.SIGCONT)
        process.output, process.problem = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()


def next_event(process, wanted):
    """Read a started command's events up to the first one of that name; return it."""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == wanted:
            return event
    raise AssertionError(f"no event {wanted}: {process.stderr.read()}")


def last_event(text):
    return json.loads(text.splitlines()[-1])


class Witness:
    """Pulls a VM into a store by the command line, and knows what every disk held when each point was made.

    frozen[point id][disk] are bytes; at[checkpoint] is the same for each checkpoint that a pull made; result is the
    last pull's result object. quick: for many pulls, of which Python's start would take half of the time; the command
    line then runs in this process.
    """

    def __init__(self, vm, folder, quick=False):
        self.vm = vm
        self.quick = quick
        self.folder = Path(folder)
        self.store = self.folder / "store"
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.frozen = {}
        self.at = {}
        self.result = {}

    def words(self, *options):
        """The command line of a pull. Scratch in a folder of its own: what is left there was left by the run."""
        words = ["pull", "-o", self.store, "--json", "-c", self.vm.bed.uri, *options]
        words += [] if "--scratch-dir" in options else ["--scratch-dir", self.scratch]
        return [*words, "--", self.vm.name]

    def content(self):
        return {disk: self.vm.content(disk) for disk in self.vm.disks}

    def pull(self, *options):
        """Make a point; return it as the result tells it."""
        held = self.content()
        if self.quick:
            output = said(*self.words(*options))
        else:
            done = nbdpull(*self.words(*options))
            assert done.returncode == 0, done.stderr
            output = done.stdout
        return self.made(last_event(output), held)

    def made(self, result, held):
        """Take note of a point that was made when the disks held this."""
        assert (result["event"], result["ok"], result["exit_code"]) == ("result", True, 0)
        self.result, point = result, result["details"]
        self.frozen[point["id"]] = {disk["name"]: held[disk["name"]] for disk in point["disks"]}
        if point["checkpoint"]:
            self.at[point["checkpoint"]] = held
        assert not self.vm.job_active() and os.listdir(self.scratch) == []
        return point

    def restored(self, point="latest", *options):
        """What the disks of a point are restored to, as bytes."""
        out = self.folder / "restored"
        try:
            said("restore", self.store, "-o", out, "--point", point, "--format", "raw", "--quiet", *options)
            return {image.stem: image.read_bytes() for image in out.glob("*.raw")}
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def assert_restores(self, *points):
        """Each point (without names: every one) restores to exactly what its disks held."""
        for point in points or self.frozen:
            assert_same(self.restored(point), self.frozen[point], point)

    def change(self, point, disk, base):
        """The bytes `base` with the change that a point holds of a disk: read by its index alone, not by restore."""
        content = bytearray(base)
        for record in map(json.loads, said("index", self.store, point, disk).splitlines()):
            stop = record["offset"] + record["length"]
            content.extend(bytes(max(0, stop - len(content))))
            content[record["offset"] : stop] = self._range(record)
        return bytes(content)

    def _range(self, record):
        if record["kind"] == "zero":
            return bytes(record["length"])
        chunk = next(self.store.glob(f"*/{record['path']}")).read_bytes()
        frame = chunk[record["position"] : record["position"] + record["stored"]]
        raw = zstandard.ZstdDecompressor().decompress(frame)
        assert len(raw) == record["raw"]
        return raw[record["skip"] : record["skip"] + record["length"]]

    def points(self):
        """What `list` tells."""
        return json.loads(said("list", self.store, "--json"))

    def assert_verified(self):
        said("verify", self.store)


def assert_same(got, expected, what=""):
    """Compare {disk: bytes}, and tell where they differ: pytest would print all of both."""
    assert set(got) == set(expected), what
    for disk, content in expected.items():
        assert len(got[disk]) == len(content), f"{what} {disk}: {len(got[disk])} bytes for {len(content)}"
        if got[disk] != content:
            wrong = [i for i in range(0, len(content), 512) if got[disk][i : i + 512] != content[i : i + 512]]
            pytest.fail(f"{what} {disk}: {len(wrong)} sectors differ, the first ones at {wrong[:5]}")


class Before:
    """What a domain and a store were before a run that must leave no trace."""

    def __init__(self, witness):
        self._witness, self._vm = witness, witness.vm
        self._state = self._now()

    def _now(self):
        vm = self._vm
        blocks = [block.get("inserted", {}) for block in vm.qmp("query-block")] if vm.active else []
        bitmaps = [sorted(b["name"] for b in block.get("dirty-bitmaps", []) if "name" in b) for block in blocks]
        return {"checkpoints": vm.checkpoints(), "bitmaps": bitmaps, "active": vm.active, "running": vm.running,
                "points": points_of(self._witness.store), "sockets": sockets(vm)}  # fmt: skip

    def assert_same(self):
        """No job, checkpoints and bitmaps as they were, no scratch, no socket, no point and no part of one."""
        assert not self._vm.active or not self._vm.job_active()
        with pytest.raises(libvirt.libvirtError, match="no domain backup job"):
            self._vm.domain.backupGetXMLDesc()
        assert os.listdir(self._witness.scratch) == []
        assert self._now() == self._state


def points_of(store):
    """Every file and folder below the domains' folders of a store."""
    if not os.path.isdir(store):
        return []
    found = {*Path(store).glob("*/*"), *Path(store).glob("*/*/**/*")}
    return sorted(str(path.relative_to(store)) for path in found)


def sockets(vm):
    """NBD sockets of nbdpull where QEMU makes them for this VM, by default or by what the tests name."""
    own = Path("/var/lib/libvirt/qemu").glob(f"domain-*-{vm.name[:20]}/nbdpull-*") if vm.bed.root else []
    return sorted(map(str, [*own, *vm.bed.folder.glob("*.sock")]))


def modes(point):
    return {disk["name"]: (disk["mode"], disk["reason"]) for disk in point["disks"]}


def dirty(point):
    return {disk["name"]: disk["dirty_bytes"] for disk in point["disks"]}


FULL_FIRST = ("full", "first-point")
SINCE = ("incremental", "checkpoint")
GROWN = ("incremental", "grown")


@pytest.fixture
def pulled(machine, tmp_path):
    """Factory: `witness = pulled({"vda": MIB})` starts a machine and gives the Witness of its pulls."""

    def make(disks, quick=False, **options):
        return Witness(machine(disks, **options), tmp_path / "witness", quick)

    return make


# -- a series ---------------------------------------------------------------------------------------------------------


def test_each_point_of_a_series_restores_to_its_source(pulled):
    """Full, write, zeroes, discard: what was data in the parent and is zero now must not come back."""
    witness = pulled({"vda": 16 * MIB, "vdb": Disk(8 * MIB + 512, "raw")})
    vm = witness.vm
    vm.write("vda", 0, 9 * MIB, 0x11)
    vm.write("vdb", MIB, 3 * MIB, 0x12)
    first = witness.pull()
    assert modes(first) == {"vda": FULL_FIRST, "vdb": FULL_FIRST}
    assert (first["parent"], first["since"], first["domain"], first["uuid"]) == (None, None, vm.name, vm.uuid)

    vm.write("vda", 5 * MIB + 100, 3 * CLUSTER, 0x21)
    vm.write("vda", 12 * MIB, 512, 0x22)
    vm.write("vdb", 8 * MIB, 512, 0x23)
    vm.write("vdb", 2 * MIB, MIB, 0x24)
    second = witness.pull()
    assert modes(second) == {"vda": SINCE, "vdb": ("full", "raw-has-no-bitmaps")}
    assert (second["parent"], second["since"]) == (first["id"], first["checkpoint"])
    assert dirty(second)["vda"] == 5 * CLUSTER

    vm.write_zeroes("vda", MIB, MIB)
    vm.write_zeroes("vda", 3 * MIB, MIB, unmap=True)
    vm.write_zeroes("vda", 7 * MIB + 300, 400)
    vm.discard("vda", 4 * MIB, 4 * CLUSTER)
    vm.discard("vda", 6 * MIB + 512, 512)
    vm.discard("vdb", MIB, MIB)
    third = witness.pull()
    assert third["disks"][0]["zero_bytes"] >= 2 * MIB + 4 * CLUSTER

    vm.write("vda", 3 * MIB + 512, 512, 0x41)  # a bit of data into what is now zero over data
    vm.write("vda", 4 * MIB + CLUSTER, 100, 0x42)
    witness.pull()
    fifth = witness.pull()  # and nothing at all
    assert dirty(fifth)["vda"] == 0

    witness.assert_restores()
    witness.assert_verified()
    assert [point["id"] for point in witness.points()] == list(witness.frozen)
    assert vm.checkpoints() == [fifth["checkpoint"]]


@pytest.mark.timeout_seconds(180)
def test_chain_of_ten_incrementals(pulled):
    witness = pulled({"vda": 8 * MIB, "vdb": Disk(4 * MIB, options="cluster_size=4096")}, quick=True)
    vm = witness.vm
    vm.write_bytes("vda", 0, os.urandom(4 * MIB))
    previous = witness.pull()
    for n in range(1, 11):
        vm.write("vda", n * 7 * CLUSTER, 2 * CLUSTER + n, n)
        vm.write_zeroes("vda", n * 5 * CLUSTER, CLUSTER, unmap=bool(n % 2))
        vm.discard("vdb", (n - 1) * 300 * KIB, 100 * KIB)
        vm.write_bytes("vdb", n * 300 * KIB, os.urandom(5000))
        point = witness.pull()
        assert modes(point) == {"vda": SINCE, "vdb": SINCE}
        assert point["parent"] == previous["id"]
        assert vm.checkpoints() == [point["checkpoint"]]
        previous = point
    witness.assert_restores()
    witness.assert_verified()


def test_writes_that_go_on_during_the_pull(pulled):
    """The point is of the moment of the begin, and what came later is in the next one."""
    witness = pulled({"vda": 32 * MIB, "vdb": Disk(4 * MIB, "raw")})
    vm = witness.vm
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    vm.write_bytes("vdb", 0, os.urandom(4 * MIB))
    held = witness.content()
    with stopped_in_the_middle(witness) as process:
        vm.write("vda", 0, 32 * MIB, 0x77)
        vm.discard("vda", 20 * MIB, MIB)
        vm.write_zeroes("vdb", MIB, 3 * MIB)
    assert process.returncode == 0, process.problem
    witness.made(last_event(process.output), held)
    second = witness.pull()
    assert dirty(second)["vda"] == 32 * MIB
    witness.assert_restores()


def test_restore_to_qcow2(pulled):
    witness = pulled({"vda": 4 * MIB, "vdb": 3 * MIB + 512, "vdc": 0})
    vm = witness.vm
    vm.write("vda", MIB, MIB, 0x11)
    witness.pull()
    vm.write_zeroes("vda", MIB + CLUSTER, CLUSTER)  # vdb stays all zero
    point = witness.pull()
    out = witness.folder / "out"
    done = nbdpull("restore", witness.store, "-o", out)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(out)) == ["domain.xml", "vda.qcow2", "vdb.qcow2", "vdc.qcow2"]
    for disk, content in witness.frozen[point["id"]].items():
        expected = witness.folder / "expected.raw"
        expected.write_bytes(content)
        image = str(out / f"{disk}.qcow2")
        compare = ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, str(expected)]
        assert subprocess.run(compare).returncode == 0, disk
        info = subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True, check=True)
        assert json.loads(info.stdout)["virtual-size"] == len(content)
    check = subprocess.run(["qemu-img", "check", str(out / "vda.qcow2")], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    assert vm.uuid in (out / "domain.xml").read_text()


def test_defaults_leave_nothing_behind(pulled):
    """No scratch folder, no socket, no JSON: the command line as most will type it."""
    witness = pulled({"vda": MIB})
    done = nbdpull(witness.vm.name, "-o", witness.store)
    assert done.returncode == 0, done.stderr
    point = witness.points()[0]
    assert point["id"] in done.stdout and f"--since {point['checkpoint']}" in done.stdout
    assert done.stderr == ""  # no bars in a pipe
    assert list(Path("/var/tmp").glob(f"*{point['id']}*")) == [] and sockets(witness.vm) == []


@pytest.mark.parametrize("group", [None, "of this test"])
def test_a_store_that_everybody_could_read(pulled, tmp_path, group):
    """Whatever the umask: the points, and what verify, digest and a rebuilt index add."""
    witness = pulled({"vda": MIB})
    known = [each.gr_name for each in grp.getgrall() if os.geteuid() == 0 or each.gr_gid in os.getgroups()]
    options = ["--group", known[-1]] if group else []
    before = os.umask(0)
    try:
        witness.pull(*options)
        point = witness.pull()
        said("verify", witness.store)
        said("digest", witness.store)
        next(witness.store.glob(f"*/{point['id']}/vda.index")).unlink()
        said("index", "--rebuild", witness.store, "latest", "vda")
    finally:
        os.umask(before)
    expected = {(0o750, 0o640)} if group else {(0o700, 0o600)}
    made = [witness.store, *witness.store.rglob("*")]
    found = {path.is_dir(): path.stat().st_mode & 0o777 for path in made}
    assert {(found[True], found[False])} == expected
    assert all(path.stat().st_mode & 0o777 == found[path.is_dir()] for path in made)
    assert len({path.stat().st_gid for path in made}) == 1 and (not group or made[0].group() == known[-1])
    assert witness.result["warnings"] == []


def test_a_store_that_is_open_to_everybody_is_told(pulled):
    """By pull and by verify, and to those who see nothing but errors; it is left as it is."""
    witness = pulled({"vda": MIB})
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        witness.store = Path(folder) / "store"
        witness.pull()
        subprocess.run(["chmod", "-R", "a+rX", witness.store], check=True)
        mend = f"chmod -R go-rwx {witness.store}"
        witness.pull()
        assert mend in witness.result["warnings"][0]
        for words in (["verify", witness.store, "--quiet"], witness.words("--quiet")):
            done = nbdpull(*[word for word in words if word != "--json"])
            assert done.returncode == 0 and mend in done.stderr, words
        assert witness.store.stat().st_mode & 0o777 == 0o755


def test_small_frames_and_many_chunk_files(pulled):
    witness = pulled({"vda": 6 * MIB})
    witness.vm.write_bytes("vda", 12345, os.urandom(5 * MIB))
    witness.pull("--frame-size", "64K", "--chunk-size", "1M", "--level", "3")
    witness.vm.write("vda", MIB - 10, 20, 0x22)
    second = witness.pull("--frame-size", "128K")
    assert len(list(witness.store.glob("*/*/vda.*.zst"))) >= 6
    assert second["disks"][0]["read_bytes"] == 2 * CLUSTER
    witness.assert_restores()


# -- shapes of disks --------------------------------------------------------------------------------------------------


def test_odd_sizes(pulled, tmp_path):
    """No multiple of 64 KiB; and of 512 bytes where an image can have such a size: QEMU pads it with zeros."""
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
    """Cluster sizes from end to end, subclusters, version 2, an external data file, compressed clusters; and overlays
    over a base that is longer or shorter."""
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
    """Made of a raw image that was there, by the commands of the manual; the definition names both files."""
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
    """The manual's block of commands that has this word."""
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
    """A copy under another name carries the very bitmap that is asked for."""
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
    """Made anew at the same path, without the bitmap: that disk alone is pulled in full."""
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
    """The bitmap goes back with the data: the point before the copy is a good base, the one after it is none."""
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
    """QEMU writes zeroes there up to the end of the cluster, and sets no bit; one is of 64 KiB."""
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


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_foreign_checkpoints_before_between_and_after_stay(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm = witness.vm
    ours = []
    for n in range(3):
        vm.create_checkpoint(f"foreign{n}", disks=[["vda"], ["vdb"], ["vda", "vdb"]][n])
        vm.write("vda", n * CLUSTER, CLUSTER, n + 1)
        vm.write("vdb", (n + 5) * CLUSTER, 100, n + 1)
        ours.append(witness.pull())
    vm.create_checkpoint("foreign3")
    witness.pull()
    latest = witness.result["details"]["checkpoint"]
    assert sorted(vm.checkpoints()) == ["foreign0", "foreign1", "foreign2", "foreign3", latest]
    assert set(vm.bitmaps("vda")) == {"foreign0", "foreign2", "foreign3", latest}
    assert [point["parent"] for point in ours] == [None, ours[0]["id"], ours[1]["id"]]
    assert [dirty(point)["vda"] for point in ours] == [MIB, CLUSTER, CLUSTER]
    # theirs still record all since their own time
    assert vm.bitmaps("vda")["foreign0"]["count"] == 3 * CLUSTER
    assert vm.bitmaps("vdb")["foreign1"]["count"] == 2 * CLUSTER
    witness.assert_restores()


def test_since_a_checkpoint_of_virsh_into_an_empty_folder(pulled):
    witness = pulled({"vda": 2 * MIB, "vdb": Disk(MIB, "raw")})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    vm.bed.virsh("checkpoint-create-as", vm.name, "chk3", "--diskspec", "vda", "--diskspec", "vdb,checkpoint=no")
    then = vm.content("vda")
    vm.write("vda", CLUSTER, 2 * CLUSTER, 0x21)
    vm.write_zeroes("vda", 7 * CLUSTER, CLUSTER)
    vm.discard("vda", 9 * CLUSTER, CLUSTER)

    held = witness.content()
    done = nbdpull(vm.name, "--since", "chk3", "-o", witness.store)
    assert done.returncode == 0, done.stderr
    assert "no whole image" in done.stdout and "chk3" in done.stdout and done.stderr == ""

    point = witness.points()[0]
    assert modes(point) == {"vda": SINCE, "vdb": ("full", "raw-has-no-bitmaps")}
    assert (point["since"], point["parent"], dirty(point)["vda"]) == ("chk3", None, 4 * CLUSTER)
    assert "chk3" in vm.checkpoints()
    assert_same({"vda": witness.change(point["id"], "vda", then)}, {"vda": held["vda"]})
    # no whole image of vda, and no attempt at one; vdb is whole
    refused = nbdpull("restore", witness.store, "-o", witness.folder / "out")
    assert refused.returncode != 0 and "since checkpoint chk3" in refused.stderr
    assert not list(witness.folder.glob("out/*"))
    assert_same(witness.restored("latest", "--disk", "vdb", "--disk", "vdb"), {"vdb": held["vdb"]})
    witness.assert_verified()


def test_series_that_begins_without_a_parent_is_sound(pulled):
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.create_checkpoint("chk3")
    vm.write("vda", 0, CLUSTER, 0x11)
    first = witness.pull("--since", "chk3", "--checkpoint", "chk4")
    vm.write("vda", CLUSTER, CLUSTER, 0x21)
    second = witness.pull()
    assert second["parent"] == first["id"] and dirty(second) == {"vda": CLUSTER}
    witness.assert_verified()  # nothing is damaged: what there is, is as it was stored
    full = witness.pull("--full")
    vm.write("vda", 0, 512, 0x41)
    assert witness.pull()["parent"] == full["id"]
    witness.assert_restores(full["id"], witness.result["details"]["id"])
    assert sorted(vm.checkpoints()) == sorted(["chk3", "chk4", witness.result["details"]["checkpoint"]])


def test_since_a_foreign_checkpoint_leaves_none_behind(pulled):
    """Nobody would ever delete it. The same again is the way on, from the text and from JSON."""
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.create_checkpoint("chk3")
    vm.write("vda", 0, CLUSTER, 0x11)
    told = nbdpull(*(word for word in witness.words("--since", "chk3") if word != "--json")).stdout
    assert "No checkpoint was made" in told and "checkpoint:" not in told
    vm.write("vda", CLUSTER, CLUSTER, 0x12)
    words = shlex.split(told.rpartition("next: ")[2])
    assert nbdpull(*words[1:], "--json").returncode == 0
    first, second = witness.points()
    assert [(point["since"], point["checkpoint"], point["partial"]) for point in (first, second)] == 2 * [
        ("chk3", None, True)
    ]
    assert (dirty(first), dirty(second)) == ({"vda": CLUSTER}, {"vda": 2 * CLUSTER})
    assert vm.checkpoints() == ["chk3"] and set(vm.bitmaps("vda")) == {"chk3"}
    third = witness.pull("--since", "chk3", "--checkpoint", "mine")
    assert (third["checkpoint"], vm.checkpoints()) == ("mine", ["chk3", "mine"])
    assert "--since mine" in witness.result["next_command"]
    fourth = witness.pull("--since", "mine")  # of a point of the store: the series goes on
    assert (fourth["parent"], fourth["checkpoint"]) == (third["id"], f"nbdpull-{fourth['id']}")


def test_since_a_checkpoint_of_no_disk_makes_a_whole_point_with_a_checkpoint(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB})
    witness.vm.create_checkpoint("chk3", ["vdb"])
    point = witness.pull("--since", "chk3", "--disk", "vda")
    assert modes(point) == {"vda": ("full", "not-in-checkpoint")} and point["checkpoint"] in witness.vm.checkpoints()


def test_since_a_checkpoint_of_virsh_into_a_series(pulled):
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    first = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.create_checkpoint("chk3")
    then = vm.content("vda")
    vm.write("vda", CLUSTER, CLUSTER, 0x22)
    apart = witness.pull("--since", "chk3", "--checkpoint", "chk4")
    assert (apart["since"], apart["parent"], dirty(apart)["vda"]) == ("chk3", None, CLUSTER)
    (warning,) = witness.result["warnings"]
    assert "it is partial" in warning and f"latest stays {first['id']}" in warning
    assert [(point["id"], point["partial"]) for point in witness.points()] == [
        (first["id"], False),
        (apart["id"], True),
    ]
    assert_same(witness.restored("latest"), witness.frozen[first["id"]])
    assert_same({"vda": witness.change(apart["id"], "vda", then)}, witness.frozen[apart["id"]])
    assert first["checkpoint"] in vm.checkpoints()  # still the base of what can be restored
    vm.write_zeroes("vda", 2 * CLUSTER, CLUSTER)
    third = witness.pull()
    assert (third["since"], third["parent"]) == (first["checkpoint"], first["id"])
    witness.assert_restores(first["id"], third["id"])
    witness.assert_verified()
    vm.delete_checkpoint(third["checkpoint"])
    vm.write("vda", 4 * CLUSTER, CLUSTER, 0x23)
    assert "chk4" in vm.checkpoints()
    fourth = witness.pull()  # the checkpoint of the partial one is there, and no whole image could go on from it
    assert modes(fourth) == {"vda": ("full", "checkpoint-lost")}
    assert_same(witness.restored("latest"), witness.frozen[fourth["id"]])


def test_since_a_point_that_is_not_the_newest(pulled):
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    monday = witness.pull("--checkpoint", "monday")
    vm.write("vda", 0, CLUSTER, 0x21)
    tuesday = witness.pull("--checkpoint", "tuesday")
    vm.write("vda", CLUSTER, CLUSTER, 0x31)
    again = witness.pull("--since", "monday")
    assert (again["parent"], again["since"]) == (monday["id"], "monday")
    assert dirty(again) == {"vda": 2 * CLUSTER}
    vm.write("vda", CLUSTER, 512, 0x41)
    other = witness.pull("--since", "tuesday")
    assert other["parent"] == tuesday["id"]
    witness.assert_restores()


def test_only_superseded_automatic_checkpoints_are_dropped(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    first = witness.pull()
    assert witness.result["dropped_checkpoints"] == []
    assert first["checkpoint"].startswith("nbdpull-")
    second = witness.pull("--checkpoint", "mine")
    assert (second["checkpoint"], witness.result["dropped_checkpoints"]) == ("mine", [first["checkpoint"]])
    third = witness.pull()
    assert third["since"] == "mine" and witness.result["dropped_checkpoints"] == []
    fourth = witness.pull("--full")
    assert witness.result["dropped_checkpoints"] == [third["checkpoint"]]
    assert sorted(vm.checkpoints()) == sorted(["mine", fourth["checkpoint"]])
    assert set(vm.bitmaps("vda")) == {"mine", fourth["checkpoint"]}


@pytest.mark.parametrize("options", [[], ["--full"]], ids=["incremental", "full"])
def test_a_superseded_checkpoint_that_could_not_be_deleted_is_tried_again(pulled, monkeypatch, options):
    """As during a managedsave. It was told once, and stayed for ever."""
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    first = witness.pull()

    def refused(self, name):
        raise errors.HypervisorError("cannot acquire state change lock")

    with monkeypatch.context() as patched:
        patched.setattr("nbdpull.hypervisor.domain.Domain.delete_checkpoint", refused)
        second = witness.pull(*options)
    (warning,) = witness.result["warnings"]
    assert f"the superseded checkpoint {first['checkpoint']} could not be deleted" in warning
    assert witness.result["dropped_checkpoints"] == []
    third = witness.pull()
    assert set(witness.result["dropped_checkpoints"]) == {first["checkpoint"], second["checkpoint"]}
    assert witness.vm.checkpoints() == [third["checkpoint"]] == list(witness.vm.bitmaps("vda"))


def test_no_checkpoint(pulled):
    """It makes none and drops none, and the next pull starts where the last checkpoint is."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    none = witness.pull("--no-checkpoint")
    assert none["checkpoint"] is None and vm.checkpoints() == []
    vm.write("vda", 0, CLUSTER, 0x11)
    second = witness.pull()
    assert modes(second) == {"vda": ("full", "no-checkpoint")}
    vm.write("vda", CLUSTER, CLUSTER, 0x12)
    third = witness.pull("--no-checkpoint")
    assert third["parent"] == second["id"] and vm.checkpoints() == [second["checkpoint"]]
    vm.write("vda", 2 * CLUSTER, CLUSTER, 0x13)
    fourth = witness.pull()
    assert fourth["parent"] == second["id"] and dirty(fourth) == {"vda": 2 * CLUSTER}
    assert vm.checkpoints() == [fourth["checkpoint"]]
    witness.assert_restores()


def test_some_disks_only(pulled):
    """A disk left out once is not forgotten: its old base stays until a new one covers it."""
    witness = pulled({"vda": MIB, "vdb": MIB, "vdc": Disk(MIB, "raw")}, quick=True)
    vm = witness.vm
    for disk in vm.disks:
        vm.write(disk, 0, MIB, 0x11)
    first = witness.pull()
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.write("vdb", 0, CLUSTER, 0x22)
    only = witness.pull("--disk", "vda", "--disk", "vda")
    assert modes(only) == {"vda": SINCE} and first["checkpoint"] in vm.checkpoints()
    without = witness.pull("--exclude", "vda", "--exclude", "vdc", "--since", first["checkpoint"])
    assert modes(without) == {"vdb": SINCE} and without["parent"] == first["id"]
    vm.write("vda", CLUSTER, CLUSTER, 0x41)
    both = witness.pull("--disk", "vda", "--disk", "vdb", "--since", first["checkpoint"])
    assert modes(both) == {"vda": SINCE, "vdb": SINCE} and dirty(both) == {"vda": 2 * CLUSTER, "vdb": CLUSTER}
    last = witness.pull()
    assert modes(last) == {"vda": SINCE, "vdb": SINCE, "vdc": ("full", "raw-has-no-bitmaps")}
    witness.assert_restores()


def test_disks_in_turn(pulled):
    """Each goes on from its own last point, though the newest one knows nothing of it."""
    witness = pulled({"vda": MIB, "vdb": MIB}, quick=True)
    vm, last = witness.vm, {}
    for n in range(6):
        disk = ("vda", "vdb")[n % 2]
        point = witness.pull("--disk", disk)
        assert modes(point)[disk][0] == ("incremental" if disk in last else "full")
        assert point["parent"] == last.get(disk)
        last[disk] = point["id"]
        vm.write(disk, n * CLUSTER, CLUSTER, n + 1)
    assert len(vm.checkpoints()) == 2
    witness.assert_restores()


def test_checkpoint_deleted_by_the_user(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull("--checkpoint", "kept")
    vm.write("vda", 0, CLUSTER, 0x21)
    second = witness.pull()
    vm.delete_checkpoint(second["checkpoint"])
    vm.write("vda", CLUSTER, CLUSTER, 0x31)
    third = witness.pull()  # from the older one, which still records all
    assert (third["parent"], dirty(third)) == (first["id"], {"vda": 2 * CLUSTER})
    for name in vm.checkpoints():
        vm.delete_checkpoint(name)
    vm.write("vda", 2 * CLUSTER, CLUSTER, 0x41)
    assert modes(witness.pull()) == {"vda": ("full", "checkpoint-lost")}
    witness.assert_restores()


def test_one_bitmap_deleted_behind_libvirts_back(pulled):
    witness = pulled({"vda": MIB, "vdb": MIB})
    vm = witness.vm
    vm.write("vdb", 0, MIB, 0x11)
    first = witness.pull()
    block = next(each for each in vm.qmp("query-block") if "vdb" in each["inserted"]["image"]["filename"])
    vm.qmp("block-dirty-bitmap-remove", node=block["inserted"]["node-name"], name=first["checkpoint"])
    vm.write("vdb", 0, CLUSTER, 0x21)
    named = witness.pull("--since", first["checkpoint"])
    assert modes(named) == {"vda": SINCE, "vdb": ("full", "bitmap-lost")}
    assert vm.checkpoints() == [named["checkpoint"]]  # the broken one is gone, with the bitmap it still had
    assert set(vm.bitmaps("vda")) == {named["checkpoint"]}
    witness.assert_restores()


@pytest.mark.parametrize("how", ["default", "since"])
def test_checkpoint_of_our_name_from_another_time(pulled, how):
    """Given anew within the same second, which is the grain of libvirt's creation time."""
    witness = pulled({"vda": MIB})
    vm, name = witness.vm, "daily"
    first = witness.pull("--checkpoint", name)
    vm.write("vda", 0, CLUSTER, 0x21)
    made = creation_time(vm, name)
    vm.delete_checkpoint(name)
    vm.create_checkpoint(name)
    set_creation_time(vm, name, made)
    assert creation_time(vm, name) == made
    vm.write("vda", 9 * CLUSTER, 512, 0x22)
    second = witness.pull(*(["--since", name] if how == "since" else []))
    assert second["parent"] != first["id"]
    if how == "default":
        assert modes(second) == {"vda": ("full", "checkpoint-replaced")}
        witness.assert_restores()
    else:  # what the user named is what the user gets: a change by itself
        assert (second["parent"], dirty(second)) == (None, {"vda": CLUSTER})
        words = ("restore", witness.store, "-o", witness.folder / "out", "--point", second["id"])
        assert nbdpull(*words).returncode == 11
    assert name in vm.checkpoints()


def creation_time(vm, name):
    xml = vm.domain.checkpointLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
    return xml.split("<creationTime>")[1].split("<")[0]


def set_creation_time(vm, name, seconds):
    """Of a checkpoint with its bitmaps: libvirt takes it from whoever defines one anew, as after a migration."""
    checkpoint = vm.domain.checkpointLookupByName(name)
    xml = checkpoint.getXMLDesc().replace(creation_time(vm, name), seconds)
    checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    vm.domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)


def test_named_checkpoint_again_after_the_user_deleted_it(pulled):
    """A name used for a second point: each point stays tied to the checkpoint of its own time."""
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull("--checkpoint", "daily")
    vm.write("vda", 0, CLUSTER, 0x21)
    vm.delete_checkpoint("daily")
    second = witness.pull("--checkpoint", "daily")
    assert modes(second) == {"vda": ("full", "checkpoint-lost")}
    vm.write("vda", CLUSTER, CLUSTER, 0x31)
    third = witness.pull("--since", "daily")
    assert (third["parent"], dirty(third)) == (second["id"], {"vda": CLUSTER})
    witness.assert_restores()


# -- stores -----------------------------------------------------------------------------------------------------------


def test_store_copied_to_another_place(pulled):
    """Both go on: whose checkpoint the other one dropped takes a full point, and neither is ever wrong."""
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    original, copied = witness.store, witness.folder / "copied store"
    shutil.copytree(original, copied)
    for n, store in enumerate([copied, original, copied]):
        vm.write("vda", n * CLUSTER, CLUSTER, 0x21 + n)
        witness.store = store
        point = witness.pull()
        assert_same(witness.restored(), witness.frozen[point["id"]], f"pull {n}")
        witness.assert_verified()
    witness.store.rename(witness.folder / "moved")
    witness.store = witness.folder / "moved"
    vm.write("vda", 9 * CLUSTER, CLUSTER, 0x31)
    assert modes(witness.pull()) == {"vda": SINCE}
    assert_same(witness.restored(), witness.content())


def test_two_stores_of_one_domain_do_not_disturb_each_other(pulled):
    witness = pulled({"vda": MIB}, quick=True)
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    stores = [witness.store, witness.folder / "weekly"]
    for n in range(6):
        witness.store = stores[n % 2]
        point = witness.pull()
        assert modes(point) == {"vda": SINCE if n > 1 else FULL_FIRST}
        assert_same(witness.restored(), witness.frozen[point["id"]])
        vm.write("vda", n * CLUSTER, CLUSTER, 0x21 + n)
    assert len(vm.checkpoints()) == 2


def test_two_domains_in_one_store(pulled, machine):
    witness = pulled({"vda": MIB})
    other = Witness(machine({"vda": MIB}), witness.folder / "other")
    other.store = witness.store
    for n, each in enumerate([witness, other, witness, other]):
        each.vm.write("vda", n * CLUSTER, CLUSTER, n + 1)
        each.pull()
    for each in (witness, other):
        for point, held in each.frozen.items():
            assert_same(each.restored(point, "--domain", each.vm.name), held)
    assert nbdpull("restore", witness.store, "-o", witness.folder / "out").returncode == 10
    assert len(witness.points()) == 4


def test_point_lost_from_the_store(pulled):
    """The chain is broken, so the next point is a full one; and says why."""
    witness = pulled({"vda": MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull()
    second = witness.pull()
    shutil.rmtree(next(witness.store.glob(f"*/{first['id']}")))
    third = witness.pull()
    assert modes(third)["vda"][0] == "full" and third["parent"] is None
    assert any(first["id"] in warning for warning in witness.result["warnings"])
    assert second["checkpoint"] not in vm.checkpoints()  # no use any more
    witness.assert_restores(third["id"])


def test_restore_and_verify_without_libvirt(pulled):
    witness = pulled({"vda": MIB})
    witness.vm.write("vda", 0, MIB, 0x11)
    witness.pull()
    witness.vm.write("vda", 0, 512, 0x21)
    point = witness.pull()
    program = (
        "import sys; sys.modules['libvirt'] = None; from nbdpull.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    out = witness.folder / "out"
    for words in (["verify", witness.store], ["restore", witness.store, "-o", out, "--format", "raw"]):
        done = subprocess.run([sys.executable, "-c", program, *map(str, words)], env=environment(), capture_output=True)
        assert done.returncode == 0, done.stderr
    assert_same({"vda": (out / "vda.raw").read_bytes()}, witness.frozen[point["id"]])


@pytest.mark.timeout_seconds(240)
def test_damage_to_any_file_is_found_and_refused(pulled):
    """Of a store that was really pulled: a flipped byte and a cut, in every file of both points of a chain."""
    witness = pulled({"vda": MIB, "vdb": Disk(MIB, "raw")}, quick=True)
    witness.vm.write_bytes("vda", 1000, os.urandom(200 * KIB))
    witness.pull()
    witness.vm.write_bytes("vda", 5 * CLUSTER, os.urandom(1000))
    witness.pull()
    assert damages(witness) == []
    files = [path for path in sorted(witness.store.rglob("*")) if path.is_file()]
    assert len(files) > 14
    for path in files:
        intact = path.read_bytes()
        owner = next((point for point in witness.frozen if point in path.parts), "latest")
        for damaged in (intact[: len(intact) // 2], intact[:-1], flipped(intact, len(intact) // 2), None):
            if damaged is None and path.name == "manifest.json" and owner == witness.result["details"]["id"]:
                continue  # without it there never was a point
            path.unlink() if damaged is None else path.write_bytes(damaged)
            what = f"{path}, {len(intact)} bytes, damaged to {damaged}"
            assert damages(witness), what
            assert restored_or_refused(witness, owner) is None, what
            for point in witness.frozen:  # others may not need the file: right or refused, but never wrong
                assert_same(restored_or_refused(witness, point) or witness.frozen[point], witness.frozen[point], what)
        path.write_bytes(intact)
    assert damages(witness) == []
    witness.assert_restores()


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def damages(witness):
    """What verify finds; in this process, as each command line would take a third of a second."""
    try:
        return verify_store(witness.store).damages
    except errors.NbdpullError as error:
        return [error]


def restored_or_refused(witness, point):
    """The bytes of the point's disks, or None where restore refused and wrote nothing."""
    out = witness.folder / "perhaps"
    try:
        restore.restore(restore.Options(str(witness.store), str(out), point=point, kind="raw"))
        return {image.stem: image.read_bytes() for image in out.glob("*.raw")}
    except errors.NbdpullError:
        assert not list(out.glob("*"))
        return None
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_disk_that_was_shrunk_and_grown_again_between_two_points(pulled):
    """What the shrinking cut off reads as zero, and comes back in a restore."""
    witness = pulled({"vda": 2 * MIB})
    vm = witness.vm
    vm.write("vda", 0, 2 * MIB, 0x11)
    witness.pull()
    vm.stop()
    vm.resize("vda", MIB)
    vm.resize("vda", 2 * MIB)
    vm.start()
    witness.pull()
    witness.assert_restores()


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = ["list", "-dash", "a\ttab", 'it\'s "quoted" $HOME %41 \\ *', ".hidden b\u00fcro \u65e5"]


@pytest.mark.parametrize("name", NAMES)
def test_domain_names(pulled, name):
    """A name is pulled, found again, restored; and the next command line that is printed works in a shell."""
    witness = pulled({"vda": MIB}, name=name)
    witness.vm.write("vda", 0, CLUSTER, 0x11)
    first = witness.pull()
    witness.vm.write("vda", CLUSTER, CLUSTER, 0x21)
    held = witness.content()
    command = witness.result["next_command"]
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(words + ["--json"] if "--" not in words else [*words[:4], "--json", *words[4:]],
                          env=environment(), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stderr}"
    second = witness.made(last_event(done.stdout), held)
    assert (second["parent"], second["domain"]) == (first["id"], name)
    assert [point["domain"] for point in witness.points()] == [name, name]
    assert_same(witness.restored("latest", f"--domain={name}"), held)
    witness.assert_restores()
    if name != "list" and not name.startswith("-"):
        assert command.startswith("nbdpull " + shlex.quote(name))


@pytest.mark.parametrize("name", ["\u65e5" * 60, "x" * 20 + "\U0001f4be" * 55, "x" * 240])
def test_long_names_of_domains(pulled, name):
    """As long as libvirt takes them: it has a file NAME.xml of each, and a folder of its first 20 characters."""
    witness = pulled({"vda": MIB}, name=name)
    witness.vm.write("vda", 0, CLUSTER, 0x11)
    first = witness.pull()
    witness.vm.write("vda", CLUSTER, CLUSTER, 0x21)
    assert witness.pull()["parent"] == first["id"]
    assert {point["domain"] for point in witness.points()} == {name}
    assert_same(witness.restored("latest", f"--domain={name}"), witness.content())
    witness.assert_restores()


def test_names_of_checkpoints_that_look_like_options(pulled):
    witness = pulled({"vda": MIB})
    witness.pull("--checkpoint=-x")
    assert witness.vm.checkpoints() == ["-x"]
    done = subprocess.run([sys.executable, "-m", *shlex.split(witness.result["next_command"])], env=environment())
    assert done.returncode == 0


def test_names_of_stores(pulled):
    witness = pulled({"vda": MIB})
    for folder in ("with blank", "b\u00fcro", "deep/er/still", "trailing/"):
        witness.store = f"{witness.folder}/{folder}"
        assert modes(witness.pull()) == {"vda": FULL_FIRST}
        assert Path(witness.store, "nbdpull.json").is_file()


# -- a run that fails in the middle -----------------------------------------------------------------------------------


def test_job_ended_by_somebody_else_in_the_middle(pulled):
    """What was read until then is void, though no read failed; the old base stays, and the next point is right."""
    witness = pulled({"vda": 32 * MIB})
    vm = witness.vm
    vm.write("vda", 0, MIB, 0x11)
    first = witness.pull()
    vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    before = Before(witness)
    with stopped_in_the_middle(witness) as process:
        vm.domain.abortJob()  # its end needs the client: QEMU waits for what is on its way to it
    assert process.returncode == 6, process.problem
    assert last_event(process.output)["code"] in ("job-lost", "source")
    before.assert_same()
    vm.write("vda", 0, 512, 0x31)
    second = witness.pull()
    assert second["parent"] == first["id"] and dirty(second) == {"vda": 32 * MIB}
    witness.assert_restores()


def test_two_pulls_at_once(pulled):
    """One wins; the other is told to come again, into the same store and into another one."""
    witness = pulled({"vda": 32 * MIB})
    witness.vm.write_bytes("vda", 0, os.urandom(32 * MIB))
    held = witness.content()
    with stopped_in_the_middle(witness) as process:
        for store in (witness.store, witness.folder / "another"):
            started = time.monotonic()
            other = nbdpull(witness.vm.name, "-o", store)
            assert other.returncode == 5, other.stderr
            assert time.monotonic() - started < 10
            assert "nbdpull run" in other.stderr and f"process {process.pid} " in other.stderr
    assert process.returncode == 0, process.problem
    witness.made(last_event(process.output), held)
    witness.assert_restores()
    assert not (witness.folder / "another").exists()


def test_no_more_chunk_files_than_a_manifest_holds(machine, tmp_path, monkeypatch):
    """A reader refuses a manifest that is too large: its writer must not be able to make one."""
    vm = machine({"vda": 6 * MIB})
    vm.write_bytes("vda", 0, os.urandom(6 * MIB))
    witness = Witness(vm, tmp_path / "w", quick=True)
    monkeypatch.setattr("nbdpull.format.layout.MAX_CHUNK_FILES", 3)
    witness.pull("--full", "--chunk-size", "2M")
    assert witness.result["warnings"] == []
    made = witness.pull("--full", "--chunk-size", "1M")
    assert witness.result["warnings"] == ["a point has at most 3 chunk files: each takes 2097152 bytes"]
    assert len(list(witness.store.glob(f"*/{made['id']}/*.zst"))) == 3
    witness.assert_restores()
