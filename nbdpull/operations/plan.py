"""Plan: what a pull would read. A backup job is begun, its map and a sample of its data are read, and the job is ended.
If the domain is off, its images are read instead, and nothing is started.

Owns: the estimate. Must not know: how a store is written, what is printed.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Optional

from ..core import extents
from ..core.choices import Offline
from ..core.errors import Check, Report
from ..definitions.domain_xml import Disk
from ..format import layout
from ..hypervisor import domain, socket_keeper
from ..pulling import active_job, copies, fit, holder, live_disk, offline_read, preparation, route, run_record
from ..pulling.live_disk import Live, Reading
from ..pulling.lookout import Checks, Lookout
from ..pulling.preparation import Asked, Prepared, Subject
from ..pulling.sampling import Sample
from ..repository import foreign, marker, series_choice
from . import unlocking
from .options.domains import PlanOptions as Options


@dataclass(frozen=True)
class Result:
    """What a pull would do.

    since: the checkpoint that it would start from, parent: id of that point; disks: for each, the members that the
    manual documents; seconds: estimated duration; offline: Offline.READ for a domain that is off.
    """

    domain: str
    since: Optional[str]
    parent: Optional[str]
    disks: list[dict[str, Any]]
    seconds: float
    offline: Optional[str]
    warnings: list[str]


def plan(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Plan a pull without changing anything: no checkpoint is made, and the guest is not frozen."""
    with ExitStack() as entered:
        vm = entered.enter_context(domain.open(options.domain, options.uri, check=check))
        entered.enter_context(holder.holding(vm.uuid, vm.name))
        vm = vm if vm.active else entered.enter_context(offline_read.opened(vm, check))
        way = route.to(vm, options.nbd, options.tls)
        disks, warnings = preparation.chosen(vm, way, options.disks, options.exclude)
        vm.jobs.require_idle()
        subject = _of_store(options, Subject(vm, way, disks))
        asked = Asked(options.since, options.full, socket=options.socket, scratch_dir=options.scratch_dir)
        choice = preparation.choose(subject, asked, check)
        try:
            prepared = preparation.prepared(subject, asked, choice, layout.new_point_id())
            found = _looked_at(subject, prepared, options.threads, Checks(check))
        finally:
            for name in choice.given_back:
                vm.checkpoints.forget(name)
    return Result(
        domain=vm.name,
        since=choice.since,
        parent=choice.parent.id if choice.parent else None,
        disks=found,
        seconds=round(sum(disk["seconds"] for disk in found), 1),
        offline=Offline.READ if vm.reads_images else None,
        warnings=warnings + choice.warnings,
    )


def _of_store(options: Options, subject: Subject) -> Subject:
    """Return the Subject together with its series and points in the store, if there is one."""
    if options.output is None or marker.is_new(options.output):
        return subject
    target = series_choice.of_domain(
        unlocking.opened(options.output, options.identities), subject.vm.name, subject.vm.uuid
    )
    return replace(subject, series=target, points=foreign.points_of(target, subject.vm.uuid))


def _looked_at(subject: Subject, prepared: Prepared, threads: int, check: Checks) -> list[dict[str, Any]]:
    """Begin the job, describe its disks, and end it."""
    vm, backup = subject.vm, prepared.plan
    if not (vm.is_remote or vm.reads_images):
        fit.require_scratch(backup.scratch_dir, subject.disks)
    keeps_sockets = socket_keeper.required(vm, subject.disks, subject.route.certificates is not None)
    lookout = Lookout(vm, backup, check, keeps_sockets)
    # the journal lets the next run remove our job if we die
    with run_record.written(run_record.of(vm, backup)), lookout.guarding(), vm.backups.begun(backup) as job:
        with active_job.live(subject, job, lookout, Reading(threads=1)) as live:  # for a sample
            found = [_disk(subject, prepared, disk, live, threads, check) for disk in subject.disks]
        job.finish()
    return found


def _disk(subject: Subject, prepared: Prepared, disk: Disk, live: Live, threads: int, check: Check) -> dict[str, Any]:
    choice = prepared.choice
    base = copies.base_of(subject.series, choice, disk.target, check) if subject.series else None
    known = live_disk.known(disk, choice, base, check)
    counts = {"dirty_bytes": 0, "zero_bytes": 0, "data_bytes": 0, "extents": 0}
    started = time.monotonic()
    with live_disk.opened(disk, live, known, check) as opened:
        sample = Sample(opened)
        for batch in opened.extents():
            check()
            counts["dirty_bytes"] += extents.total(batch)
            counts["zero_bytes"] += extents.total(batch, extents.ZERO)
            counts["data_bytes"] += extents.total(batch, extents.DATA)
            counts["extents"] += len(batch)
            sample.add(batch)
    counts["dirty_bytes"] -= opened.presumed
    mapping = time.monotonic() - started - sample.seconds
    mode, reason = choice.decisions[disk.target]
    threads = min(threads, len(os.sched_getaffinity(0)))
    seconds = mapping + counts["data_bytes"] * sample.seconds_a_byte / threads
    stored = round(counts["data_bytes"] * sample.ratio)
    values = {"name": disk.target, "size": disk.size, "mode": mode, "reason": reason}
    return {**values, **counts, "stored_bytes_estimate": stored, "seconds": round(seconds, 2)}
