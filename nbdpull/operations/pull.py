"""One pull: a running domain's blocks, all or those changed since a checkpoint, become a committed point.

Owns: the order of steps, and that a failed run leaves nothing. Must not know: how a step is done (see pulling/),
libvirt's XML, NBD handles, byte layouts, what is printed.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from ..core import deadline, sizes
from ..core.errors import Check, Report
from ..core.laps import Laps
from ..core.throttle import Throttle
from ..definitions import omissions
from ..format import layout, writer
from ..format.manifest import FULL, CheckpointEntry
from ..hypervisor import backup_job, domain, socket_keeper
from ..hypervisor.guest_load import Cores
from ..nbd import libnbd
from ..pulling import (
    account,
    active_job,
    belongings,
    copies,
    copying,
    fit,
    held_series,
    opening,
    preparation,
    reclaim,
    run_record,
    superseded,
)
from ..pulling.account import Cut, Whose
from ..pulling.belongings import Added
from ..pulling.copies import Healed
from ..pulling.copying import How
from ..pulling.disk_copy import Storing
from ..pulling.held_series import Held
from ..pulling.leftover import Leftover
from ..pulling.level import Level
from ..pulling.live_disk import Reading
from ..pulling.lookout import Checks, Lookout
from ..pulling.preparation import Asked, Prepared, Subject
from ..repository import marker, series_choice
from ..repository.new_point import NewPoint
from ..repository.series import Point, Series
from . import unlocking
from .options.pulls import PullOptions as Options

if TYPE_CHECKING:
    from .prune import Pruned

log = logging.getLogger("nbdpull.pull")
_ENDS_WITH_ITS_RUN = "a disk is in an I/O thread, and a job of such a disk ends when its run dies"


class Resumed(NamedTuple):
    """What a resumed run had done before it died. begun: ISO 8601; kept_bytes: of its files, not read again."""

    begun: str
    kept_bytes: int


@dataclass(frozen=True)
class Result:
    """A committed point, and what else the operator should know.

    partial: the disks of the point of which the store cannot make a whole image; omitted: what the point lacks of the
    domain, None if unknown.
    """

    point: Point
    partial: frozenset[str]
    omitted: Optional[list[omissions.Omission]]
    warnings: list[str]
    dropped_checkpoints: list[str]
    reclaimed: list[Leftover]
    scratch_bytes: int  # the most that were in use
    scratch_growth: list[list[float]]  # [[seconds, bytes], …]
    offline: Optional[str] = None  # how a domain that was off was pulled: Offline.START_PAUSED or READ
    resumed: Optional[Resumed] = None
    healed: list[Healed] = field(default_factory=list)
    pruned: Optional[Pruned] = None  # with --prune


def pull(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make one point. report(**event) receives the progress; check() is called often, and its exception ends the run.

    Raises an NbdpullError; then no job, no new checkpoint and no point remain, and the base is unchanged. What could
    not be removed is listed in its field `left_behind`, and the next pull removes it.
    """
    if options.prune:
        _require_policy(options)
    bounded = Checks(deadline.bounded(check, options.max_duration, "the pull"))
    with ExitStack() as entered:
        subject, way, warnings = entered.enter_context(opening.opened(options, bounded))
        vm = subject.vm
        if options.prune:
            _require_policy(options, vm.name)
        # Before a store is created in vain.
        if {options.since, options.checkpoint} != {None} and marker.is_new(options.output):
            preparation.require_names(subject, options.since, options.checkpoint)
        patience = options.stall_timeout
        store = unlocking.for_pull(options.output, options.group, options.identities, warnings.append, patience)
        target = series_choice.of_domain(store, vm.name, vm.uuid)
        held = entered.enter_context(held_series.for_new_point(target))
        subject = replace(subject, series=target, points=held.points)
        warnings += held.warnings
        made = _pull(_Run(options, subject, held, way, partial(report, domain=vm.name), bounded, warnings))
    return _and_pruned(made, options, bounded) if options.prune else made


def _require_policy(options: Options, domain: Optional[str] = None) -> None:
    from . import prune  # a tenth of all that a pull imports

    prune.require_policy(options.output, domain)


def _and_pruned(made: Result, options: Options, check: Check) -> Result:
    """Prune once the domain is released: whatever happens to it, the point exists."""
    from . import prune

    pruned = prune.after_pull(options.output, made.point, options.identities, check)
    return replace(made, pruned=pruned, warnings=[*made.warnings, *prune.warnings(pruned)])


