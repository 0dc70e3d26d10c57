"""Any sequence of guest writes and pulls: every point restores to what a model in memory has, and so does every change.

Owns: the model (a byte array for each disk, a copy of it for each point and each checkpoint) and the choice of steps.
NBDPULL_SEED=n plays another sequence, NBDPULL_SECONDS=n plays longer. Must not know: how points are stored.

The pulls run in this process, so that one can be made to fail at an exact place, and many fit into the time.
"""

import os
import random
import time
from unittest import mock

import pytest
from bed.machine import MIB, Disk
from witness import CLUSTER, KIB, Before, Witness, assert_same

from nbdpull.core import errors
from nbdpull.operations import pull
from nbdpull.repository import new_point
from nbdpull.storage.directory import DirectoryStore, DirectoryWriter

libvirt = pytest.importorskip("libvirt")

ENOUGH = 5  # pulls, where the machine is slow
SECONDS = float(os.environ.get("NBDPULL_SECONDS", "8"))
CLUSTER_SIZES = {  # by options of the image
    "cluster_size=65536": CLUSTER,
    "cluster_size=4096": 4096,
    "cluster_size=512": 512,
    "cluster_size=2M": 2 * MIB,
    "extended_l2=on": CLUSTER,
}
ALIGNMENTS = (1, 512, 4096, CLUSTER)


class Sabotage(errors.NbdpullError):
    """The error with which a failing pull of this test fails."""


