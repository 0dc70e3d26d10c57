"""The decisions before a pull: what is pulled, and by which backup job.

Owns: how the plan of a job is made, and whether the job of a dead run fits it. The decisions are the same for a pull
and for verbs that only show what a pull would do. Must not know: the store's files, how a job is begun.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import FREEZE_TIMEOUT, SHARED_DIR, OnLostBase, Quiesce, Resume
from ..core.errors import Check
from ..definitions import disk_choice
from ..definitions.domain_xml import Disk
from ..hypervisor import backup_spec, domain, qemu_faults
from ..repository.points import Points
from ..repository.series import Series
from . import base, journal_files, resume
from .base import Choice
from .journal import Run
from .journal_files import Journal
from .route import Route


class Chosen(NamedTuple):
    """disks: the disks to pull; warnings: about disks that are left out, and about what pulling the others may do."""

    disks: list[Disk]
    warnings: list[str]


@dataclass(frozen=True)
class Subject:
    """What is pulled: a domain that can be read, its disks to pull, and the way to them.

    series: the Series that gets the point, None if there is none yet; points: those of the series.
    """

    vm: domain.Domain
    route: Route
    disks: list[Disk]
    series: Optional[Series] = None
    points: Points = field(default_factory=Points)


@dataclass(frozen=True)
class Asked:
    """The properties of a job that the caller chooses.

    since: name of the checkpoint to start from; full: pull every disk in full; checkpoint: name of the checkpoint to
    make, None: nbdpull chooses it; freeze_timeout: see domain_freeze.
    """

    since: Optional[str] = None
    full: bool = False
    on_lost_base: str = OnLostBase.FULL
    make_checkpoint: bool = False
    checkpoint: Optional[str] = None
    socket: Optional[str] = None
    scratch_dir: str = SHARED_DIR
    quiesce: str = Quiesce.NEVER
    freeze_timeout: float = FREEZE_TIMEOUT


class Dead(NamedTuple):
    """A dead run that is resumed. freeze: (consistency, reason) from its journal; journal: now that of this process."""

    run: Run
    freeze: tuple[str, str]
    journal: Journal


@dataclass(frozen=True)
class Prepared:
    """choice: what each disk starts from; plan: of the job; dead: the run whose job is resumed, None: a new job."""

    choice: Choice
    plan: backup_spec.BackupSpec
    dead: Optional[Dead] = None


class Attempt(NamedTuple):
    """prepared: None if no dead run is resumed; warnings: those of the choice, or why no run is resumed."""

    prepared: Optional[Prepared]
    warnings: list[str]


def chosen(
    vm: domain.Domain, route: Route, wanted: Sequence[str], exclude: Collection[str], stands_paused: bool = False
) -> Chosen:
    """Choose the disks to pull. stands_paused: the guest does not run meanwhile, so nobody can pause or reboot it."""
    disks, left_out = disk_choice.chosen(vm, wanted, exclude)
    warnings = [*left_out, *vm.image_warnings, *route.warnings()]
    if not stands_paused:
        warnings += qemu_faults.warnings(vm, disks, route.certificates is not None)
    return Chosen(disks, warnings)


def require_names(subject: Subject, since: Optional[str], checkpoint: Optional[str]) -> None:
    """Check the names of checkpoints if there are no points yet; if there were, one might give back that of `since`.
    NoSuchCheckpoint, CheckpointExists, Unsupported, UsageError."""
    vm = subject.vm
    if since is not None and vm.supports_checkpoints and not vm.checkpoints.has(since):
        raise vm.checkpoints.missing(since)
    if checkpoint is not None:
        backup_spec.require_name(checkpoint)
        if why_none := _why_no_checkpoint(vm, _covered(subject)):
            raise _cannot_be_made(checkpoint, why_none)
        if vm.checkpoints.has(checkpoint):
            raise vm.checkpoints.taken(checkpoint)


def choose(subject: Subject, asked: Asked, check: Check) -> Choice:
    """Decide what each disk starts from; CheckpointUnusable if a base was lost and `on_lost_base` is FAIL."""
    choice = base.choose(subject.vm, subject.series, subject.points, subject.disks, asked.since, asked.full, check)
    if asked.on_lost_base == OnLostBase.FAIL:
        choice.require_not_lost()
    return choice


def prepared(subject: Subject, asked: Asked, choice: Choice, run_id: str) -> Prepared:
    """Return the choice with the plan of a new job; Unsupported if a named checkpoint cannot be made."""
    return Prepared(choice, _plan(subject, asked, choice, run_id))


def resumed(
    subject: Subject, series: Series, asked: Asked, how: str, obstacle: str, scratch_limit: Optional[int], check: Check
) -> Attempt:
    """Prepare to resume the job of a dead run, if possible. What each disk starts from is decided as for a new job.

    how: one of Resume; obstacle: why no run can be resumed, if the caller knows a reason, else "".
    """
    dead = None if how == Resume.NEVER else resume.find(subject.vm, series)
    if dead is None:
        return Attempt(None, [])
    try:
        choice = choose(subject, asked, check)
        plan = _plan(subject, asked, choice, dead.id)
        why = (
            obstacle
            or resume.unsafe(series, dead)
            or resume.obstacle(subject.vm, dead, plan, choice.parent, how, scratch_limit)
        )
        if dead.freeze and not why:
            resumes = Dead(dead, dead.freeze, journal_files.resume(dead))
            return Attempt(Prepared(choice, plan, resumes), choice.warnings)
    except errors.NoAnswer:
        raise
    except errors.Failure as error:  # the remains of the dead run may be the cause
        why = str(error)
    return Attempt(None, [f"the job of {dead.whose} is not resumed: {why}"])


def _plan(subject: Subject, asked: Asked, choice: Choice, run_id: str) -> backup_spec.BackupSpec:
    vm, route = subject.vm, subject.route
    covered = _covered(subject)
    why_none = _why_no_checkpoint(vm, covered) if asked.make_checkpoint else "this pull makes no checkpoint"
    wanted, named = not why_none, asked.checkpoint is not None
    if choice.is_foreign and not named:  # the next pull has the same --since: nobody would ever delete this one's
        wanted = False
    if named and not wanted:
        raise _cannot_be_made(asked.checkpoint, why_none)
    return backup_spec.BackupSpec(
        run_id=run_id,
        disks={disk.target: choice.start(disk.target) for disk in subject.disks},
        checkpoint=(f"nbdpull-{run_id}" if asked.checkpoint is None else asked.checkpoint) if wanted else None,
        checkpoint_disks=covered if wanted else (),
        socket=route.socket(vm, run_id, asked.socket),
        scratch_dir=asked.scratch_dir,
        tcp=route.listen,
        tls=route.certificates is not None,
        quiesce=asked.quiesce,
        freeze_timeout=asked.freeze_timeout,
    )


def _covered(subject: Subject) -> list[str]:
    """Return the disks that a checkpoint can include."""
    return [disk.target for disk in subject.disks if disk.bitmaps is not False and disk.format == "qcow2"]


def _cannot_be_made(checkpoint: Optional[str], why: str) -> errors.Unsupported:
    return errors.Unsupported(f"--checkpoint {checkpoint} cannot be made: {why}")


def _why_no_checkpoint(vm: domain.Domain, covered: Collection[str]) -> str:
    """Return why no checkpoint can be made of these disks, as text; "" if one can be made."""
    if vm.reads_images:
        return "the domain is off, and its images are only read"
    if not covered:
        return "no disk here can have one (qcow2 of version 3 can)"
    return "" if vm.supports_checkpoints else "this libvirt or QEMU is too old"


def snapshot_warnings(subject: Subject) -> list[str]:
    """Return a warning about what a checkpoint does to the snapshots of a domain, only before the first checkpoint."""
    some, first = False, not any(point.manifest.checkpoint for point in subject.points.newest_first())
    with suppress(errors.HypervisorError, errors.AccessDenied):  # a user who may not list snapshots may still pull
        some = first and subject.vm.has_internal_snapshots
    if not some:
        return []
    return [
        f"domain '{subject.vm.name}' has internal snapshots: with the checkpoint that this pull makes, virsh "
        "snapshot-revert to one fails, and leaves a running domain shut off; before a revert: nbdpull "
        f"release {subject.vm.name}"
    ]