@dataclass(frozen=True)
class _Run:
    """What every step of a pull needs, with the series held.

    offline: how a domain that is off is read, None if it is on; warnings: from all steps so far.
    """

    options: Options
    subject: Subject
    held: Held
    offline: Optional[str]
    report: Report
    check: Checks
    warnings: list[str]
    laps: Laps = field(default_factory=Laps)

    @property
    def vm(self) -> domain.Domain:
        return self.subject.vm

    @property
    def series(self) -> Series:
        return self.held.series


class _Made(NamedTuple):
    """What the pull made. as_of: the time of the state of the disks in the point, ISO 8601."""

    point: Point
    as_of: str
    copied: copying.Copied
    lookout: Lookout


def _pull(run: _Run) -> Result:
    """Perform the steps of a pull in order."""
    subject = run.subject
    run.warnings.extend(_renamed(run))
    keeps_sockets = socket_keeper.required(run.vm, subject.disks, subject.route.certificates is not None)
    how = _how(run)
    subject.points.require_of(run.vm.uuid)
    fit.require_readable(subject.disks, run.held.sequence, run.series.store.path(run.series.folder))
    prepared, reclaimed = _prepare(run, keeps_sockets)
    _report_start(run, prepared)
    run.laps.end("prepare")
    if run.options.space_check and not prepared.dead:
        _require_room(run, prepared)
    lookout = Lookout(run.vm, prepared.plan, run.check, keeps_sockets, run.options.scratch_limit)
    made = _make(run, prepared, how, lookout)
    return _settled(run, prepared, made, reclaimed)


def _make(run: _Run, prepared: Prepared, how: How, lookout: Lookout) -> _Made:
    """Make the point, from the begin of the job to the commit."""
    laps = run.laps
    record = run_record.of(run.vm, prepared.plan, run.series, prepared.choice.parent)
    as_of = (prepared.dead.run if prepared.dead else record).begun  # all that was written before is in the point
    with ExitStack() as begun:
        making = begun.enter_context(run_record.new_point(run.series, record, prepared.dead))
        log.info("journal written")
        job = begun.enter_context(active_job.started(run.vm, prepared, lookout))
        laps.end("begin")
        _log_job(prepared, job)
        run.warnings.extend(job.freeze.warnings)
        with making.journal.reading(job.freeze.consistency, job.freeze.reason):
            files = copying.copied(run.subject, run.series, prepared, making, job, how, lookout, run.report)
            complete = begun.enter_context(files)
            laps.end("copy")
        active_job.finish(run.vm, job)
        log.info("backup job ended")
        laps.end("end")
        added = _add_belongings(run, prepared, making.point, job)
        copied = complete()
        laps.end("files")
        members = _members(run, prepared, job, added, as_of)
        # An error here still removes the new checkpoint.
        point = making.point.commit(members, copied.disks, run.held.points.ids)
    return _Made(point, as_of, copied, lookout)


def _settled(run: _Run, prepared: Prepared, made: _Made, reclaimed: list[Leftover]) -> Result:
    """Perform the steps after the commit: none of them can undo it."""
    if prepared.dead:
        run.warnings.append(_age(made.as_of))
    dropped = superseded.drop(run.vm, run.subject.points, made.point)
    run.warnings.extend(run.held.found_since(made.point))
    now = run.series, made.point
    healed, mending = copies.mended(now, prepared.choice, made.copied.healed, run.options.level, run.check)
    run.warnings.extend([*mending, *dropped.warnings, *run.held.late_warnings(), *run.series.store.warnings()])
    return Result(
        point=made.point,
        partial=made.point.manifest.partial,
        omitted=omissions.of_point(run.series, made.point),
        warnings=run.warnings,
        dropped_checkpoints=dropped.checkpoints,
        reclaimed=reclaimed,
        scratch_bytes=made.lookout.scratch.peak,
        scratch_growth=made.lookout.scratch.growth.samples,
        offline=run.offline,
        resumed=Resumed(made.as_of, made.copied.kept_bytes) if prepared.dead else None,
        healed=healed,
    )


# Before begin


def _renamed(run: _Run) -> list[str]:
    """Return a warning if the domain was renamed. It appears once, as the new point contains the new name."""
    newest, vm = run.subject.points.newest, run.vm
    before = newest.manifest.domain if newest else vm.name
    if before == vm.name:
        return []
    where = run.series.store.path(run.series.folder)
    return [f"domain {before} is named {vm.name} now: its series continues in {where}"]


def _how(run: _Run) -> How:
    options, least = run.options, writer.least_chunk_size(disk.size for disk in run.subject.disks)
    if options.chunk_size < least:
        run.warnings.append(f"a point has at most {layout.MAX_CHUNK_FILES} chunk files: each takes {least} bytes")
    cores = Cores(run.vm, check=run.check)
    level = Level(options.level, lambda: min(options.threads, cores.allowed))
    return How(
        Reading(options.threads, options.max_in_flight, options.stall_timeout),
        Storing(options.frame_size, writer.chunk_size(run.series.store, options.chunk_size, least), level),
        options.dedupe,
        Throttle(options.max_rate, options.max_rate_file, run.check),
        cores,
    )


