"""A pull of kubevirt:NAMESPACE/VM: the volumes of a VirtualMachineBackup become a committed point.

Owns: the order of steps, for a backup that the cluster makes for us and for one whose endpoint was given; and that the
backup ends after our commit, not before. Must not know: HTTP, the objects of the cluster, what a map means.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Callable, NamedTuple, Optional

from .. import __version__
from ..core import deadline, errors, process
from ..core.choices import BackupType, OnLostBase, Quiesce
from ..core.errors import Check, Report
from ..core.laps import Laps
from ..core.throttle import Throttle
from ..definitions.domain_xml import Checkpoint, Disk
from ..format import layout
from ..format.manifest import FULL, INCREMENTAL, CheckpointEntry, DiskEntry, ParentEntry
from ..hypervisor.guest_load import Cores
from ..kubevirt import backup as kubevirt_backup
from ..kubevirt import given, objects
from ..kubevirt.backup import MovedBase
from ..kubevirt.cluster import Cluster
from ..kubevirt.endpoint import Endpoint
from ..kubevirt.given import Machine
from ..kubevirt.volume import BATCH_DATA, Volume
from ..pulling import base, copies, fit
from ..pulling.base import Base, Choice
from ..pulling.disk_copy import DiskCopy, Storing
from ..repository import half_points, marker, new_point, series
from ..repository.announcement import Announcement
from ..repository.image import DataRanges, Image
from ..repository.new_point import NewPoint
from ..repository.series import Point, Series
from ..storage.directory import DirectoryStore
from .options import KubevirtOptions as Options

TTL_MARGIN = 600.0  # seconds that a backup may last longer than the pull


@dataclass(frozen=True)
class Result:
    """A committed point, and what else the operator should know. partial: its disks of which no whole image can be made
    by the store."""

    point: Point
    partial: frozenset[str]
    warnings: list[str]


def kubevirt(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make one point. report(**event) is told of progress; check() is called often, what it raises ends the run.

    Raises an NbdpullError; then no point is left, and nothing in the cluster that this made.
    """
    machine = given.machine(options.domain)
    check = deadline.bounded(check, options.max_duration, "the pull")
    pulled = _pull_given if options.http_map else _pull_made
    return pulled(options, machine, partial(report, domain=machine.domain), check)


# A backup, whoever made it


class _Begins(NamedTuple):
    """What a backup's increments begin at. base: None where all is to be read; why: then the reason."""

    base: Optional[Base]
    why: str = ""


@dataclass(frozen=True)
class _Backup:
    """type: of BackupType; checkpoint: that it has made, by name and seconds since 1970, if that is known; as_of: an
    instant before it, ISO 8601, if known; sources: what the volumes are of, by name; files: of the VM, by name."""

    type: str
    checkpoint: Optional[tuple[str, int]]
    as_of: Optional[str]
    consistency: str
    consistency_reason: str
    sources: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    """What every step is given, with the series held."""

    options: Options
    machine: Machine
    uuid: str
    series: Series
    points: list[Point]
    sequence: int  # of the point to be made
    report: Report
    check: Check
    warnings: list[str]
    laps: Laps = field(default_factory=Laps)


def _run(
    options: Options, machine: Machine, uid: str, report: Report, check: Check, warnings: list[str], held: ExitStack
) -> _Run:
    """Open the series, or make it, and hold it for this run. uid: of the VM, "" that which the series has, or one made
    of the name."""
    target, uid = _series(marker.open_or_create(options.output, options.group), machine, uid)
    held.enter_context(half_points.writing(target))
    points, refused = target.load()
    target.require_of(points, uid)
    warnings.extend(f"a point of the series is ignored: {error}" for error in refused.values())
    warnings.extend(_reclaimed(target))
    sequence = series.next_sequence(points, refused)
    return _Run(options, machine, uid, target, points, sequence, report, check, warnings)


