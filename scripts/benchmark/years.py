"""The cost of keeping backups for years: the rows of the figures with a goal, each a scenario.

Owns: what is measured for each, and its limit. Must not know: how a table is printed.

A row yields (what, Figure). If it needs a VM, the VM is a real one, and so are the measured pulls; older points, and
what only reads a store, come from pretend.py, made by the package's own engine. Under load, trust the ratios of CPU
times most.
"""

import os
import random
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Optional

import disks
import measure
import pretend
import serving
import tools
from bed.machine import MIB, Disk, Machine

from nbdpull.core import file_system
from nbdpull.format import stack
from nbdpull.operations.options.stores import PruneOptions
from nbdpull.operations.prune import prune as pruned
from nbdpull.repository import marker, series_choice

BEHIND, FEW = 1000, 10  # points
KEEP = ("--keep-daily", 7, "--keep-weekly", 4, "--keep-monthly", 12)
KEPT = 23  # points, at most


@dataclass(frozen=True)
class Figure:
    """A measured figure. at_most: its limit, None if the figure only explains another."""

    value: float
    unit: str
    at_most: Optional[float] = None


def _ratios(cost, against, at_most):
    """Return the ratios of two Costs of one round."""
    yield "CPU, against that", Figure(cost.cpu / against.cpu, "x", at_most)
    yield "time, against that", Figure(cost.wall / against.wall, "x")
    yield "CPU", Figure(cost.cpu, "s")


def _many(setting, most=BEHIND):
    return max(4, int(most * setting.scale))