def _prepare(run: _Run, keeps_sockets: bool) -> tuple[Prepared, list[Leftover]]:
    """Return (the job to read from, which may be a dead run's; what else dead runs left, now removed)."""
    options, subject = run.options, run.subject
    asked = Asked(
        since=options.since,
        full=options.full,
        on_lost_base=options.on_lost_base,
        make_checkpoint=options.make_checkpoint,
        checkpoint=options.checkpoint,
        socket=options.socket,
        scratch_dir=options.scratch_dir,
        quiesce=options.quiesce,
        freeze_timeout=options.freeze_timeout,
    )
    obstacle = _ENDS_WITH_ITS_RUN if keeps_sockets else ""
    attempt = preparation.resumed(
        subject, run.series, asked, options.resume, obstacle, options.scratch_limit, run.check
    )
    run.warnings.extend(attempt.warnings)
    found, keep = attempt.prepared, attempt.prepared.plan.run_id if attempt.prepared else None
    reclaimed = reclaim.reclaim(run.vm, run.held, keep=keep)
    run.warnings.extend(f"left by an interrupted run: {item.what}: {item.left}" for item in reclaimed if item.left)
    for item in reclaimed:
        if not item.left:
            log.info("removed what run %s left: %s", item.run, item.what)
    if found is None:
        run.vm.jobs.require_idle()
        choice = preparation.choose(subject, asked, run.check)
        run.warnings.extend(choice.warnings)
        found = preparation.prepared(subject, asked, choice, layout.new_point_id())
    if found.plan.checkpoint:
        run.warnings.extend(preparation.snapshot_warnings(subject))
    return found, reclaimed


def _report_start(run: _Run, prepared: Prepared) -> None:
    choice = prepared.choice
    for disk in run.subject.disks:
        mode, reason = choice.decisions[disk.target]
        log.info("%s: %s (%s), %s", disk.target, mode, reason, sizes.shown(disk.size))
    account.start(run.report, prepared.plan.run_id, choice, run.subject.disks, bool(prepared.dead), run.offline)


def _require_room(run: _Run, prepared: Prepared) -> None:
    """Raise ScratchFull or OutputFull if the run could only fail."""
    disks, decisions = run.subject.disks, prepared.choice.decisions
    if not (run.vm.is_remote or run.vm.reads_images):
        fit.require_scratch(prepared.plan.scratch_dir, disks, run.options.scratch_limit)
    fit.require_store(run.series.store, [disk for disk in disks if decisions[disk.target][0] == FULL])


# While the job runs, and after it


def _log_job(prepared: Prepared, job: Any) -> None:
    disks = [f"{disk} since {base}" if base else f"{disk} in full" for disk, base in prepared.plan.disks.items()]
    made = job.checkpoint.name if job.checkpoint else "none"
    log.info("backup job %s: %s; checkpoint: %s", "resumed" if prepared.dead else "started", ", ".join(disks), made)


def _add_belongings(run: _Run, prepared: Prepared, new: NewPoint, job: backup_job.Job) -> Added:
    options, subject = run.options, run.subject
    all_others = {disk.target for disk in run.vm.disks()} - {disk.target for disk in subject.disks}
    asked = all_others if options.disks else options.exclude
    parent, timeout = prepared.choice.parent, options.stall_timeout
    added = belongings.add(subject, run.series, new, job.checkpoint, parent, asked, timeout)
    run.warnings.extend(added.warnings)
    return added


def _members(run: _Run, prepared: Prepared, job: backup_job.Job, added: Added, as_of: Optional[str]) -> dict[str, Any]:
    """Return the members of the manifest that are about the run."""
    made = job.checkpoint
    named = run.options.checkpoint is not None
    checkpoint = CheckpointEntry(made.name, made.creation_time, automatic=not named) if made else None
    cut = Cut(as_of, checkpoint, job.freeze.consistency, job.freeze.reason)
    whose = Whose(run.vm.name, run.vm.uuid)
    versions = {"libnbd": libnbd.library_version(), **run.vm.versions}
    about = versions, added.passwords, run.vm.autostart
    return account.members(run.held, whose, prepared.choice, cut, run.laps, *about)


def _age(as_of: str) -> str:
    """Return a warning that a resumed point is older than the user may expect."""
    warning = f"the point holds the disks as of {as_of}: this pull resumed the job of an interrupted run"
    return f"{warning} (--resume=never starts over)"
