"""A pull from an existing backup of a virtual machine, named by its URLs.

Owns: the order of steps, and what is refused before anything is written. Must not know: HTTP, what a map means.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack

from ..core import errors
from ..core.choices import BackupType, Quiesce
from ..core.errors import Check, Report
from ..format import layout
from ..format.manifest import CheckpointEntry
from ..kubevirt import given
from ..kubevirt.endpoint import Endpoint
from ..kubevirt.given import Machine
from ..pulling.account import Cut
from ..repository import marker
from ..repository.points import Points
from ..repository.series import Point
from ..volumes import machine_run, new_point, start
from ..volumes.machine_run import Done, Run
from ..volumes.new_point import Backup
from ..volumes.start import Start
from . import unlocking
from .options.pulls import KubevirtOptions as Options


def pulled(options: Options, machine: Machine, report: Report, check: Check) -> Done:
    _require_sense(options)
    assert options.token_file and options.type
    token = given.token(options.token_file)
    access = given.access(options.http_map, options.http_data, options.disks, given.certificates(options.ca))
    warnings = [*token.warnings, *given.unencrypted(access)]
    if options.type == BackupType.INCREMENTAL:
        _require_parent(options, machine)
    with ExitStack() as held:
        endpoint = held.enter_context(Endpoint(access, token.text, options.threads, options.stall_timeout, check))
        read = new_point.reading(endpoint, options.type, options)  # before anything is written
        store = unlocking.for_pull(options.output, options.group, options.identities, warnings.append)
        run = held.enter_context(machine_run.begun(store, machine, options.uuid or "", report, check, warnings))
        begin = _start(run, options)
        run.warnings.extend(begin.warnings)
        run.laps.end("prepare")
        made = CheckpointEntry(options.checkpoint, 0, automatic=False) if options.checkpoint else None
        backup = Backup(options.type, Cut(None, made, "crash-consistent", "not-known"))
        return run.done(new_point.made(run, options, backup, begin, read, layout.new_point_id()))


def _require_sense(options: Options) -> None:
    if options.token_file is None or options.type is None:
        raise errors.UsageError("--http-map also needs --token-file and --type")
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
            raise errors.UsageError(f"--uuid {options.uuid!r} is not a UUID") from None


def _require_parent(options: Options, machine: Machine) -> None:
    """Raise CheckpointUnusable if the store has no point to build on, before anything is written."""
    if marker.is_new(options.output):
        raise _no_parent(options, machine)
    target, _ = machine_run.series_of(marker.open_store(options.output), machine, options.uuid or "")
    _parent(options, machine, Points(target, target.heads()[0]))


def _start(run: Run, options: Options) -> Start:
    """Return where the backup starts, according to the user."""
    if options.type == BackupType.FULL:
        return Start(None, "requested" if run.points else "first-point")
    parent = _parent(options, run.machine, run.points)
    found = start.at_point(run.series, parent, run.check)
    if found.base is None:
        raise errors.CheckpointUnusable(f"point {parent.id} cannot be built on: pull a full backup")
    if options.since is None:
        run.warnings.append(
            f"it was not checked that the backup begins where point {parent.id} ended: give --since to check that"
        )
    return found


def _parent(options: Options, machine: Machine, points: Points) -> Point:
    """Return the newest point, or the newest with the checkpoint that the user names; CheckpointUnusable."""
    since = options.since
    made = ((point, point.manifest.checkpoint) for point in points.newest_first())
    found = next((point for point, entry in made if since is None or (entry and entry.name == since)), None)
    if found is None:
        raise _no_parent(options, machine)
    return found


def _no_parent(options: Options, machine: Machine) -> errors.CheckpointUnusable:
    of = f" with checkpoint {options.since}" if options.since else ""
    return errors.CheckpointUnusable(
        f"{options.output} has no point of {machine.domain}{of} for an incremental backup to build on: pull a full one"
    )