@pytest.mark.timeout_seconds(int(SECONDS) + 120)
def test_any_sequence_of_writes_and_pulls(machine, tmp_path):
    seed = int(os.environ.get("NBDPULL_SEED", "1"))
    print(f"NBDPULL_SEED={seed}")
    chance = random.Random(seed)
    sizes = {disk: chance.randrange(CLUSTER, 3 * MIB) // 512 * 512 for disk in ("vda", "vdb")}
    disks = {disk: Disk(size, options=chance.choice(list(CLUSTER_SIZES))) for disk, size in sizes.items()}
    print({disk: (each.size, each.options) for disk, each in disks.items()})
    play = Play(machine(disks), tmp_path / "play", chance)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until or play.pulls < ENOUGH or not play.whole:
        play.step()
    play.check_everything()


class Play:
    """A VM and its model, and the steps that change both in the same way."""

    def __init__(self, vm, folder, chance):
        self.vm, self.chance = vm, chance
        self.witness = Witness(vm, folder)
        self.model = {disk: bytearray(each.size) for disk, each in vm.disks.items()}
        self.at = {}  # what the disks held when each checkpoint that still exists was made
        self.made_with = {}  # the point that was made with a checkpoint
        self.whole = set()  # points that can be restored: whose chains begin with full pulls
        self.names = 0
        self.pulls = 0

    def step(self):
        weights = {
            self.write: 10, self.write_zeroes: 6, self.discard: 6, self.discard_within_clusters: 1, self.restart: 0.5,
            self.pull: 6, self.failing_pull: 3, self.foreign_checkpoint: 1, self.delete_checkpoint: 1,
        }  # fmt: skip
        chosen = self.chance.choices(list(weights), list(weights.values()))[0]
        chosen()

    # -- the guest

    def place(self):
        """Choose a disk, and a range of it."""
        disk = self.chance.choice(list(self.model))
        return disk, *self.range(disk, self.chance.choice(ALIGNMENTS))

    def range(self, disk, alignment):
        size = len(self.model[disk])
        offset = self.chance.randrange(size) // alignment * alignment
        longest = self.chance.choice([alignment, 8 * KIB, CLUSTER, 300 * KIB, 2 * MIB])
        length = max(alignment, self.chance.randrange(1, longest + 1) // alignment * alignment)
        return offset, min(length, size - offset)

    def write(self):
        disk, offset, length = self.place()
        if self.chance.random() < 0.5:
            pattern = self.chance.randrange(256)  # 0 too: data that reads as zero
            self.vm.write(disk, offset, length, pattern)
            data = bytes([pattern]) * length
        else:
            data = self.chance.randbytes(length)
            self.vm.write_bytes(disk, offset, data)
        self.model[disk][offset : offset + length] = data

    def write_zeroes(self):
        disk, offset, length = self.place()
        self.vm.write_zeroes(disk, offset, length, unmap=self.chance.random() < 0.5)
        self.model[disk][offset : offset + length] = bytes(length)

    def discard(self):
        """Discard whole clusters, whose content is zero then."""
        disk = self.chance.choice(list(self.model))
        offset, length = self.range(disk, CLUSTER_SIZES[self.vm.disks[disk].options])
        self.vm.discard(disk, offset, length)
        self.model[disk][offset : offset + length] = bytes(length)

    def discard_within_clusters(self):
        """Discard parts of clusters: the image decides whether each byte is kept or zero."""
        disk = self.chance.choice(list(self.model))
        offset, length = self.range(disk, 512)
        self.vm.discard(disk, offset, length)
        now, before = self.vm.content(disk), self.model[disk]
        assert now[:offset] == before[:offset] and now[offset + length :] == before[offset + length :]
        assert all(n in (0, b) for n, b in zip(now[offset : offset + length], before[offset : offset + length]))
        self.model[disk][:] = now

    def restart(self):
        self.vm.stop()
        self.vm.start()

    def held(self):
        return {disk: bytes(content) for disk, content in self.model.items()}

    # -- checkpoints

    def new_name(self):
        self.names += 1
        return f"mine{self.names}"

    def foreign_checkpoint(self):
        name = self.new_name()
        self.vm.create_checkpoint(name)
        self.at[name] = self.held()

    def delete_checkpoint(self):
        if self.at:
            self.forget(self.chance.choice(list(self.at)))

    def forget(self, name):
        self.vm.delete_checkpoint(name)
        del self.at[name]

    # -- pulls

    def request(self):
        """Return any valid request."""
        options = {}
        if self.chance.random() < 0.2:
            options["full"] = True
        elif self.at and self.chance.random() < 0.3:
            options["since"] = self.chance.choice(list(self.at))
        if self.chance.random() < 0.2:
            options["checkpoint"] = self.new_name()
        elif self.chance.random() < 0.2:
            options["make_checkpoint"] = False
        if self.chance.random() < 0.2:
            options["disks"] = [self.chance.choice(list(self.model))]
        return {**options, "threads": self.chance.choice([1, 3]), "frame_size": self.chance.choice([64 * KIB, MIB])}

    def run(self, options, report=lambda **event: None, check=lambda: None):
        options = {"scratch_dir": str(self.witness.scratch), "uri": self.vm.bed.uri, **options}
        return pull.pull(pull.Options(self.vm.name, str(self.witness.store), **options), report, check)

    def pull(self):
        options, held = self.request(), self.held()
        writes = [self.write] * self.chance.randrange(3)  # during the pull: they are of the next point

        def report(event, **_):
            if event == "progress":
                while writes:
                    writes.pop()()

        result = self.run(options, report)
        manifest = result.point.manifest
        print(f"{result.point.id} {options} since {manifest.since} parent {manifest.parent and manifest.parent.point}"
              f" {[(disk.name, disk.mode, disk.reason) for disk in manifest.disks]}")  # fmt: skip
        self.pulls += 1
        self.check(options, manifest, held)
        for name in result.dropped_checkpoints:
            del self.at[name]
        if manifest.checkpoint:
            self.at[manifest.checkpoint.name] = held
            self.made_with[manifest.checkpoint.name] = manifest.point
        assert set(self.vm.checkpoints()) == set(self.at)

    def check(self, options, manifest, held):
        point = manifest.point
        self.witness.frozen[point] = {disk.name: held[disk.name] for disk in manifest.disks}
        parent = manifest.parent and manifest.parent.point
        if parent in self.whole or all(disk.mode == "full" for disk in manifest.disks):
            self.whole.add(point)
            self.witness.assert_restores(point)
        if "since" in options:  # unless it covers none of the disks
            covers = any(disk.mode == "incremental" for disk in manifest.disks)
            assert manifest.since == (options["since"] if covers else None)
            assert parent in (None, self.made_with.get(options["since"]))
        for disk in manifest.disks:  # the change by itself, on what the disk was at its base
            base = self.at[manifest.since][disk.name] if disk.mode == "incremental" else b""
            changed = self.witness.change(point, disk.name, base)
            assert_same({disk.name: changed}, {disk.name: held[disk.name]}, point)

    def failing_pull(self):
        """Whatever fails, and wherever: nothing is left, and the next pull is right."""
        before = Before(self.witness)
        failure = self.chance.choice([self.stopped, self.job_taken_away, self.output_full, self.refused])
        try:
            failure({**self.request(), "full": True, "since": None})
        except errors.NbdpullError as error:
            print(f"failed as it should: {failure.__name__}: {error}")
            assert error.left_behind == ()
            before.assert_same()
            return
        raise AssertionError(f"{failure.__name__} did not fail")

    def stopped(self, options):
        """Stop the pull before the start of the job, before the first read, or after some."""
        when = self.chance.choice(["start", "check", "progress"])

        def stop(event="check"):
            if event == when:
                raise Sabotage(f"stopped at {when}")

        self.run(options, lambda event, **_: stop(event), stop)

    def job_taken_away(self, options):
        """End the job as somebody else, when every connection is made: QEMU 7.2 of Debian 12 hangs forever in
        nbd-server-stop if a client is in the middle of its handshake. With one disk and one thread, none is after the
        first read."""
        taken = []

        def report(event, **_):
            if event == "progress" and not taken:
                taken.append(self.vm.domain.abortJob())

        self.run({**options, "threads": 1, "disks": [self.chance.choice(list(self.model))]}, report)

    def output_full(self, options):
        """Fail at one of the files of the point, or when all of them are written and the job has ended."""
        full = errors.OutputFull("no space left on the device of this test")
        calls = [(DirectoryWriter, "write"), (DirectoryWriter, "seal"), (new_point.NewPoint, "commit")]
        place, name = self.chance.choice([*calls, (DirectoryStore, "sync_folder")])
        left = [self.chance.randrange(4) if place is DirectoryWriter else 0]
        real = getattr(place, name)

        def limited(*args):
            if name == "sync_folder" and not args[1].count("/"):  # of the store and of the series, not of the point
                return real(*args)
            left[0] -= 1
            if left[0] < 0:
                raise full
            return real(*args)

        with mock.patch.object(place, name, limited):
            self.run(options)

    def refused(self, options):
        wrong = [{"full": False, "since": "nothing"}, {"disks": ["vdz"]}, {"scratch_dir": "/nowhere"},
                 {"socket": "/nowhere/socket"}]  # fmt: skip
        wrong += [{"checkpoint": name, "make_checkpoint": True} for name in list(self.at)[:1]]
        self.run({**options, **self.chance.choice(wrong)})

    # -- the end

    def check_everything(self):
        """Check all chains, after everything that later pulls may do to the store."""
        assert_same(self.witness.content(), self.held(), "the model itself")
        self.witness.assert_restores(*sorted(self.whole))
        self.witness.assert_verified()
        assert {point["id"] for point in self.witness.points()} == set(self.witness.frozen)
        print(f"{self.pulls} points, {len(self.whole)} of them whole")
