"""Random deeds against one VM and one store, and a model that knows every byte of every point.

    scripts/torture [--seed N] [--minutes M]

Guest writes, zeroes and discards, pulls, kills of nbdpull at random instants and in each of its phases, a store that is
unplugged, goes read-only or loses power, restarts of the daemon, also amid a pull, and of the VM, SIGKILL of QEMU,
resizes, shrinking and growing, disks that come and go, also one that no definition has, snapshots, commits of all
layers, blockpull, blockcopy, roll-backs to an earlier image, foreign checkpoints, pulls since any checkpoint, lost
metadata, points that are removed, pruned and pinned, which may be killed as well, also between a killed pull and the
next one, a domain that is renamed, or undefined and defined; with every other seed the disks are in I/O threads. After
every pull the new point is restored and compared; from time to time every point is, and the store is verified. What a
disk holds is known only from the model: it is compared with the live disk, too. A seed repeats the deeds, not their
timing.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
HELD = PROJECT / "tests/faults/held.py"
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT), str(HELD.parent)]

from bed import BedError  # noqa: E402
from bed.device import Device  # noqa: E402
from bed.libvirtd import PrivateLibvirt, libvirt  # noqa: E402
from bed.machine import MIB, Disk, Machine  # noqa: E402
from held import PHASES  # noqa: E402

from nbdpull.core import errors  # noqa: E402

SECTOR, CLUSTER = 512, 64 << 10
# What a run that was killed may leave to the next one; that one is to go on as if nothing had been.
LIMIT = 90  # seconds a command may take
OFFLINE = ("--offline=start-paused", "--offline=read")
REFUSED_SINCE = ("checkpoint-unusable",)
STORE_SIZE = 8 << 30  # bytes of a sparse image
LIVE = "sdd"  # the disk that no definition has


class Wrong(Exception):
    """nbdpull broke a promise."""


class Torture:
    """One VM, one store, one model: disks[target] is a bytearray, points[id] the disks as they were."""

    def __init__(self, bed, folder, seed, log=print):
        self.random = random.Random(seed)
        self.bed, self.folder, self.log = bed, Path(folder), log
        self.store, self.scratch = self.folder / "store", self.folder / "scratch"
        self.scratch.mkdir(parents=True)
        self.device = Device(self.store, self.folder, STORE_SIZE) if os.geteuid() == 0 else None
        sizes = {"vda": self._size(), "vdb": self._size(), "sdc": self._size()}
        self.vm = Machine(bed, self.folder / "images", sizes, iothreads=self.random.choice([0, 1]))
        self.own_name = self.vm.name
        self.vm.start()
        self.qemu = self.vm.pid  # which nothing that nbdpull does may end
        self.disks = {target: bytearray(size) for target, size in sizes.items()}
        self.points, self.foreign, self.counts = {}, {}, collections.Counter()  # foreign: {name: disks as of then}
        self.removed, self.pinned = {}, set()  # removed: as points, those that were
        self.kept = {}  # target: (image of its own without layers, a copy of it, what it held)
        self.killed_with = None  # the disks as they were when a run was killed last

    def run(self, seconds, points=0):
        """Run operations until the time is up and there are so many points, and check everything that was made."""
        deeds = [(self.write, 30), (self.zero, 10), (self.discard, 8), (self.pull, 14), (self.kill_pull, 6),
                 (self.stop_and_start, 3), (self.pull_offline, 2), (self.crash, 2), (self.restart_daemon, 2),
                 (self.resize, 3), (self.shrink_and_grow, 2), (self.foreign_checkpoint, 3), (self.forget, 2),
                 (self.kill_in_a_phase, 5), (self.redefine, 2), (self.rename, 2), (self.replug, 1), (self.prove_all, 1),
                 (self.kill_offline, 1), (self.plug_live, 2), (self.restart_daemon_amid, 3), (self.pull_since, 2),
                 (self.snapshot, 4), (self.commit, 2), (self.flatten, 1), (self.move, 1), (self.keep, 2),
                 (self.roll_back, 2), (self.remove, 3), (self.prune, 2), (self.pin, 1)]  # fmt: skip
        deeds += [(self.break_store, 4)] if self.device else []
        chosen, weights = zip(*deeds)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or len(self.points) < points:
            deed = self.random.choices(chosen, weights)[0]
            self.counts[deed.__name__] += 1
            with open(self.folder / "deeds", "a") as trail:
                trail.write(f"{time.strftime('%T')} {deed.__name__}\n")
            deed()
            if self.vm.pid != self.qemu:
                raise Wrong(f"{deed.__name__}: QEMU ended")
        self.pull()
        self.prove_all()
        self.prove_live()

    def close(self):
        for log in (self.bed.qemu_log(self.vm.name), self.bed.folder / "libvirtd.log"):  # gone with the bed
            shutil.copy(log, self.folder)
        self.vm.close()
        if self.device:
            self.device.close()

    # -- the guest ------------------------------------------------------------------------------------------------

    def write(self):
        disk, offset, length = self._range()
        if self.random.random() < 0.4:  # what does not compress makes chunk files full
            data = self.random.randbytes(length)
            self.vm.write_bytes(disk, offset, data)
        else:
            pattern = self.random.randrange(1, 256)
            self.vm.write(disk, offset, length, pattern)
            data = bytes([pattern]) * length
        self.disks[disk][offset : offset + length] = data

    def zero(self):
        disk, offset, length = self._range()
        if self.vm.iothreads and disk.startswith("sd"):  # QEMU 7.2's own qemu-io command asserts there
            return self.discard()
        self.vm.write_zeroes(disk, offset, length, unmap=self.random.random() < 0.5)
        self.disks[disk][offset : offset + length] = bytes(length)

    def discard(self):
        """Discard whole clusters: what a discard leaves of parts of them is up to the image."""
        disk, offset, length = self._range(CLUSTER)
        self.vm.discard(disk, offset, length)
        held = self.vm.content(disk)
        if held[:offset] + held[offset + length :] != self.disks[disk][:offset] + self.disks[disk][offset + length :]:
            raise Wrong(f"the bed: a discard changed {disk} elsewhere")
        self.disks[disk][offset : offset + length] = held[offset : offset + length]

    def _size(self):
        return self.random.randrange(2 * MIB, 6 * MIB, SECTOR)

    def _range(self, unit=SECTOR):
        disk = self.random.choice(sorted(self.disks))
        units = len(self.disks[disk]) // unit
        first = self.random.randrange(units)
        most = self.random.choice([1, 8, 200, units])
        return disk, first * unit, self.random.randint(1, max(1, min(most, units - first))) * unit

    # -- nbdpull --------------------------------------------------------------------------------------------------

    def words(self, *options):
        small = ["--frame-size", "64K", "--chunk-size", "1M"]
        return [sys.executable, "-m", "nbdpull", "pull", "-o", self.store, "--json", "-c", self.bed.uri,
                "--scratch-dir", self.scratch, *small, *options, "--", self.vm.name]  # fmt: skip

    def start(self, *words):
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(list(map(str, words)), env=environment, **pipes)

    def pull(self, *options):
        frozen = {target: bytes(content) for target, content in self.disks.items()}
        options = options or self.random.choice([(), (), (), ("--full",), ("--no-checkpoint",)])
        process = self.start(*self.words(*options))
        output, said = process.communicate(timeout=LIMIT)
        made = json.loads(output.splitlines()[-1])
        if made.get("code") == "job-stuck":
            self._free_of_the_job()
            return self.pull(*options)
        if process.returncode:
            raise Wrong(f"a pull failed: {said}")
        if made["resumed"]:
            self.counts["resumed, kept files" if made["resumed"]["kept_bytes"] else "resumed"] += 1
        self._note(made["details"], self.killed_with if made["resumed"] else frozen)

    def kill_pull(self):
        """Send SIGKILL, TERM or INT at a random instant. The pull may have ended by then."""
        frozen = {target: bytes(content) for target, content in self.disks.items()}
        before = set(self._listed())
        process = self.start(*self.words())
        time.sleep(self.random.random() ** 2 * 1.5)
        how = self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        process.send_signal(how)
        said = process.communicate(timeout=LIMIT)[1]
        if "Traceback" in said and how == signal.SIGKILL:
            raise Wrong(f"a traceback: {said}")
        self._note_new(before, frozen)
        if how == signal.SIGKILL:
            self._reclaim()
        else:
            self._require_nothing_left()

    def kill_offline(self):
        """Send SIGKILL in the middle of a pull of a domain that is off: it may be paused then, or its images are being
        read."""
        self._stop()
        frozen = {target: bytes(content) for target, content in self.disks.items()}
        before = set(self._listed())
        process = self.start(*self.words(self.random.choice(OFFLINE)))
        time.sleep(0.3 + self.random.random())
        process.kill()
        process.communicate(timeout=LIMIT)
        self._note_new(before, frozen)
        self._cleanup()
        if self.vm.active:
            raise Wrong("a domain that was off is on")
        self._start()

    def kill_in_a_phase(self):
        """Send SIGKILL when a run is at a certain step, or in the middle of it."""
        frozen = {target: bytes(content) for target, content in self.disks.items()}
        before, gate = set(self._listed()), self.folder / "gate"
        gate.unlink(missing_ok=True)
        phase = self.random.choice([*PHASES, *["copying:1"] * 6])  # of these alone is gone on with
        process = self.start(sys.executable, HELD, phase, gate, *self.words()[3:])
        for line in process.stdout:
            if json.loads(line)["event"] == "held":
                break
        if self.random.random() < 0.4:
            gate.touch()
            time.sleep(self.random.random() ** 2 * 0.3)
        process.kill()
        process.communicate(timeout=LIMIT)
        self._note_new(before, frozen)
        self._reclaim()

    def break_store(self):
        """Let the file system of the store fail during a pull, and repair it; or cut the power, also of nbdpull."""
        frozen = {target: bytes(content) for target, content in self.disks.items()}
        before, how = set(self._listed()), self.random.choice(["unplug", "unplug", "fail", "power"])
        process = self.start(*self.words())
        time.sleep(self.random.random() ** 2 * 1.5)
        self.device.fail() if how == "fail" else self.device.unplug()
        if how == "power":
            process.kill()
        output, said = process.communicate(timeout=LIMIT)
        if "Traceback" in said or "internal error" in said:
            raise Wrong(f"a traceback: {said}")
        self.device.mend()
        self.counts[f"{how}: {process.returncode}"] += 1
        self._note_new(before, frozen)
        if process.returncode == 0 and json.loads(output.splitlines()[-1])["details"]["id"] not in self.points:
            raise Wrong("a point was reported as committed, and is missing")
        if how == "power":
            return self._reclaim()
        self._require_nothing_left()

    def pull_since(self):
        """Pull since any existing checkpoint: one that can no longer be used is refused, and nothing else is."""
        names = self.vm.checkpoints()
        if not names:
            return
        frozen = {target: bytes(content) for target, content in self.disks.items()}
        process = self.start(*self.words("--since", self.random.choice(names)))
        output, said = process.communicate(timeout=LIMIT)
        made = json.loads(output.splitlines()[-1])
        self.counts[f"since: {made.get('code', 'done')}"] += 1
        if process.returncode == 0:
            self._prove_onto(made["details"], frozen) if made["details"]["partial"] else self._note(
                made["details"], frozen
            )
        elif made["code"] not in REFUSED_SINCE:
            raise Wrong(f"a pull since a checkpoint failed: {said}")
        self._require_nothing_left()

    def _note_new(self, before, frozen):
        """Record points that were committed before their run died."""
        for point in self._listed().values():
            if point["id"] not in before:
                self._note(point, frozen)

    def _reclaim(self):
        """Let `cleanup`, or the next pull, remove what a killed run leaves; the pull may resume it as well: then the
        point holds what the disks held before."""
        if self.random.random() < 0.7:
            self.killed_with = {target: bytes(content) for target, content in self.disks.items()}
            for _ in range(self.random.randrange(3)):
                self.random.choice([self.write, self.zero, self.remove])()
            return self.pull(*self.random.choice([(), *[("--resume",)] * 3, ("--resume=never",)]))
        self._cleanup()

    def _cleanup(self):
        where = ["-o", self.store] if (self.store / "nbdpull.json").exists() else []
        done = self.start(
            sys.executable, "-m", "nbdpull", "cleanup", self.vm.name, "-c", self.bed.uri, "--json", *where
        )
        output, said = done.communicate(timeout=LIMIT)
        if any(item["what"] == "job that libvirt has lost" for item in json.loads(output.splitlines()[-1])["found"]):
            return self._free_of_the_job()
        if done.returncode:
            raise Wrong(f"cleanup failed: {said}")
        self._require_nothing_left()

    def _free_of_the_job(self):
        """Free the domain of a job that libvirt has lost, because its daemon was killed during its start."""
        self.counts["job stuck"] += 1
        self._stop()
        self.bed.restart()
        self._start()

    def _require_nothing_left(self):
        if self.vm.job_active():
            raise Wrong("a job is left")

    def _note(self, point, frozen):
        self.points[point["id"]] = frozen
        modes = {disk["name"]: f"{disk['mode']}/{disk['reason']}" for disk in point["disks"]}
        self.counts.update(modes.values())
        if set(modes) != set(frozen):
            raise Wrong(f"point {point['id']} has disks {sorted(modes)}, the machine {sorted(frozen)}")
        self.prove(point["id"])

    def _listed(self):
        if not (self.store / "nbdpull.json").exists():
            return {}
        process = self.start(sys.executable, "-m", "nbdpull", "list", self.store, "--json")
        output, said = process.communicate(timeout=LIMIT)
        if process.returncode:
            raise Wrong(f"list failed: {said}")
        return {point["id"]: point for point in json.loads(output) if not point["partial"]}

    # -- points that go -------------------------------------------------------------------------------------------

    def remove(self):
        chosen = [point for point in sorted({*self.points} - self.pinned) if self.random.random() < 0.3]
        if chosen and self._going("remove", self.store, *chosen) and {*chosen} & {*self.points}:
            raise Wrong("a point was removed, and is there")

    def prune(self):
        newest = next(reversed(self._listed()), None)
        if newest:
            self._going("prune", self.store, "--keep-last", self.random.randint(1, 4), "--force")
            if newest not in self.points:
                raise Wrong("the newest point was pruned")

    def pin(self):
        unpinned = sorted({*self.points} - self.pinned)
        if self.pinned and self.random.random() < 0.5:
            point = min(self.pinned)
            self._must("unpin", self.store, point)
            self.pinned.discard(point)
        elif unpinned:
            point = self.random.choice(unpinned)
            self._must("pin", self.store, point, "--reason", "torture")
            self.pinned.add(point)

    def _going(self, *words):
        """Remove points, and perhaps files at once; or be killed in the middle. Return whether it was completed."""
        words = [*words, *self.random.choice([(), ("--now",)])]
        process = self.start(sys.executable, "-m", "nbdpull", *words)
        if is_killed := self.random.random() < 0.3:
            time.sleep(0.2 + self.random.random() * 0.5)
            process.kill()
        said = process.communicate(timeout=LIMIT)[1]
        if process.returncode and not (is_killed and process.returncode == -signal.SIGKILL):
            raise Wrong(f"{words[0]} failed: {said}")
        self._take_note_of_what_went()
        return process.returncode == 0

    def _take_note_of_what_went(self):
        there = self._listed()
        for point in {*self.points} - {*there}:
            self.removed[point] = self.points.pop(point)
        if not self.pinned <= {*self.points}:
            raise Wrong("a pinned point is gone")

    def _must(self, *words):
        process = self.start(sys.executable, "-m", "nbdpull", *words)
        said = process.communicate(timeout=LIMIT)[1]
        if process.returncode:
            raise Wrong(f"{words[0]} failed: {said}")

    # -- proof ----------------------------------------------------------------------------------------------------

    def prove(self, point):
        out = self.folder / "restored"
        process = self.start(sys.executable, "-m", "nbdpull", "restore", self.store, "-o", out, "--point", point,
                             "--format", "raw", "--quiet")  # fmt: skip
        said = process.communicate(timeout=LIMIT)[1]
        if process.returncode:
            raise Wrong(f"restore of {point} failed: {said}")
        for disk, content in self.points[point].items():
            self._require_same((out / f"{disk}.raw").read_bytes(), content, f"point {point}, disk {disk}")
        shutil.rmtree(out)

    def _prove_onto(self, point, frozen):
        """Check a point that holds only what changed, laid over images of the disks as they were; except for disks in
        full."""
        out, onto, whole = self.folder / "onto", [], []
        out.mkdir()
        for disk in point["disks"]:
            image = out / f"{disk['name']}.raw"
            if disk["mode"] == "full":
                whole += ["--to", f"{disk['name']}={image}"]
                continue
            image.write_bytes(self._at(point["since"]).get(disk["name"], b""))
            onto += ["--onto", f"{disk['name']}={image}"]
        for words in filter(None, (onto, whole)):
            process = self.start(sys.executable, "-m", "nbdpull", "restore", self.store, "--point", point["id"],
                                 "--format", "raw", "--quiet", *words)  # fmt: skip
            said = process.communicate(timeout=LIMIT)[1]
            if process.returncode:
                raise Wrong(f"restore of the partial {point['id']} failed: {said}")
        for disk, content in frozen.items():
            got = (out / f"{disk}.raw").read_bytes()  # a larger image stays so, with zeroes behind
            expected = content + bytes(max(0, len(got) - len(content)))
            self._require_same(got, expected, f"partial point {point['id']}, disk {disk}")
        shutil.rmtree(out)

    def _at(self, checkpoint):
        """Return the disks as of a checkpoint that no point has: a foreign one, or that of a removed point."""
        known = self.foreign.get(checkpoint)
        return self.removed[checkpoint.removeprefix("nbdpull-")] if known is None else known

    def prove_all(self):
        for point in self.points:
            self.prove(point)
        if self.points:
            process = self.start(sys.executable, "-m", "nbdpull", "verify", self.store)
            output, said = process.communicate(timeout=LIMIT)
            if process.returncode:
                raise Wrong(f"verify: {output} {said}")

    def prove_live(self):
        for disk, content in self.disks.items():
            self._require_same(self.vm.content(disk), content, f"the bed: live disk {disk}")

    def _require_same(self, got, expected, what):
        if got != expected:
            wrong = [i for i in range(0, len(expected), SECTOR) if got[i : i + SECTOR] != expected[i : i + SECTOR]]
            raise Wrong(f"{what}: {len(got)} bytes for {len(expected)}, {len(wrong)} sectors differ, first {wrong[:4]}")

    # -- the host -------------------------------------------------------------------------------------------------

    def _start(self):
        self.vm.start()
        self.qemu = self.vm.pid

    def _stop(self):
        self.vm.stop()
        self._forget_live_disk()

    def _forget_live_disk(self):
        """Forget the disk that was only plugged into a QEMU that has ended."""
        self.disks.pop(LIVE, None)
        self.vm.disks.pop(LIVE, None)

    def stop_and_start(self):
        self._stop()
        self._start()

    def pull_offline(self):
        self._stop()
        self.pull(self.random.choice(OFFLINE), *self.random.choice([(), (), ("--full",)]))
        if self.vm.active:
            raise Wrong("a domain that was off is on")
        self._start()

    def crash(self):
        """Flush what the guest wrote before the crash: the model has no lost writes."""
        self.vm.flush()
        self.vm.kill()
        self._forget_live_disk()
        self._start()

    def restart_daemon(self):
        self.bed.restart(hard=self.random.random() < 0.5)

    def restart_daemon_amid(self):
        """Restart the daemon during a pull: it succeeds, or fails and leaves nothing that the next one does not
        remove."""
        frozen = {target: bytes(content) for target, content in self.disks.items()}
        before = set(self._listed())
        process = self.start(*self.words("--max-rate", "4M"))
        time.sleep(self.random.random() * 2)
        self.restart_daemon()
        said = process.communicate(timeout=LIMIT)[1]
        if "Traceback" in said or "internal error" in said:
            raise Wrong(f"a traceback: {said}")
        self.counts[f"daemon restarted: {process.returncode}"] += 1
        self._note_new(before, frozen)
        if process.returncode:
            self._reclaim()
        self._require_nothing_left()

    def resize(self):
        disk = self.random.choice(sorted(self.disks))
        self._resize(disk, self._size())

    def shrink_and_grow(self):
        disk = self.random.choice(sorted(self.disks))
        size = len(self.disks[disk])
        self._resize(disk, max(SECTOR, size // 2 // SECTOR * SECTOR))
        self._resize(disk, size)

    def _resize(self, disk, size):
        try:
            self.vm.resize(disk, size)
        except (libvirt.libvirtError, BedError):  # QEMU resizes no image with a void bitmap
            self.counts["resize refused"] += 1
            return
        content = self.disks[disk]
        if size > len(content):
            # What a cluster holds past the disk's end is not cut off with it: it is there again, all else is zero.
            whole = -len(content) % CLUSTER
            tail = self.vm.content(disk)[len(content) : size][:whole]
            content = content + tail + bytes(size - len(content) - len(tail))
        self.disks[disk] = content[:size]

    # -- layers ---------------------------------------------------------------------------------------------------

    def _layered(self, some=True):
        """Return the targets of disks that have layers of ours, or may get one more; not the live disk: it goes with
        its QEMU."""
        return [target for target, disk in sorted(self.vm.disks.items())
                if target != LIVE and (disk.below if some else len(disk.below) < 3)]  # fmt: skip

    def snapshot(self):
        target = self.random.choice(self._layered(some=False) or [None])
        if target:
            self.vm.snapshot(target, f"layer{self.counts['snapshot']}")

    def commit(self):
        """Commit the layers. The lowest one may be larger than those above: then the disk is as large again."""
        for target in self._layered():
            self.vm.commit(target)
            held, content = self.vm.content(target), self.disks[target]
            if held[: len(content)] != content:
                raise Wrong(f"the bed: a commit changed {target}")
            self.disks[target], self.vm.disks[target].size = bytearray(held), len(held)

    def flatten(self):
        for target in self._layered()[:1]:
            self.vm.flatten(target)

    def move(self):
        target = self.random.choice([target for target in sorted(self.vm.disks) if target != LIVE])
        self.vm.move(target, self.folder / "images" / f"moved-{self.counts['move']}.qcow2")

    def keep(self):
        """Copy the image of a domain that is off, as an administrator does."""
        self._stop()
        target = self.random.choice(sorted(self.vm.disks))
        disk = self.vm.disks[target]
        if not disk.below:
            copy = self.folder / f"kept-{target}"
            shutil.copy(disk.path, copy)
            self.kept[target] = disk.path, copy, bytes(self.disks[target])
        self._start()

    def roll_back(self):
        """Put such a copy back, with the bitmaps that it had."""
        for target, (path, copy, content) in self.kept.items():
            disk = self.vm.disks.get(target)
            if disk and disk.path == path and not disk.below:
                self._stop()
                shutil.copy(copy, path)
                self.disks[target], disk.size = bytearray(content), len(content)
                self.counts["rolled back"] += 1
                return self._start()

    def foreign_checkpoint(self):
        if self.foreign and self.random.random() < 0.4:
            name, _ = self.foreign.popitem()
            if name in self.vm.checkpoints():
                try:
                    self.vm.delete_checkpoint(name)
                except libvirt.libvirtError:  # of a disk that was replaced
                    self.vm.domain.checkpointLookupByName(name).delete(2)
            return
        name = f"foreign{self.counts['foreign_checkpoint']}"
        self.vm.create_checkpoint(name)
        self.foreign[name] = {target: bytes(content) for target, content in self.disks.items()}

    def forget(self):
        """Lose a checkpoint of ours in libvirt, as in a migration; or delete it as an administrator."""
        ours = [name for name in self.vm.checkpoints() if name.startswith("nbdpull-")]
        if ours:
            try:
                self.vm.domain.checkpointLookupByName(self.random.choice(ours)).delete(self.random.choice([0, 2]))
            except libvirt.libvirtError:
                self.counts["deletion refused"] += 1

    def redefine(self):
        """Undefine the domain, with its checkpoints, and define it again, as when it moves to another host."""
        xml = self.vm.domain.XMLDesc(2 | 1)  # the one of the next start, with secrets
        self._stop()
        self.vm.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
        self.bed.connection().defineXML(xml)
        self._start()

    def rename(self):
        names = {self.own_name, f"{self.own_name}-b", f"{self.own_name}-c"}
        self._stop()
        self.vm.rename(self.random.choice(sorted(names - {self.vm.name})))
        self._start()

    def replug(self):
        """Replace a disk by another one: new image, other path."""
        self.vm.detach_disk("sdc")
        disk = self._new_disk("replug")
        self.vm.attach_disk("sdc", disk)
        self.disks["sdc"] = bytearray(disk.size)

    def plug_live(self):
        """Plug in or unplug a disk that no definition has."""
        if LIVE in self.disks:
            self.vm.detach_disk(LIVE, persistent=False)
            del self.disks[LIVE]
            return
        disk = self._new_disk("plug_live")
        self.vm.attach_disk(LIVE, disk, persistent=False)
        self.disks[LIVE] = bytearray(disk.size)

    def _new_disk(self, deed):
        size = self._size()
        image = self.folder / "images" / f"{deed}-{self.counts[deed]}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(size)], check=True)
        return Disk(size, path=image)


def torture(bed, seed, minutes, log=print, keep=False, points=0):
    """Run one seed; raise Wrong if a promise is broken. Return how often each operation was done and each reason came
    up, and how many points were made, which are at least so many."""
    folder = tempfile.mkdtemp(prefix="torture-", dir="/var/tmp")
    done = False
    run = Torture(bed, folder, seed, log)
    try:
        run.run(60 * minutes, points)
        done = True
    finally:
        run.close()
        if not done or keep:
            log(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    return run.counts, len(run.points)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--keep", action="store_true", help="keep store and images")
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.minutes:g} minutes", flush=True)
    with PrivateLibvirt() as bed:
        try:
            counts, points = torture(bed, args.seed, args.minutes, keep=args.keep)
        except (Wrong, BedError, errors.NbdpullError, subprocess.TimeoutExpired) as error:
            print(f"seed {args.seed}: {type(error).__name__}: {error}")
            return 1
    print(f"seed {args.seed}: {points} points, each restored to what the disks held")
    print("\n".join(f"{count:6} {name}" for name, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