def _series(store: DirectoryStore, machine: Machine, uid: str) -> tuple[Series, str]:
    known = uid or Series(store, machine.domain).uuid() or str(uuid.uuid5(uuid.NAMESPACE_URL, machine.domain))
    return series.of_domain(store, machine.domain, known), known


def _reclaimed(target: Series) -> list[str]:
    """Remove the half points of dead runs; warnings of those that may be somebody's."""
    warnings = []
    for name in half_points.names(target):
        announced = half_points.announced(target, name)
        alive = announced.is_alive if announced else False
        if announced and (alive or (alive is None and not half_points.is_copy(target, announced))):
            where = target.store.path(target.folder, name)
            warnings.append(f"what {announced.whose} left stays: remove {where} if that run has ended")
        else:
            half_points.remove(target, name)
    return warnings


def _point(
    run: _Run,
    backup: _Backup,
    begins: _Begins,
    endpoint: Endpoint,
    volumes: Sequence[Volume],
    point_id: str,
    require_alive: Callable[[], None] = lambda: None,
) -> Point:
    """Copy the volumes of a backup into a new point, and commit it."""
    disks = [_disk(run, backup, begins.base, volume) for volume in volumes]
    choice = _choice(run, begins, disks)
    fit.require_readable(disks, run.sequence, run.series.store.path(run.series.folder))
    if run.options.space_check:
        in_full = [disk for disk in disks if choice.decisions[disk.target][0] == FULL]
        fit.require_store(run.series.store, in_full)
    announced = _announced(run, point_id)
    _report_start(run, announced.id, choice, disks)
    run.laps.end("begin")
    with new_point.begun(run.series, announced.id, announced) as new:
        entries = _copied(run, choice, endpoint, disks, volumes, new)
        run.laps.end("copy")
        for volume in volumes:
            volume.require_same()
        require_alive()
        run.laps.end("end")
        for name, data in backup.files.items():
            new.add_file(name, data, choice.parent)
        run.laps.end("files")
        return new.commit(_fields(run, backup, choice), entries)


def _volumes(options: Options, endpoint: Endpoint, backup_type: str) -> list[Volume]:
    """Those to pull, their maps read."""
    names = given.wanted(endpoint.volumes, options.disks, options.exclude)
    return [Volume(endpoint, name, backup_type) for name in names]


def _disk(run: _Run, backup: _Backup, start: Optional[Base], volume: Volume) -> Disk:
    """A volume as base.decide looks at disks: it has bitmaps."""
    known = start.before.get(volume.name) if start and start.before else None
    by_name = known.source if known else f"{run.options.domain}/{volume.name}"
    source = backup.sources.get(volume.name, by_name)
    facts = {"bus": "", "readonly": False, "transient": False, "shareable": False, "empty": False}
    named = {"target": volume.name, "type": "kubevirt", "source": source, "format": "qcow2", "device": "disk"}
    return Disk(**named, **facts, size=volume.size, allocation=volume.allocated)  # type: ignore[arg-type]


def _choice(run: _Run, begins: _Begins, disks: list[Disk]) -> Choice:
    decisions = {disk.target: base.decide(disk, begins.base, begins.why) for disk in disks}
    for name, (mode, _) in decisions.items():
        if begins.base and mode == INCREMENTAL and name not in begins.base.whole:
            decisions[name] = FULL, "chain-broken"
    incremental = any(mode == INCREMENTAL for mode, _ in decisions.values())
    choice = Choice(begins.base if incremental else None, decisions)
    run.warnings.extend(choice.lost_warnings())
    if run.options.on_lost_base == OnLostBase.FAIL:
        choice.require_not_lost()
    return choice


def _announced(run: _Run, point_id: str) -> Announcement:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    store, folder = run.series.store.root, f"{run.series.folder}/{point_id}"
    return Announcement(point_id, run.machine.domain, run.uuid, store, folder, process.of(), now)


def _report_start(run: _Run, point_id: str, choice: Choice, disks: list[Disk]) -> None:
    run.report(
        event="start",
        point=point_id,
        resumed=False,
        offline=None,
        since=(choice.base.checkpoint.name or None) if choice.base else None,
        parent=choice.parent and choice.parent.id,
        disks=choice.told(disks),
    )


