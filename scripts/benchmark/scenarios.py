"""What is measured: each scenario makes its disk and yields, for each round, the cost of every tool in turn.

Owns: the scenarios by name, and what each compares. Must not know: how a table is printed.

A scenario yields (tool, Cost). "limit …" rows are not tools: they say what this machine could do at best. Those of
years.py and buckets.py yield (what, Figure).
"""

import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import buckets
import disks
import guest_view
import limits
import measure
import serving
import tools
import years
from bed.guest import Guest, build
from bed.libvirtd import cache_folder
from bed.machine import MIB, Disk, Machine
from boot import until_agent

from nbdpull.hypervisor import backup_spec, domain

IDLE = 10.0  # seconds that the guest is looked at without a backup
BASE = "virtnbdbackup.0"  # checkpoint that the incremental runs start from, named as the peer names it


def fresh(path):
    """Return the path, with nothing there."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    return path


class Setting:
    """The bed, a directory for the runs, and the size of the disks."""

    def __init__(self, bed, folder, scale, threads=None):
        self.bed, self.folder, self.scale = bed, Path(folder), scale
        self.size = int(8 * disks.GIB * scale) & ~(MIB - 1)
        self.content = int(4_000_000_000 * scale)
        self.cache = cache_folder() / "bench"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log"
        self.options = ["--threads", str(threads)] if threads else []

    @contextmanager
    def machine(self, image):
        folder = self.folder / "machine"
        with Machine(self.bed, folder, {"vda": Disk(path=image)}) as vm:
            yield vm
        shutil.rmtree(folder)

    def files_disk(self):
        """Make a private copy of the disk of real files."""
        return disks.copy(disks.real_files(self.cache, self.size, self.content), self.fresh("vda.qcow2"))

    def fresh(self, name):
        return fresh(self.folder / name)

    def run(self, command, vm=None, output=None):
        os.sync()  # what the run before left to write is not this one's to wait for
        return measure.run(command, vm and vm.pid, output, self.log, tools.environment())

    def pull(self, vm, *options, output=None):
        """Return the Cost of one nbdpull into a new store."""
        output = output or self.fresh("store")
        return self.run(self.pull_command(vm, output, *options), vm, output)

    def pull_command(self, vm, output, *options):
        return tools.nbdpull(vm.name, "-c", self.bed.uri, "-o", output, "--quiet", *self.options, *options)

    @contextmanager
    def export(self, vm, base=None, disk="vda"):
        """Give a backup job of our own, for tools that read an export."""
        plan = backup_spec.BackupSpec(run_id=f"bench-{os.getpid()}", disks={disk: base})
        with domain.open(vm.name, self.bed.uri) as opened, opened.backups.begun(plan) as job:
            yield job
            job.finish()

    def read_export(self, vm, command, *output):
        """Return the Cost of a tool that reads the export of vda; command(URI, the output if there is one)."""
        with self.export(vm) as job:
            return self.run(command(tools.export_uri(job.socket, job.exports["vda"].name), *output), vm, *output)


def full(setting, rounds):
    """Everything of a disk with real files."""
    with setting.machine(setting.files_disk()) as vm:
        for tool, cost in _full_rounds(setting, vm, rounds):
            yield tool, cost
            if tool == "nbdpull":
                yield from _other_readers(setting, vm)


def _other_readers(setting, vm):
    """Measure programs that read an export, and the limits; the newest store must be that of a full pull."""
    read = setting.read_export(vm, tools.nbdcopy_to_null)
    yield "limit: nbdcopy to null", read
    yield from limits.packing(setting, read)
    for tool, command in (("nbdcopy | zstd -1", tools.nbdcopy_zstd), ("qemu-img convert -c", tools.qemu_img_zstd)):
        yield tool, setting.read_export(vm, command, setting.fresh("peer"))


def _full_rounds(setting, vm, rounds):
    for _ in range(rounds):
        yield "nbdpull", setting.pull(vm, "--full", "--no-checkpoint")
        if tools.has_peer():
            output = setting.fresh("peer")
            yield "virtnbdbackup -z", setting.run(tools.peer_backup(vm, "copy", output), vm, output)


@contextmanager
def _dirty(setting, lines=(), image=None):
    """Give a machine (of real files, or of `image`) on which the qemu-io lines were written since the checkpoint BASE.

    If the peer is measured, its own full backup makes that checkpoint: it refuses to run beside any other.
    """
    with setting.machine(image or setting.files_disk()) as vm:
        if tools.has_peer():
            setting.run(tools.peer_backup(vm, "full", setting.fresh("peer-base")), vm)
        else:
            vm.create_checkpoint(BASE)
        vm.stop()
        vm.write_offline("vda", lines)
        vm.start()
        yield vm


def _incremental(setting, rounds, lines=(), image=None, limit=False):
    """Measure an incremental pull. limit: whether to measure the same reads to nothing, too."""
    with _dirty(setting, lines, image) as vm:
        for tool, cost in _incremental_rounds(setting, vm, rounds):
            yield tool, cost
            if limit and tool == "nbdpull":
                yield "limit: its reads + 0.4 s", limits.same_reads(setting, vm, BASE)


def _incremental_rounds(setting, vm, rounds):
    """Pull the same dirty blocks repeatedly: the checkpoint that a run makes is deleted after it."""
    for _ in range(rounds):
        yield "nbdpull", setting.pull(vm, "--since", BASE, "--no-checkpoint")
        if tools.has_peer():
            output = setting.fresh("peer")
            shutil.copytree(setting.folder / "peer-base", output)
            before = measure.size_of(output)
            cost = setting.run(tools.peer_backup(vm, "inc", output), vm, output)
            yield "virtnbdbackup -z", replace(cost, size=cost.size - before)
            vm.delete_checkpoint("virtnbdbackup.1")


def _random_writes(setting):
    return disks.random_writes(setting.size, int(10_000 * setting.scale), 1 << 16)


def incremental_random(setting, rounds):
    """10,000 random writes of 64 KiB since the full pull."""
    yield from _incremental(setting, rounds, _random_writes(setting), limit=True)


def incremental_sequential(setting, rounds):
    """One run of 600 MiB since the full pull."""
    lines = (f"write -q -P {1 + i % 255} {(i + 64) * MIB} {MIB}" for i in range(int(600 * setting.scale)))
    yield from _incremental(setting, rounds, lines, limit=True)


def nothing(setting, rounds):
    """Nothing dirty since the full pull."""
    yield from _incremental(setting, rounds)


def restore(setting, rounds):
    """A chain of a full and an incremental pull, to qcow2."""
    if tools.has_peer():
        with _dirty(setting, _random_writes(setting)) as vm:
            setting.run(tools.peer_backup(vm, "inc", setting.folder / "peer-base"), vm)
    with setting.machine(setting.files_disk()) as vm:
        store = setting.fresh("store")
        setting.pull(vm, "--full", output=store)
        vm.stop()
        vm.write_offline("vda", _random_writes(setting))
        vm.start()
        setting.pull(vm, output=store)
    for _ in range(rounds):
        output = setting.fresh("restored")
        command = tools.nbdpull("restore", store, "-o", output, "--quiet", *setting.options)
        cost = setting.run(command, output=output)
        yield "nbdpull", replace(cost, data=cost.size)
        yield "limit: zstd -d and write", _write_limit(setting, store, output / "vda.qcow2")
        if tools.has_peer():
            output = setting.fresh("restored")
            command = tools.peer_restore(setting.bed.uri, setting.folder / "peer-base", output)
            yield "virtnbdrestore", setting.run(command, output=output)


def _write_limit(setting, store, image):
    """The restored bytes written to a new file and synced; or, if that takes longer, the CPU time of this and of
    `zstd -d` over all frames of the chain, shared by all cores."""
    written = setting.run(tools.synced_copy(image, setting.fresh("copy")), output=setting.folder / "copy")
    cpu = _unpacked(setting, store).cpu + written.cpu
    return replace(written, wall=max(written.wall, cpu / os.cpu_count()), cpu=cpu, data=written.size)


def _unpacked(setting, store):
    """Return the Cost of `zstd -d` over all frames of a store, with one thread."""
    return setting.run(["sh", "-c", f"exec zstd -q -dc {' '.join(map(str, Path(store).rglob('*.zst')))} > /dev/null"])


def verify(setting, rounds):
    """Every frame of a full pull. The limit is what zstd -d alone would take on all cores."""
    with setting.machine(setting.files_disk()) as vm:
        store = setting.fresh("base")
        setting.pull(vm, "--full", "--no-checkpoint", output=store)
    for _ in range(rounds):
        cost = setting.run(tools.nbdpull("verify", store, "--json", "--no-record"))
        data = json.loads(setting.log.read_text().splitlines()[-1])["raw_bytes"]
        yield "nbdpull", replace(cost, data=data)
        unpacked = _unpacked(setting, store)
        yield "limit: zstd -d", replace(unpacked, wall=unpacked.cpu / os.cpu_count(), data=data)


def incompressible(setting, rounds):
    """Everything of a disk of random bytes."""
    image = disks.of_bytes(setting.fresh("vda.qcow2"), setting.size // 4)
    with setting.machine(image) as vm:
        yield from _full_rounds(setting, vm, rounds)


def expose(setting, rounds):
    """Everything of a disk of random bytes over HTTP by curl, by TCP and by a unix socket, and from the same job by
    nbdcopy, to nothing."""
    size = setting.size // 4
    image = disks.of_bytes(setting.fresh("vda.qcow2"), size)
    with setting.machine(image) as vm:
        for tool, path in (("nbdpull", None), ("by unix socket", setting.fresh("http.sock"))):
            with serving.exposed(vm, setting, path) as (curl, pid, uri):
                for _ in range(rounds):
                    before = measure.cpu_of(pid)
                    cost = setting.run(curl, vm)
                    yield tool, replace(cost, cpu=cost.cpu + measure.cpu_of(pid) - before, data=size)
                    yield "nbdcopy", replace(setting.run(tools.nbdcopy_to_null(uri), vm), data=size)


def api(setting, rounds):
    """A sink in Python that drops a disk of random bytes, and the program's own pull of it to a store of nothing."""
    image = disks.of_bytes(setting.fresh("vda.qcow2"), setting.size // 4)
    with setting.machine(image) as vm:
        options = (vm.name, "-c", setting.bed.uri, "-o", setting.folder / "store", "--no-checkpoint", "--quiet")
        for _ in range(rounds):
            yield "nbdpull", setting.run(tools.to_nothing("api", vm.name, setting.bed.uri), vm)
            setting.fresh("store")
            yield "pull to nothing", setting.run(tools.to_nothing("pull", *options), vm)


def zeros(setting, rounds):
    """100 GiB of dirty zeroes, as a guest's fstrim leaves them."""
    size = int(100 * disks.GIB * setting.scale)
    lines = (f"write -q -z -u {start} {min(disks.GIB, size - start)}" for start in range(0, size, disks.GIB))
    yield from _incremental(setting, rounds, lines, disks.empty(setting.fresh("vda.qcow2"), size))


def fragmented(setting, rounds):
    """1.6 million extents: 64 KiB of zeroes dirty in every 192 KiB of 300 GB. The limit is QEMU's own map of it."""
    count = int(1_600_000 * setting.scale)
    lines = (f"write -q -z {192 * i}k 64k" for i in range(count))
    image = disks.empty(setting.fresh("vda.qcow2"), count * 192 * 1024)
    with _dirty(setting, lines, image) as vm:
        yield from _incremental_rounds(setting, vm, rounds)
        for _ in range(rounds):
            with setting.export(vm, BASE) as job:
                export = job.exports["vda"]
                for context in ("base:allocation", f"qemu:dirty-bitmap:{export.bitmap}"):
                    command = tools.nbdinfo_map(tools.export_uri(job.socket, export.name), context)
                    yield f"limit: nbdinfo {context.partition(':')[0]}", setting.run(command, vm)


def fragmented_data(setting, rounds):
    """64 KiB of data dirty in every 192 KiB of 8 GiB."""
    lines = (f"write -q -P {1 + i % 255} {192 * i}k 64k" for i in range(setting.size // (192 * 1024)))
    yield from _incremental(setting, rounds, lines, disks.empty(setting.fresh("vda.qcow2"), setting.size), limit=True)


def huge_sparse(setting, rounds):
    """A few scattered writes on a disk of 16 TiB."""
    size = int(16 * setting.scale * (1 << 40)) & ~(MIB - 1)
    lines = (f"write -q -P 7 {i * (size // 20)} 1M" for i in range(20))
    yield from _incremental(setting, rounds, lines, disks.empty(setting.fresh("vda.qcow2"), size))


def many_small_disks(setting, rounds):
    """Twelve disks with 64 MiB of data each."""
    size, names = int(64 * MIB * setting.scale), [f"vd{letter}" for letter in "abcdefghijkl"]
    images = {name: Disk(path=disks.of_bytes(setting.fresh(f"{name}.qcow2"), size)) for name in names}
    with Machine(setting.bed, setting.folder / "machine", images) as vm:
        yield from _full_rounds(setting, vm, rounds)


def chain(setting, rounds):
    """Restore of a full point with thirty incremental ones, to raw, and of that full point alone."""
    stores = {}
    for length in (1, 31):
        with setting.machine(setting.files_disk()) as vm:
            stores[length] = setting.fresh(f"store-{length}")
            for step in range(length):
                vm.stop()
                vm.write_offline("vda", disks.random_writes(setting.size, int(300 * setting.scale), 1 << 16, seed=step))
                vm.start()
                setting.pull(vm, output=stores[length])
    for _ in range(rounds):
        for length, tool in ((31, "nbdpull"), (1, "chain of 1")):
            output = setting.fresh("restored")
            command = tools.nbdpull(
                "restore", stores[length], "-o", output, "--format", "raw", "--quiet", *setting.options
            )
            yield tool, setting.run(command, output=output)


def serve_first_byte(setting, rounds):
    """From the command line to the first sector that a client has, seconds; at the newest point of a chain of 30."""
    return _served(setting, rounds, serving.first_byte, kinds=("nbdpull",))


def serve_sequential(setting, rounds):
    """The whole disk copied to nothing by nbdcopy."""
    return _served(setting, rounds, lambda uri, started: serving.sequential(uri, setting.log, _size_served(setting)))


def serve_random(setting, rounds):
    """1000 reads of 4 KiB at random offsets, one after the other."""
    return _served(setting, rounds, lambda uri, started: serving.at_random(uri, setting.size))


def _served(setting, rounds, use, kinds=serving.KINDS):
    """Serve everything in the directory of _to_serve, each with its server."""
    folder = _to_serve(setting)
    for _ in range(rounds):
        for tool, command in serving.commands(folder).items():
            if tool in kinds:
                os.sync()
                started = time.monotonic()
                with serving.server(command, tools.environment()) as uri:
                    yield tool, use(uri, started)


def _to_serve(setting):
    """Return a directory with a chain of 30, a full pull of the same content, and images of it; made once for all
    scenarios."""
    folder = setting.folder / "served"
    if folder.exists():
        return folder
    folder.mkdir()
    with setting.machine(setting.files_disk()) as vm:
        for step in range(30):
            vm.stop()
            vm.write_offline("vda", disks.random_writes(setting.size, int(300 * setting.scale), 1 << 16, seed=step))
            vm.start()
            setting.pull(vm, output=folder / "chained")
        setting.pull(vm, "--full", "--no-checkpoint", output=folder / "full")
    for kind in ("raw", "qcow2"):
        setting.run(tools.nbdpull("restore", folder / "full", "-o", folder / kind, "--format", kind, "--quiet"))
    return folder


def _size_served(setting):
    return measure.size_of(_to_serve(setting) / "raw")


def boot(setting, rounds):
    """From the command line to the first answer of the guest's agent, seconds: over a served point, over a local qcow2
    of it, and over one that is restored first."""
    parts, store, local = build(cache_folder()), setting.fresh("store"), setting.fresh("local")
    with Guest(setting.bed, setting.fresh("guest"), parts) as vm:
        vm.wait_agent()
        setting.pull(vm, "--full", "--no-checkpoint", output=store)
    setting.run(tools.nbdpull("restore", store, "-o", local, "--quiet"))
    for _ in range(rounds):
        started = time.monotonic()
        with serving.server((tools.nbdpull("serve", store, "--json"), None), tools.environment()) as uri:
            yield "nbdpull", until_agent(setting, parts, "raw", uri, started)
        yield "local qcow2", until_agent(setting, parts, "qcow2", local / "vda.qcow2", time.monotonic())
        restored, started = setting.fresh("restored"), time.monotonic()
        setting.run(tools.nbdpull("restore", store, "-o", restored, "--quiet"))
        yield "nbdpull restore, then boot", until_agent(setting, parts, "qcow2", restored / "vda.qcow2", started)


def guest(setting, rounds):
    """What a writer in a Linux guest feels during a full pull: 4 KiB writes one after the other, all over the disk."""
    yield from _felt(setting, rounds, setting.folder)


def harm(setting, rounds):
    """The same with the stores in memory: what a backup costs the guest that does not go to the guest's own disk."""
    with tempfile.TemporaryDirectory(prefix="nbdpull-bench-", dir=measure.MEMORY) as stores:
        yield from _felt(setting, rounds, Path(stores))


def _felt(setting, rounds, stores):
    """Measure what a writer experiences during each backup. stores: the directory where backups are written."""
    parts = build(cache_folder())
    with Guest(setting.bed, setting.fresh("guest"), parts, {"vdb": Disk(path=setting.files_disk())}) as vm:
        vm.wait_agent()
        vm.run("umount /mnt2")
        for _ in range(rounds):
            yield "no backup", guest_view.during(vm, "vdb", lambda: time.sleep(IDLE))
            yield "limit: a job, no reader", guest_view.during(vm, "vdb", lambda: _job_without_reader(setting, vm))
            for tool, work in _backups(setting, vm, stores):
                yield tool, guest_view.during(vm, "vdb", work)
            if not tools.has_peer():
                yield "nbdcopy to null", guest_view.during(vm, "vdb", lambda: _only_read(setting, vm))


def _job_without_reader(setting, vm):
    """Measure the cost of QEMU's copying before each first write: no tool that pulls can avoid it."""
    with setting.export(vm, disk="vdb"):
        time.sleep(IDLE)


def _only_read(setting, vm):
    """Measure what only reading costs the guest, in the place of a peer."""
    with setting.export(vm, disk="vdb") as job:
        setting.run(tools.nbdcopy_to_null(tools.export_uri(job.socket, job.exports["vdb"].name)))


def _backups(setting, vm, stores):
    """Return (tool, its full backup as a function) of each, to a new directory. The peer leaves its writes in the page
    cache, which the guest feels later: so it is measured again with a sync, which nbdpull does itself."""
    for tool, options in (("nbdpull", []), ("nbdpull --gentle", ["--gentle"])):
        command = setting.pull_command(vm, fresh(stores / "store"), "--full", "--no-checkpoint", *options)
        yield tool, partial(setting.run, command)
    if tools.has_peer():
        for tool, run in (("virtnbdbackup -z", setting.run), ("virtnbdbackup -z; sync", partial(_synced, setting))):
            command = tools.peer_backup(vm, "copy", fresh(stores / "peer"))
            yield tool, partial(run, command)


def _synced(setting, command):
    setting.run(command)
    os.sync()


def start_up(setting, rounds):
    """`nbdpull --version`."""
    for _ in range(rounds):
        yield "nbdpull", setting.run(tools.nbdpull("--version"))


SCENARIOS = {
    "full": full,
    "incremental-random": incremental_random,
    "incremental-sequential": incremental_sequential,
    "nothing-dirty": nothing,
    "zeros": zeros,
    "fragmented": fragmented,
    "fragmented-data": fragmented_data,
    "huge-sparse": huge_sparse,
    "incompressible": incompressible,
    "many-small-disks": many_small_disks,
    "chain": chain,
    "restore": restore,
    "verify": verify,
    "serve-first-byte": serve_first_byte,
    "serve-sequential": serve_sequential,
    "serve-random": serve_random,
    "expose": expose,
    "api": api,
    "boot": boot,
    "guest": guest,
    "harm": harm,
    "start-up": start_up,
    "s3": buckets.s3,
    **years.ROWS,
}
