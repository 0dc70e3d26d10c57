"""Witnesses of pulls: what each point must restore to, and what a failed run has left behind.

Owns: `Witness`, which pulls a VM into a store by the command line and remembers the contents of its disks; `Before`,
which finds what a run has changed. Must not know: the internals of the package. Only the test bed says what a disk
contained.
"""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import zstandard
from bed.libvirtd import libvirt
from command import last_event, nbdpull, said, start_held

KIB = 1 << 10
CLUSTER = 64 * KIB
FULL_FIRST = ("full", "first-point")
SINCE = ("incremental", "checkpoint")
GROWN = ("incremental", "grown")


class Witness:
    """Pulls a VM into a store by the command line, and records the content of every disk at each point.

    frozen[point id][disk] are bytes; at[checkpoint] is the same for each checkpoint that a pull created; result is the
    last pull's result object. quick: run the command line in this process, for many pulls, of which Python's start
    would take half of the time.
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
        """Return the command line of a pull. Scratch files have their own folder: whatever is left there is the
        run's."""
        words = ["pull", "-o", self.store, "--json", "-c", self.vm.bed.uri, *options]
        words += [] if "--scratch-dir" in options else ["--scratch-dir", self.scratch]
        return [*words, "--", self.vm.name]

    def content(self):
        return {disk: self.vm.content(disk) for disk in self.vm.disks}

    def pull(self, *options):
        """Make a point; return it as the result describes it."""
        held = self.content()
        if self.quick:
            output = said(*self.words(*options))
        else:
            done = nbdpull(*self.words(*options))
            assert done.returncode == 0, done.stderr
            output = done.stdout
        return self.made(last_event(output), held)

    def plan(self, *options):
        """Return the result of a plan, without a store unless the options name one."""
        words = ["plan", self.vm.name, "-c", self.vm.bed.uri, "--scratch-dir", self.scratch, "--json"]
        done = nbdpull(*words, *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def made(self, result, held):
        """Record a point that was made when the disks had this content."""
        assert (result["event"], result["ok"], result["exit_code"]) == ("result", True, 0)
        self.result, point = result, result["details"]
        self.frozen[point["id"]] = {disk["name"]: held[disk["name"]] for disk in point["disks"]}
        if point["checkpoint"]:
            self.at[point["checkpoint"]] = held
        assert not self.vm.job_active() and os.listdir(self.scratch) == []
        return point

    def restored(self, point="latest", *options):
        """Restore the disks of a point, and return their bytes."""
        out = self.folder / "restored"
        try:
            said("restore", self.store, "-o", out, "--point", point, "--format", "raw", "--quiet", *options)
            return {image.stem: image.read_bytes() for image in out.glob("*.raw")}
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def assert_restores(self, *points):
        """Require that each of these points (by default all) restores to exactly what its disks contained."""
        for point in points or self.frozen:
            assert_same(self.restored(point), self.frozen[point], point)

    def change(self, point, disk, base):
        """Return the bytes of a disk at a point, those of a partial one on top of `base`, read by the index rather than
        by restore."""
        about = json.loads(said("show", self.store, point, "--json"))
        [size] = [each["size"] for each in about["disks"] if each["name"] == disk]
        content = bytearray(base) if about["partial"] else bytearray(size)
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
        """Return the points that `list` shows."""
        return json.loads(said("list", self.store, "--json"))

    def assert_verified(self):
        said("verify", self.store)


@contextlib.contextmanager
def stopped_in_the_middle(witness, *options, before_start=None):
    """Give a pull that is stopped (SIGSTOP) with its job active, after its first reads and before its last.

    So the disk must be large enough: the pull reads some 10 MiB ahead of what it has written. At the end of the block
    the pull is continued, and has ended.
    """
    gate = witness.folder / "gate"
    process = start_held("copying", gate, *witness.words("--threads", "1", *options), preexec_fn=before_start)
    try:
        process.send_signal(signal.SIGSTOP)
        gate.touch()
        assert witness.vm.job_active()
        yield process
        process.send_signal(signal.SIGCONT)
        process.output, process.problem = process.communicate(timeout=100)
    finally:
        process.kill()
        process.communicate()


def assert_same(got, expected, what=""):
    """Compare {disk: bytes}, and report where they differ: pytest would print all of both."""
    assert set(got) == set(expected), what
    for disk, content in expected.items():
        assert len(got[disk]) == len(content), f"{what} {disk}: {len(got[disk])} bytes for {len(content)}"
        if got[disk] != content:
            wrong = [i for i in range(0, len(content), 512) if got[disk][i : i + 512] != content[i : i + 512]]
            pytest.fail(f"{what} {disk}: {len(wrong)} sectors differ, the first ones at {wrong[:5]}")


class Before:
    """The state of a domain and a store before a run that must leave no trace."""

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
        """Require no job, the same checkpoints and bitmaps, no scratch file, no socket, no new point or part of one."""
        assert not self._vm.active or not self._vm.job_active()
        with pytest.raises(libvirt.libvirtError, match="no domain backup job"):
            self._vm.domain.backupGetXMLDesc()
        assert os.listdir(self._witness.scratch) == []
        assert self._now() == self._state


def points_of(store):
    """Return every file and folder below the domains' folders of a store."""
    if not os.path.isdir(store):
        return []
    found = {*Path(store).glob("*/*"), *Path(store).glob("*/*/**/*")}
    return sorted(str(path.relative_to(store)) for path in found)


def sockets(vm):
    """Return the NBD sockets of nbdpull for this VM, at QEMU's default location and where the tests put them."""
    own = Path("/var/lib/libvirt/qemu").glob(f"domain-*-{vm.name[:20]}/nbdpull-*") if vm.bed.root else []
    return sorted(map(str, [*own, *vm.bed.folder.glob("*.sock")]))


def modes(point):
    return {disk["name"]: (disk["mode"], disk["reason"]) for disk in point["disks"]}


def dirty(point):
    return {disk["name"]: disk["dirty_bytes"] for disk in point["disks"]}


def assert_refused(witness, exit_code, code, message, *options, run=nbdpull, domain=None):
    """Require that a pull with these options fails in this way, with one line on stderr and the same in its JSON
    result, and leaves nothing behind."""
    before = Before(witness)
    words = witness.words(*options)[:-1] + [domain or witness.vm.name]
    done = run(*words)
    assert done.returncode == exit_code, done.stdout + done.stderr
    result = last_event(done.stdout)
    assert (result["event"], result["ok"], result["exit_code"], result["code"]) == ("result", False, exit_code, code)
    assert result["left_behind"] == []
    assert done.stderr == f"nbdpull: {result['message']}\n"
    for words in [message] if isinstance(message, str) else message:
        assert words in result["message"]
    before.assert_same()
    return result