class _Elsewhere:
    """The guest: it leaves all of this machine's cores."""

    is_remote = True

    def vcpu_seconds(self) -> float:
        return 0.0


def _copied(
    run: _Run, choice: Choice, endpoint: Endpoint, disks: list[Disk], volumes: Sequence[Volume], new: NewPoint
) -> list[DiskEntry]:
    options, target = run.options, run.series
    check = endpoint.ending(run.check)
    storing = Storing(options.frame_size, max(options.chunk_size, fit.least_chunk_size(disks)), options.level)
    throttle = Throttle(options.max_rate, options.max_rate_file, check)
    with ExitStack() as opened:
        made = []
        for disk, volume in zip(disks, volumes):
            frames = None
            parent = choice.whole_parent(disk.target)
            if parent:
                with Image(target, parent, disk.target, check=check) as image:
                    volume.changed(choice.dirty_from(disk), DataRanges(image))
                if options.dedupe:
                    frames = copies.frames_of(target, parent, disk.target, check, run.warnings)
            copy = DiskCopy(disk, volume, target, new.id, storing, throttle, frames, batch_data=BATCH_DATA)
            made.append(opened.enter_context(copy))
        cores = Cores(_Elsewhere(), check=check)
        copies.copy_all(made, options.threads, cores, check, run.report)
        return copies.close_all(made, choice.decisions, check)


def _fields(run: _Run, backup: _Backup, choice: Choice) -> dict[str, object]:
    parent = choice.parent
    return {
        "sequence": run.sequence,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "as_of": backup.as_of,
        "store": marker.uuid_of(run.series.store),
        "parent": ParentEntry(parent.id, parent.sha256) if parent else None,
        "domain": run.machine.domain,
        "uuid": run.uuid,
        "since": (choice.base.checkpoint.name or None) if choice.base else None,
        "checkpoint": backup.checkpoint and CheckpointEntry(*backup.checkpoint, automatic=False),
        "consistency": backup.consistency,
        "consistency_reason": backup.consistency_reason,
        "passwords": [],
        "versions": {"nbdpull": __version__},
        "seconds": run.laps.seconds,
    }


def _result(run: _Run, point: Point) -> Result:
    run.warnings.extend(run.series.store.warnings())
    return Result(point, series.partial_disks([*run.points, point])[point.id], run.warnings)


def _begins_at(run: _Run, parent: Point, name: str, created: int, volumes: Sequence[str]) -> _Begins:
    """An increment on that point of ours; volumes: that the checkpoint covers."""
    proof = base.Proof(run.series, run.points, run.check)
    known = base.of_point(Checkpoint(name, created, "", dict.fromkeys(volumes, True), ""), parent)
    found = proof.looked_through(known) if proof.is_linked(parent) else None
    run.warnings.extend(proof.warnings)
    return _Begins(found, "" if found else "chain-broken")


# A backup that the cluster makes for us


def _pull_made(options: Options, machine: Machine, report: Report, check: Check) -> Result:
    _require_sense_without_http(options)
    warnings: list[str] = []
    cluster = Cluster(options.kubeconfig, options.context, options.stall_timeout, check)
    found = kubevirt_backup.virtual_machine(cluster, machine)
    with ExitStack() as held:
        run = _run(options, machine, objects.uid(found), report, check, warnings, held)
        first = _ordered(run, cluster)
        run.warnings.extend(first.sweep())
        begins = _tracked(run, first.base())
        run.laps.end("prepare")
        try:
            point = _made_point(run, cluster, found, first, begins)
        except MovedBase:  # somebody used our tracker just before
            begins = _require_may_be_full(run, _Begins(None, "checkpoint-replaced"))
            point = _made_point(run, cluster, found, _ordered(run, cluster), begins)
        return _result(run, point)