def _size(setting, most):
    return max(8 * MIB, int(most * setting.scale) // MIB * MIB)


def _bytes(path):
    """Return the size of all files in a directory, in bytes."""
    return sum(
        {each.st_ino: each.st_size for each in map(os.stat, filter(Path.is_file, Path(path).rglob("*")))}.values()
    )


# Real pulls


def pull(setting, rounds):
    """A pull of 100 scattered blocks of a VM with 1,000 points behind, against the same with 10; the points behind are
    made without the VM."""
    with ExitStack() as opened:
        sides = [_behind(setting, opened, most) for most in (BEHIND, FEW)]
        for number in range(rounds):
            costs = []
            for vm, store in sides:
                _scribble(vm, number, _many(setting, 100))
                costs.append(setting.pull(vm, output=store))
            yield from _ratios(*costs, at_most=1.2)


def _behind(setting, opened, most):
    """Give a VM whose disk has that many points in a store, the newest one pulled with a checkpoint; and that store."""
    folder, store = setting.fresh(f"vm-{most}"), setting.fresh(f"store-{most}")
    folder.mkdir()
    disk, image = pretend.Disk(_size(setting, 512 * MIB)), folder / "vda.qcow2"
    vm = Machine(setting.bed, folder, {"vda": Disk(disk.size, path=disks.empty(image, disk.size))})
    opened.callback(vm.close)
    blocks = replace(pretend.STORING, frame_size=pretend.BLOCK)
    pretend.history(
        store, disk, _many(setting, most), 0.002, name=vm.name, uuid=vm.uuid, storing=blocks, source=str(image)
    )
    disk.save(folder / "raw")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", folder / "raw", image], check=True)
    vm.start()
    before = _bytes(store)
    setting.pull(vm, "--frame-size", str(pretend.BLOCK), output=store)  # all is read, as no checkpoint is of a point
    if _bytes(store) - before > disk.size / 50:
        raise measure.Failed("the VM's disk is not the one that the points behind are of")
    return vm, store


def _scribble(vm, seed, count):
    chance = random.Random(seed)
    for _ in range(count):
        place = chance.randrange(vm.disks["vda"].size // pretend.BLOCK)
        vm.write("vda", place * pretend.BLOCK, pretend.BLOCK, chance.randrange(1, 256))


def index(setting, rounds):
    """The index written by a pull of 10,000 scattered blocks of 64 KiB in a VM's disk of 1 TiB, and its memory."""
    size = _size(setting, 1 << 40)
    with setting.machine(disks.empty(setting.fresh("vda.qcow2"), size)) as vm:
        store = setting.fresh("store")
        setting.pull(vm, output=store)
        for number in range(rounds):
            vm.stop()
            vm.write_offline("vda", disks.random_writes(size, int(10_000 * setting.scale), pretend.BLOCK, seed=number))
            vm.start()
            cost = setting.pull(vm, output=store)
            yield "index and directory", Figure(sum(map(os.path.getsize, _newest_index(store))) / MIB, "MiB", 4)
            yield "memory at its peak", Figure(cost.peak_mib, "MiB", 256)


def _newest_index(store):
    """Return the paths of the index and the directory that the newest point's pull wrote."""
    [only] = series_choice.all_series(marker.open_store(str(store)))
    folder = Path(store, only.folder, only.point().id)
    return [folder / name for name in ("vda.index", "vda.directory") if (folder / name).exists()]


def unchanged(setting, rounds):
    """What a pull of a VM's raw disk stores, which is read in full, where nothing changed. Of 8 GiB."""
    size, folder = _size(setting, 8 << 30), setting.fresh("vm")
    folder.mkdir()
    disk, image = pretend.Disk(size, noise=0.01), folder / "vda.raw"
    disk.fill()
    disk.save(image)
    with Machine(setting.bed, folder, {"vda": Disk(path=image, format="raw")}) as vm:
        store = setting.fresh("store")
        setting.pull(vm, output=store)
        for _ in range(rounds):
            before = _bytes(store)
            cost = setting.pull(vm, output=store)
            yield "stored", Figure((_bytes(store) - before) / MIB, "MiB", 1)
            yield "CPU", Figure(cost.cpu, "s")


# The store's side, without a VM


def restore(setting, rounds):
    """A restore to raw with 1,000 points behind, against the same disk in a store of one point. 2 GiB, without a VM;
    written to memory if there is room."""
    many, one = _two_stores(setting)
    where = _in_memory(_size(setting, 2 << 30)) or setting.folder
    with tempfile.TemporaryDirectory(prefix="nbdpull-bench-", dir=where) as folder:
        output = Path(folder) / "restored"
        for _ in range(rounds):
            costs = []
            for store in (many, one):
                words = tools.nbdpull("restore", store, "-o", output, "--format", "raw", "--quiet", *setting.options)
                costs.append(setting.run(words))
                shutil.rmtree(output)
            yield from _ratios(*costs, at_most=1.2)


def _in_memory(size):
    """Return a folder in memory, None if it has no room for twice this size. On a disk the kernel's time for the same 2
    GiB differs by more than what is measured: see docs/performance.md."""
    available = int(re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())[1]) << 10
    return measure.MEMORY if min(available, file_system.free_bytes(measure.MEMORY) or 0) > 2 * size else None


def serve(setting, rounds):
    """Serve's first byte with 1,000 points behind, against the same disk in a store of one point. 2 GiB; without a
    VM."""
    many, one = _two_stores(setting)
    for _ in range(rounds):
        yield from _ratios(*(_first_byte(store) for store in (many, one)), at_most=1.2)


def _first_byte(store):
    began, pids = time.monotonic(), []
    with serving.server((tools.nbdpull("serve", store, "--json"), None), tools.environment(), pids.append) as uri:
        cost = serving.first_byte(uri, began)
        return replace(cost, cpu=measure.cpu_of_all(pids[0]))


def _two_stores(setting):
    """Return stores of one content, one with many older points and one without; made once."""
    many, one = setting.folder / "years-many", setting.folder / "years-one"
    if not many.exists():
        disk = pretend.Disk(_size(setting, 2 << 30))
        pretend.history(many, disk, _many(setting), 0.001)
        pretend.Series(one, disk).pull()
    return many, one


def listing(setting, rounds):
    """`list` of 1,000 points, and of 100 domains with 100 points each; without a VM."""
    one, hundred = _small(setting), _hundred(setting)
    for _ in range(rounds):
        for store, what, at_most in ((one, "of 1,000", 0.5), (hundred, "of 100 x 100", 2)):
            cost = setting.run(tools.nbdpull("list", store))
            yield f"{what}: CPU", Figure(cost.cpu, "s", at_most)
            yield f"{what}: time", Figure(cost.wall, "s")


def quick(setting, rounds):
    """`verify --quick` of 1,000 small points, and against the same of 500; without a VM."""
    stores = _small(setting), _small(setting, BEHIND // 2)
    for _ in range(rounds):
        costs = [setting.run(tools.nbdpull("verify", store, "--quick", "--no-record", "--quiet")) for store in stores]
        yield "CPU", Figure(costs[0].cpu, "s", 2)
        yield "time", Figure(costs[0].wall, "s")
        yield "CPU, against that", Figure(costs[0].cpu / costs[1].cpu, "x", 2.2)


def _small(setting, most=BEHIND):
    """Return a store of that many small points, made once."""
    store = setting.folder / f"years-small-{most}"
    if not store.exists():
        pretend.history(store, pretend.Disk(_size(setting, 64 * MIB)), _many(setting, most), 0.002)
    return store


def _hundred(setting):
    """Return a store of 100 domains with 100 points each, made once."""
    store = setting.folder / "years-hundred"
    if not store.exists():
        disk, count = pretend.Disk(_size(setting, 16 * MIB)), _many(setting, 100)
        made = pretend.history(store, disk, count, 0.002)
        for number in range(1, count):
            pretend.cloned(made, f"{pretend.NAME}-{number}", str(uuid.UUID(int=number)))
    return store


def prune(setting, rounds):
    """`prune` of 1,000 small points to 23, with what little of their files it repacks; without a VM."""
    for _ in range(rounds):
        store = setting.fresh("pruned")
        subprocess.run(["cp", "-al", _small(setting), store], check=True)
        cost = setting.run(tools.nbdpull("prune", store, *KEEP, "--now", "--force", "--quiet"))
        yield "CPU", Figure(cost.cpu, "s", 10)
        yield "time", Figure(cost.wall, "s")
        yield "points left", Figure(len(_points(store)), "", KEPT)


def store(setting, rounds):
    """The store after 400 days of a pull and a prune each, against the distinct frames that its points show: 1 GiB, 3 %
    a day, hot and scattered, keep 7/4/12; without a VM."""
    for number in range(rounds):
        folder, disk = setting.fresh("years"), pretend.Disk(_size(setting, 1 << 30))
        made, days = pretend.Series(folder, disk), pretend.Days(disk, 0.03, seed=number)
        disk.fill()
        for day in range(_many(setting, 400)):
            made.pull(pretend.TODAY + timedelta(days=day - 400))
            days.pass_one()
            pruned(_policy(folder))
        live = _live(made)
        yield "against the live frames", Figure(_bytes(folder) / live, "x", 1.35)
        yield "live frames", Figure(live / MIB, "MiB")


def _policy(folder):
    return PruneOptions(str(folder), keep_daily=7, keep_weekly=4, keep_monthly=12, now=True, force=True)


def _points(store):
    return [point for each in series_choice.all_series(marker.open_store(str(store))) for point in each.points()]


def _live(made):
    """Return the bytes of the distinct frames that the points of a pretend.Series show."""
    frames = {}
    for point in made.series.points():
        directory = made.series.directory(point, "vda")
        for window in directory.windows():
            shown = stack.data_of(window.flat())
            names = [directory.files[number].path for number in shown["chunk"].tolist()]
            frames.update(zip(zip(names, shown["position"].tolist()), shown["stored"].tolist()))
    return sum(frames.values())


ROWS = {
    "years-pull": pull,
    "years-restore": restore,
    "years-serve": serve,
    "years-list": listing,
    "years-verify": quick,
    "years-store": store,
    "years-index": index,
    "years-unchanged": unchanged,
    "years-prune": prune,
}
