"""Pulls from the stub of KubeVirt by the command line, and what each point must restore to.

Owns: `Play`, in which the test creates the backups, as the manual asks a vendor to, and passes on their URLs. Must not
know: how nbdpull speaks to a cluster.
"""

import contextlib
from pathlib import Path

import pytest
from command import last_event, nbdpull, said
from kubevirt_stub import CLUSTER, GENERATIONS, Cluster
from witness import assert_same, points_of

SIZES = {"rootdisk": 20 * CLUSTER, "data": 5 * CLUSTER + 512}
VM = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "vm1"}
QUICK = ("--stall-timeout", "1s")  # how long a server may make no progress


def rotating(cases, name):
    """Parametrize a test with cases, each on the next generation: faults have the same effect in all of them."""
    pairs = [([*GENERATIONS][number % len(GENERATIONS)], case) for number, case in enumerate(cases)]
    ids = [f"{generation}, {_shown(case)}" for generation, case in pairs]
    return pytest.mark.parametrize(("every", name), pairs, indirect=["every"], ids=ids)


def _shown(case):
    return ", ".join(case) if isinstance(case, tuple) else getattr(case, "__name__", case)


@contextlib.contextmanager
def playing(kind, tmp_path_factory):
    """Give {generation: a play that is continued from test to test}; kind: Play, or a subclass."""
    with contextlib.ExitStack() as stack:
        folders = {generation: tmp_path_factory.mktemp(generation) for generation in GENERATIONS}
        yield {each: kind(stack.enter_context(Cluster(each, at)), at) for each, at in folders.items()}


class Play:
    """A VM of a cluster, and a store. frozen[point id][disk] are bytes; result is the last run's result object."""

    def __init__(self, cluster, folder, sizes=SIZES):
        self.cluster, self.folder = cluster, Path(folder)
        self.store = self.folder / "store"
        self.vm = cluster.add_vm("ns1", "vm1", sizes)
        self.frozen = {}
        self.result = {}
        self.checkpoint = None  # of the newest point
        self.prepare()

    def prepare(self):
        self.number = 0
        self.cluster.create("VirtualMachineBackupTracker", "ns1", "t", spec={"source": VM})
        self.cluster.create("Secret", "ns1", "theirs", data={"token": "c2VjcmV0"})
        self.token, self.ca = self.folder / "token", self.folder / "ca"
        self.token.write_text("secret\n")
        self.token.chmod(0o600)

    def clear(self):
        """Remove all faults, for the next test."""
        self.faults.clear()
        self.vm.running = True
        self.cluster.complaints.clear()

    @property
    def faults(self):
        return self.cluster.faults

    @property
    def base(self):
        """The checkpoint that the tracker records."""
        return self.cluster.trackers.get("t")

    def disk(self, name="rootdisk"):
        return self.vm.disks[name]

    def content(self):
        return {name: disk.read() for name, disk in self.vm.disks.items()}

    # -- runs

    def run(self, *options):
        with self.backup() as words:
            return nbdpull(*words, *options)

    @contextlib.contextmanager
    def backup(self):
        """Give the command line that reads a ready backup. It is full unless the tracker records our last point's
        checkpoint."""
        self.number += 1
        name, forced, base = f"b{self.number}", self.base != self.checkpoint, self.base
        self.cluster.start_backup("ns1", name, "t", forceFullBackup=forced)
        kind, cert, urls = self.cluster.ready("ns1", name)
        self.ca.write_text(cert)
        yield self.words(name, kind, base, urls)
        if name in self.cluster.backups:
            self.cluster.end_backup("ns1", name)

    def words(self, name, kind, base, urls):
        words = ["pull", "kubevirt:ns1/vm1", "-o", self.store, "--json", "--type", kind.lower(), "--ca", self.ca]
        words += ["--token-file", self.token, *QUICK]
        words += ["--checkpoint", self.cluster.status("ns1", name)["checkpointName"]]
        words += ["--since", base] if kind == "Incremental" else []
        for volume, (at_map, at_data) in urls.items():
            words += ["--http-map", f"{volume}={at_map}", "--http-data", f"{volume}={at_data}"]
        return words

    def pull(self, *options):
        """Make a point, which has to succeed; return {disk: its mode}."""
        before = self.content()
        return self.made(self.run(*options), before)

    def made(self, done, before):
        assert done.returncode == 0, done.stderr + done.stdout
        assert self.cluster.complaints == []
        self.result = last_event(done.stdout)
        point = self.result["details"]
        self.frozen[point["id"]] = before
        self.checkpoint = point["checkpoint"]
        self.assert_nothing_left()
        assert self.checkpoint in self.cluster.trackers.values()
        return {disk["name"]: disk["mode"] for disk in point["disks"]}

    def attempt(self, *options):
        """Try to make a point; return whether it was made. A failure prints one line, also in the result, and leaves
        nothing."""
        before, points = self.content(), points_of(self.store)
        done = self.run(*options)
        if done.returncode == 0:
            self.made(done, before)
        else:
            self.assert_failed(done)
            assert points_of(self.store) == points
        return done.returncode == 0

    def assert_failed(self, done):
        self.result = last_event(done.stdout)
        assert (self.result["ok"], self.result["exit_code"]) == (False, done.returncode)
        assert done.returncode != 1, done.stderr
        assert done.stderr.splitlines()[-1] == f"nbdpull: {self.result['message']}"
        assert "Traceback" not in done.stderr and self.result["left_behind"] == []
        self.assert_nothing_left()

    def assert_nothing_left(self):
        """Require that the cluster has no remains; here a run cannot leave any, as the test owns the backups."""

    # -- points

    def restored(self, point="latest"):
        out = self.folder / "restored"
        said("restore", self.store, "-o", out, "--point", point, "--format", "raw", "--quiet")
        found = {image.stem: image.read_bytes() for image in out.glob("*.raw")}
        for image in [*out.iterdir()]:
            image.unlink()
        return found

    def assert_restores(self, *points):
        """Require that these points (by default all) restore to what the disks contained."""
        for point in points or self.frozen:
            assert_same(self.restored(point), self.frozen[point], point)

    def assert_restores_last(self):
        self.assert_restores([*self.frozen][-1])

    def assert_right_or_nothing(self):
        """Require of a run a point that restores, or a failure that leaves nothing."""
        if self.attempt():
            self.assert_restores_last()

    def change(self, chance):
        """Let the guest change something, anywhere."""
        disk = self.disk(chance.choice([*self.vm.disks]))
        offset, stop = sorted(chance.sample(range(disk.size // 512 + 1), 2))
        offset, length = offset * 512, min((stop - offset) * 512, 3 * CLUSTER)
        how = chance.choice([disk.write, disk.write, disk.zero, disk.discard])
        how(offset, chance.randbytes(length) if how == disk.write else length)