def _require_sense_without_http(options: Options) -> None:
    told = {"--http-data": options.http_data, "--ca": options.ca, "--token-file": options.token_file,
            "--type": options.type, "--since": options.since, "--checkpoint": options.checkpoint,
            "--uuid": options.uuid}  # fmt: skip
    for name, value in told.items():
        if value:
            raise errors.UsageError(f"{name} is for a backup that is named by --http-map")


def _ordered(run: _Run, cluster: Cluster) -> kubevirt_backup.Backup:
    who = kubevirt_backup.Who(run.machine, marker.uuid_of(run.series.store), layout.new_point_id())
    return kubevirt_backup.Backup(cluster, who, run.options.stall_timeout)


def _tracked(run: _Run, latest: Optional[str]) -> _Begins:
    """The checkpoint of our newest point, if it is also the one that the tracker would begin at. Else all is read."""
    entry = run.points[-1].manifest.checkpoint if run.points else None
    if run.options.full:
        return _Begins(None, "requested")
    if not run.points:
        return _Begins(None, "first-point")
    if entry is None:
        return _Begins(None, "no-checkpoint")
    if latest != entry.name:
        return _require_may_be_full(run, _Begins(None, "checkpoint-replaced" if latest else "checkpoint-lost"))
    parent = run.points[-1]
    return _require_may_be_full(run, _begins_at(run, parent, entry.name, entry.creation_time, parent.disks))


def _require_may_be_full(run: _Run, begins: _Begins) -> _Begins:
    if begins.base is None and run.options.on_lost_base == OnLostBase.FAIL:
        raise errors.CheckpointUnusable(
            f"no usable base for an incremental ({begins.why}): --on-lost-base=full pulls in full"
        )
    return begins


def _made_point(
    run: _Run, cluster: Cluster, found: objects.Object, job: kubevirt_backup.Backup, begins: _Begins
) -> Point:
    options = run.options
    base_name = begins.base.checkpoint.name if begins.base else None
    seconds = None if options.max_duration is None else options.max_duration + TTL_MARGIN
    try:
        job.begin(base_name, options.quiesce == Quiesce.NEVER, seconds, options.pvc,
                  partial(kubevirt_backup.scratch, cluster, run.machine, found))  # fmt: skip
        state = job.wait()
        backup = _of_state(run, state, found)
        if begins.base and backup.type == BackupType.FULL:
            begins = _require_may_be_full(run, _Begins(None, "checkpoint-lost"))
        assert state.access
        reading = options.threads, options.stall_timeout, run.check, job.renewed
        with Endpoint(state.access, job.token, *reading) as endpoint:
            volumes = _volumes(options, endpoint, backup.type)
            point = _point(run, backup, begins, endpoint, volumes, job.run_id, job.require_alive)
        run.warnings.extend(job.finish(backup.checkpoint[0] if backup.checkpoint else None))
        return point
    except BaseException as error:
        left = job.close()
        if isinstance(error, errors.NbdpullError):
            error.left_behind += tuple(left)
        raise


def _of_state(run: _Run, state: objects.State, found: objects.Object) -> _Backup:
    assert state.type
    frozen, why = state.quiesced or (False, "")
    reason = "" if frozen else _NOT_FROZEN.get(why, "not-known")
    if not why and not frozen and run.options.quiesce == Quiesce.NEVER:
        reason = "not-requested"
    if run.options.quiesce == Quiesce.REQUIRE and not frozen:
        raise errors.NotQuiesced(f"the guest was not frozen ({why or 'the cluster does not tell'})")
    if reason == "freeze-failed":
        run.warnings.append("the guest's file systems could not be frozen: the point is crash-consistent")
    if state.checkpoint is None:
        run.warnings.append("the backup has no checkpoint: the next pull will be full")
    namespace = run.machine.namespace
    return _Backup(
        type=state.type,
        checkpoint=state.checkpoint,
        as_of=state.begun,
        consistency="frozen" if frozen else "crash-consistent",
        consistency_reason=reason,
        sources={volume: f"{given.PREFIX}{namespace}/{claim}" for volume, claim in objects.claims(found).items()},
        files={layout.VM_OBJECT: objects.stored(found)},
    )


