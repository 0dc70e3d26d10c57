"""A pull of a virtual machine whose backup the cluster makes for us.

Owns: the order of steps: make, follow and read the backup, commit our point, and only then end the backup. Must not
know: HTTP, the objects of the cluster, what a map means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import BackupType, Quiesce
from ..core.errors import Check, Report
from ..format import layout
from ..format.manifest import CheckpointEntry
from ..kubevirt import backup as kubevirt_backup
from ..kubevirt import objects
from ..kubevirt.backup import MovedBase
from ..kubevirt.cluster import Cluster
from ..kubevirt.endpoint import Access, Endpoint
from ..kubevirt.given import Machine
from ..pulling.account import Cut
from ..repository import marker
from ..repository.series import Point
from ..volumes import machine_run, new_point, start
from ..volumes.machine_run import Done, Run
from ..volumes.new_point import Backup
from ..volumes.start import Start
from . import unlocking
from .options.pulls import KubevirtOptions as Options

TTL_MARGIN = 600.0  # seconds that a backup may last longer than the pull


class _Subject(NamedTuple):
    """What is pulled. machine: the VM's object; claims: {volume: its claim}."""

    machine: objects.Object
    claims: dict[str, Optional[objects.Object]]


def pulled(options: Options, machine: Machine, report: Report, check: Check) -> Done:
    _require_sense(options)
    cluster = Cluster(options.kubeconfig, options.context, options.stall_timeout, check)
    found = kubevirt_backup.virtual_machine(cluster, machine)
    subject = _Subject(found, kubevirt_backup.claims(cluster, machine, found))
    warnings = cluster.warnings
    store = unlocking.for_pull(options.output, options.group, options.identities, warnings.append)
    with machine_run.begun(store, machine, objects.uid(found), report, check, warnings) as run:
        first = _ordered(run, options, cluster)
        run.warnings.extend(first.sweep())
        begin = start.by_tracker(run.series, run.points, first.base(), options.full, check)
        run.warnings.extend(begin.warnings)
        begin.require(options.on_lost_base)
        run.laps.end("prepare")
        try:
            point = _point(run, options, subject, first, begin)
        except MovedBase:  # another program used our tracker just before
            begin = _full(options, "checkpoint-replaced")
            point = _point(run, options, subject, _ordered(run, options, cluster), begin)
        return run.done(point)


def _require_sense(options: Options) -> None:
    given = {"--http-data": options.http_data, "--ca": options.ca, "--token-file": options.token_file,
            "--type": options.type, "--since": options.since, "--checkpoint": options.checkpoint,
            "--uuid": options.uuid}  # fmt: skip
    for name, value in given.items():
        if value:
            raise errors.UsageError(f"{name} is for a backup that is named by --http-map")


def _ordered(run: Run, options: Options, cluster: Cluster) -> kubevirt_backup.Backup:
    who = kubevirt_backup.Who(run.machine, marker.uuid_of(run.series.store), layout.new_point_id())
    return kubevirt_backup.Backup(cluster, who, options.stall_timeout)


def _full(options: Options, why: str) -> Start:
    begin = Start(None, why)
    begin.require(options.on_lost_base)
    return begin


def _point(run: Run, options: Options, subject: _Subject, job: kubevirt_backup.Backup, begin: Start) -> Point:
    seconds = None if options.max_duration is None else options.max_duration + TTL_MARGIN
    try:
        job.begin(begin.checkpoint, options.quiesce == Quiesce.NEVER, seconds, options.pvc,
                  lambda: kubevirt_backup.scratch(subject.claims.values()))  # fmt: skip
        state = job.wait()
        backup = _backup(run, options, state, subject)
        if begin.base and backup.type == BackupType.FULL:
            begin = _full(options, "checkpoint-lost")
        assert state.access
        absent = _absent(subject, state.access)
        run.warnings.extend(_missed(absent, options))
        speed = options.threads, options.stall_timeout
        with Endpoint(state.access, job.token, *speed, run.check, job.renewed) as endpoint:
            read = new_point.reading(endpoint, backup.type, options, state.full, absent)
            point = new_point.made(run, options, backup, begin, read, job.run_id, job.require_alive)
        checkpoint = backup.cut.checkpoint
        run.warnings.extend(job.finish(checkpoint.name if checkpoint else None))
        return point
    except BaseException as error:
        left = job.close()
        if isinstance(error, errors.NbdpullError):
            error.left_behind += tuple(left)
        raise


def _absent(subject: _Subject, access: Access) -> dict[str, str]:
    """Return {volume: a description} of the VM's disks that are not in the backup."""
    found = objects.volumes(subject.machine)
    return {name: what for name, what in found.items() if what and name not in access.volumes}


def _missed(absent: Mapping[str, str], options: Options) -> list[str]:
    names = [] if options.disks else [name for name in absent if name not in options.exclude]
    return [f"volume {name} ({absent[name]}) is not in KubeVirt's backup, nor in the point" for name in names]


def _backup(run: Run, options: Options, state: objects.State, subject: _Subject) -> Backup:
    assert state.type
    frozen, why = state.quiesced or (False, "")
    reason = "" if frozen else _NOT_FROZEN.get(why, "not-known")
    if not why and not frozen and options.quiesce == Quiesce.NEVER:
        reason = "not-requested"
    if options.quiesce == Quiesce.REQUIRE and not frozen:
        raise errors.NotQuiesced(f"the guest was not frozen ({why or 'the cluster does not say why'})")
    if reason == "freeze-failed":
        run.warnings.append("the guest's file systems could not be frozen: the point is crash-consistent")
    if state.checkpoint is None:
        run.warnings.append("the backup has no checkpoint: the next pull will be full")
    made = CheckpointEntry(*state.checkpoint, automatic=False) if state.checkpoint else None
    return Backup(
        type=state.type,
        cut=Cut(state.begun, made, "frozen" if frozen else "crash-consistent", reason),
        sources=objects.sources(run.machine, subject.machine, subject.claims),
        files={layout.VM_OBJECT: objects.stored(subject.machine)},
    )


_NOT_FROZEN = {"QuiesceFailed": "freeze-failed", "QuiesceSkipped": "not-requested"}
