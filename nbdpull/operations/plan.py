"""What a pull would read, told without pulling: a backup job is begun, its map read, a sample of it, and the job ended.
Of a domain that is off the images are looked at instead: nothing is started.

Owns: the estimate. Must not know: files of a store but for reading, what is printed.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Optional

from ..backup import base, offline, offline_read, route, scratch_watch
from ..core import extents
from ..definitions import disk_choice
from ..format import layout, writer
from ..hypervisor import domain, qemu_faults, socket_keeper
from ..hypervisor.domain_watch import DomainWatch
from ..nbd import source
from ..repository import journal, marker, series
from ..repository.image import DataRanges, Image
from .options import PlanOptions as Options

SAMPLE_BYTES, SAMPLE_SECONDS = 32 << 20, 1.0  # read and compressed of each disk, to tell the speed


@dataclass(frozen=True)
class Result:
    """What a pull would do. since: the checkpoint that it would start from, parent: id of the point; disks: of each
    the members that the manual documents; seconds: it may take; offline: "read" for a domain that is off."""

    domain: str
    since: Optional[str]
    parent: Optional[str]
    disks: list[dict[str, Any]]
    seconds: float
    offline: Optional[str]
    warnings: list[str]


def plan(options: Options, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Look, and leave everything as it is: no checkpoint is made, the guest is not frozen."""
    with ExitStack() as entered:
        vm = entered.enter_context(domain.open(options.domain, options.uri, check=check))
        hold = entered.enter_context(journal.holding(vm.uuid, vm.name))
        vm = vm if vm.active else entered.enter_context(offline_read.opened(vm, check))
        way = route.to(vm, options.nbd, options.tls)
        disks, warnings = disk_choice.chosen(vm, options.disks, options.exclude)
        warnings += [*vm.image_warnings, *way.warnings()]
        warnings += qemu_faults.warnings(vm, disks, way.certificates is not None)
        vm.require_idle()
        target, points = _points(options, vm)
        choice = base.choose(vm, target, points, disks, options.since, options.full, check)
        try:
            found = _looked_at(options, vm, way, hold, target, disks, choice, check)
        finally:
            for name in choice.given_back:
                vm.forget_checkpoint(name)
    return Result(
        domain=vm.name,
        since=choice.base.checkpoint.name if choice.base else None,
        parent=choice.parent.id if choice.parent else None,
        disks=found,
        seconds=round(sum(disk["seconds"] for disk in found), 1),
        offline=offline.READ if vm.reads_images else None,
        warnings=warnings + choice.warnings,
    )


def _points(options, vm):
    if options.output is None or not os.path.isdir(options.output) or not os.listdir(options.output):
        return None, []
    target = series.of_domain(marker.open_store(options.output), vm.name, vm.uuid)
    points = target.load()[0]
    target.require_of(points, vm.uuid)
    return target, points


def _looked_at(options, vm, way, hold, target, disks, choice, check):
    run_id = layout.new_point_id()
    backup = domain.Plan(
        run_id=run_id,
        disks={disk.target: choice.start(disk.target) for disk in disks},
        socket=way.socket(vm, run_id, options.socket),
        scratch_dir=options.scratch_dir,
        tcp=way.listen,
        tls=way.certificates is not None,
    )
    if not (vm.is_remote or vm.reads_images):
        scratch_watch.require_room(backup.scratch_dir, sum(disk.size for disk in disks))
    watch, domain_watch = scratch_watch.ScratchWatch(vm, backup.scratch_dir), DomainWatch(vm.require_there)
    keeper = socket_keeper.SocketKeeper(vm.uri, vm.uuid, run_id) if socket_keeper.required(vm, disks, way) else None

    def check_all():
        check()
        watch.check()
        domain_watch.check()
        if keeper:
            keeper.check()

    vm.heed(check_all)
    hold.note(_journal_entry(vm, backup))
    with watch.guarding_guest(), keeper or nullcontext(), vm.backup(backup) as job:
        with watch.watching(job), domain_watch.watching(), route.opened(way, vm, job.socket, check_all) as server:
            where = source.Kept(server, keeper) if keeper else server, job
            found = [_disk(options, target, disk, choice, where, check_all) for disk in disks]
        job.finish()
    hold.clear()
    return found


def _journal_entry(vm, backup):
    """What the next run needs to remove our job, should we die: it is of no store."""
    return journal.of_this_process(
        id=backup.run_id,
        domain=vm.name,
        uuid=vm.uuid,
        uri=vm.shown_uri,
        checkpoint=None,
        checkpoint_disks=[],
        disks=dict(backup.disks),
        socket=backup.socket,
        scratch_dir=backup.scratch_dir,
        guest_runs=vm.guest_state().running,
        store="/dev/null",
        folder="",
    )


def _disk(options, target, disk, choice, where, check):
    server, job = where
    export, parent = job.exports[disk.target], choice.whole_parent(disk.target)
    counts = {"dirty_bytes": 0, "zero_bytes": 0, "data_bytes": 0, "extents": 0}
    started = time.monotonic()
    with ExitStack() as opened:
        held = DataRanges(opened.enter_context(Image(target, parent, disk.target, check=check))) if parent else None
        live = opened.enter_context(
            source.Source(
                server,
                export.name,
                export.bitmap,
                check=check,
                require_alive=job.require_alive,
                dirty_from=choice.dirty_from(disk),
                held=held,
                layered=disk.layered,
            )  # fmt: skip
        )
        sample = _Sample(live)
        for batch in live.extents():
            check()
            counts["dirty_bytes"] += extents.total(batch)
            counts["zero_bytes"] += extents.total(batch, extents.ZERO)
            counts["data_bytes"] += extents.total(batch, extents.DATA)
            counts["extents"] += len(batch)
            sample.add(batch)
    counts["dirty_bytes"] -= live.presumed
    mapping = time.monotonic() - started - sample.seconds
    mode, reason = choice.decisions[disk.target]
    threads = min(options.threads, len(os.sched_getaffinity(0)))
    seconds = mapping + counts["data_bytes"] * sample.seconds_a_byte / threads
    stored = round(counts["data_bytes"] * sample.ratio)
    told = {"name": disk.target, "size": disk.size, "mode": mode, "reason": reason}
    return {**told, **counts, "stored_bytes_estimate": stored, "seconds": round(seconds, 2)}


class _Sample:
    """The first data of a disk, read and compressed in one thread as a pull does it."""

    def __init__(self, live):
        self._live, self._encoder = live, writer.Encoder(1)
        self.seconds, self._raw, self._stored = 0.0, 0, 0

    @property
    def seconds_a_byte(self):
        return self.seconds / self._raw if self._raw else 0.0

    @property
    def ratio(self):
        return self._stored / self._raw if self._raw else 1.0

    def add(self, batch):
        data = extents.cut(batch[batch["kind"] == extents.DATA], layout.MAX_FRAME)
        for piece in extents.batches(data, 1 << 20, 256):
            if self._raw >= SAMPLE_BYTES or self.seconds >= SAMPLE_SECONDS:
                return
            started = time.monotonic()
            with self._live.reading() as connection:
                buffers = connection.read_batch(list(zip(piece["offset"].tolist(), piece["length"].tolist())))
                self._stored += self._encoder.encode(piece, buffers).size
            self._raw += extents.total(piece)
            self.seconds += time.monotonic() - started