_NOT_FROZEN = {"QuiesceFailed": "freeze-failed", "QuiesceSkipped": "not-requested"}


# A backup whose endpoint was given


def _pull_given(options: Options, machine: Machine, report: Report, check: Check) -> Result:
    _require_sense(options)
    assert options.token_file and options.type
    token = given.token(options.token_file)
    access = given.access(options.http_map, options.http_data, options.disks, given.certificates(options.ca))
    warnings = [*token.warnings, *given.unencrypted(access)]
    if options.type == BackupType.INCREMENTAL:
        _require_parent(options, machine)
    with ExitStack() as held:
        endpoint = held.enter_context(Endpoint(access, token.text, options.threads, options.stall_timeout, check))
        volumes = _volumes(options, endpoint, options.type)  # before anything is written
        run = _run(options, machine, options.uuid or "", report, check, warnings, held)
        begins = _given_begin(run)
        run.laps.end("prepare")
        made = (options.checkpoint, 0) if options.checkpoint else None
        backup = _Backup(options.type, made, None, "crash-consistent", "not-known")
        return _result(run, _point(run, backup, begins, endpoint, volumes, layout.new_point_id()))


def _require_sense(options: Options) -> None:
    if options.token_file is None or options.type is None:
        raise errors.UsageError("--http-map wants --token-file and --type, too")
    if options.since and options.type == BackupType.FULL:
        raise errors.UsageError("--since is for --type incremental")
    if options.full and options.type == BackupType.INCREMENTAL:
        raise errors.UsageError("--full cannot make a full backup of an incremental one")
    if options.quiesce == Quiesce.REQUIRE:
        raise errors.UsageError("--quiesce=require: the backup of --http-map has begun already")
    for name, value in {"--kubeconfig": options.kubeconfig, "--context": options.context, "--pvc": options.pvc}.items():
        if value:
            raise errors.UsageError(f"{name} is for a backup that nbdpull makes, without --http-map")
    if options.uuid is not None:
        try:
            uuid.UUID(options.uuid)
        except ValueError:
            raise errors.UsageError(f"--uuid {options.uuid!r} is no UUID") from None


def _require_parent(options: Options, machine: Machine) -> None:
    """Before anything is written."""
    if marker.is_new(options.output):
        raise _no_parent(options, machine)
    target, _ = _series(marker.open_store(options.output), machine, options.uuid or "")
    _parent(options, machine, target.load()[0])


def _given_begin(run: _Run) -> _Begins:
    """What the user says that it begins at."""
    if run.options.type == BackupType.FULL:
        return _Begins(None, "requested" if run.points else "first-point")
    parent = _parent(run.options, run.machine, run.points)
    entry = parent.manifest.checkpoint
    name, created = (entry.name, entry.creation_time) if entry else ("", 0)
    begins = _begins_at(run, parent, name, created, parent.disks)
    if begins.base is None:
        raise errors.CheckpointUnusable(f"point {parent.id} cannot be built on: pull a full backup")
    if run.options.since is None:
        run.warnings.append(
            f"that the backup begins where point {parent.id} ended is your word alone: --since has it compared"
        )
    return begins


def _parent(options: Options, machine: Machine, points: list[Point]) -> Point:
    """The newest point with the checkpoint that the user names; where he names none, the newest. CheckpointUnusable."""
    since = options.since
    made = ((point, point.manifest.checkpoint) for point in reversed(points))
    found = next((point for point, entry in made if since is None or (entry and entry.name == since)), None)
    if found is None:
        raise _no_parent(options, machine)
    return found


def _no_parent(options: Options, machine: Machine) -> errors.CheckpointUnusable:
    of = f" with checkpoint {options.since}" if options.since else ""
    return errors.CheckpointUnusable(
        f"{options.output} has no point of {machine.domain}{of} for an incremental backup to build on: pull a full one"
    )
