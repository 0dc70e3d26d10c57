"""What dead runs left of themselves in a domain and a series: found, told, removed.

Owns: which runs are dead, and what of them may be removed. What is foreign, or belongs to a live run, or cannot be told
to be ours, is named and left alone. Must not know: how a run makes what it makes, or what is printed.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Optional

from ..core import errors
from ..format import layout
from ..hypervisor import backup_spec, domain
from ..repository.journal import JOURNAL, Hold, Run
from ..repository.series import Series
from ..storage.directory import DirectoryStore
from . import scratch_watch


@dataclass(frozen=True)
class Leftover:
    """run: id, or None where it is nobody's of us; what: a text; left: why it is still there, "" if it was removed."""

    run: Optional[str]
    what: str
    left: str = ""


def reclaim(
    vm: domain.Domain, series: Optional[Series], hold: Hold, dry_run: bool = False, keep: Optional[str] = None
) -> list[Leftover]:
    """Remove what dead runs left; return Leftovers. The domain is held, and the series, which may be None, locked.

    keep: id of a run that is gone on with.
    """
    runs = {name: _proved(run) for name, run in series.dead_runs().items()} if series else {}
    previous = hold.previous
    if previous:
        runs[previous.id] = previous
    if keep:
        runs.pop(keep, None)
    found = _frozen_guest(vm, previous, dry_run)
    for run_id, run in runs.items():
        found += _reclaim_run(vm, series, run_id, run, dry_run)
    found += _unknown_job(vm, {keep, *(item.run for item in found)})
    if not dry_run:
        _end_of_journals(series)
        if previous and previous.id != keep and not any(item.left for item in found if item.run == previous.id):
            hold.clear()
    return found


def _proved(run: Optional[Run]) -> Optional[Run]:
    """A run as its store tells of it, without a socket that might be any file: that of a run has its id in its name, or
    this machine's own record of the run names it."""
    if run and run.socket and os.path.basename(run.socket) != backup_spec.socket_name(run.id):
        return replace(run, socket=None)
    return run


def plan_of(run: Run) -> backup_spec.BackupSpec:
    """The BackupSpec that a journal tells of."""
    names = ("disks", "checkpoint", "checkpoint_disks", "socket", "scratch_dir")
    return backup_spec.BackupSpec(run_id=run.id, **{name: getattr(run, name) for name in names})


def _frozen_guest(vm: domain.Domain, previous: Optional[Run], dry_run: bool) -> list[Leftover]:
    """One whose nbdpull was killed together with the guard that thaws then."""
    if not vm.power.left_frozen:
        return []
    left = "dry run" if dry_run else ""
    if not dry_run:
        try:
            vm.power.thaw_guest()
        except errors.NbdpullError as error:
            left = str(error)
    return [Leftover(previous.id if previous else None, "freeze of the guest's file systems", left)]


def _reclaim_run(
    vm: domain.Domain, series: Optional[Series], run_id: str, run: Optional[Run], dry_run: bool
) -> list[Leftover]:
    if run is None:
        return _remove_files(series, run_id, [], dry_run)
    is_here = series is not None and run_id in series.uncommitted()
    is_copy = series is not None and is_here and series.is_copy(run)
    if is_copy and run.is_alive is None and _has_no_part(vm, run):
        return _remove_files(series, run_id, [], dry_run)
    why = _why_not_ours(vm, run)
    if why:
        return [Leftover(run_id, f"what {run.whose} left", why)]
    found = vm.backups.traces(plan_of(run)).found()
    committed = False if "backup job" in found else _committed(run)
    if committed is None and is_here and not is_copy:
        committed = False  # the store was moved, and here it is without a manifest
    if committed:
        return _remove_files(series, run_id, [], dry_run)  # of a copy that was made before the commit
    if committed is None:
        why = f"{run.store} is not there to tell whether the run ended well"
        return [Leftover(run_id, what, why) for what in found] + _remove_files(series, run_id, found, dry_run, is_copy)
    if dry_run:
        return [Leftover(run_id, what, "dry run") for what in found] + _remove_files(series, run_id, [], True)
    return _remove(vm, run, found) + _remove_files(series, run_id, vm.backups.traces(plan_of(run)).found(), False)


def _why_not_ours(vm: domain.Domain, run: Run) -> str:
    if run.uuid != vm.uuid:
        return f"it is of another domain named {run.domain} (uuid {run.uuid})"
    if run.is_alive:
        return "its process is alive"
    if run.is_alive is None:
        return f"it ran on {run.host}: run nbdpull cleanup there"
    return ""


def _has_no_part(vm: domain.Domain, run: Run) -> bool:
    """Whether the domain is the run's, and shows nothing of it: a run that lives has its job there."""
    return run.uuid == vm.uuid and not vm.backups.traces(plan_of(run)).found()


def _committed(run: Run) -> Optional[bool]:
    """Whether the run's point was published; None where its store does not tell."""
    store = DirectoryStore(run.store)
    if store.holds(f"{run.folder}/{layout.MANIFEST}"):
        return True
    return False if store.holds(f"{run.folder}/{JOURNAL}") else None


def _remove(vm: domain.Domain, run: Run, found: list[str]) -> list[Leftover]:
    starved = run.guest_runs and "backup job" in found and scratch_watch.starves(vm, run.scratch_dir)
    left = vm.backups.traces(plan_of(run)).clear()
    still = vm.backups.traces(plan_of(run)).found()
    items = [Leftover(run.id, what, "; ".join(left) or "not known" if what in still else "") for what in found]
    if starved and "backup job" not in still:
        vm.power.resume_guest()
        items.append(Leftover(run.id, "pause of the guest for want of scratch space"))
    return items


def _remove_files(
    series: Optional[Series], run_id: str, still: Collection[str], dry_run: bool, wanted: bool = True
) -> list[Leftover]:
    """The run's folder; its journal stays as long as something in the domain does."""
    if not wanted or series is None or run_id not in series.uncommitted():
        return []
    if not dry_run:
        series.remove_uncommitted(run_id, keep_journal=bool(still))
    return [Leftover(run_id, f"partial files in {series.store.path(series.folder, run_id)}", "dry run" * dry_run)]


def _unknown_job(vm: domain.Domain, known: Collection[Optional[str]]) -> list[Leftover]:
    backup = vm.jobs.backup()
    if backup is None or (backup.run_id and backup.run_id in known):
        return []
    why = "it is not nbdpull's"
    if backup.run_id:
        why = "no record here tells whether its run is alive; if it is not, end the job with virsh domjobabort"
    return [Leftover(backup.run_id, "backup job" + (f" of run {backup.run_id}" if backup.run_id else ""), why)]


def _end_of_journals(series: Optional[Series]) -> None:
    """A run that died between its commit and the removal of its journal has nothing to be reclaimed."""
    if series is None:
        return
    for point in series.load()[0]:
        series.store.remove_file(f"{series.folder}/{point.id}/{JOURNAL}")
