"""What dead runs left in a domain and a series: find, report and remove it.

Owns: which runs are dead, and which of their remains may be removed. Things that are foreign, belong to a live run, or
cannot be recognized as ours are reported and left alone. Must not know: how a run makes things, or what is printed.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Callable, Optional

from ..core import errors
from ..format import layout
from ..hypervisor import backup_spec, domain
from ..repository import announcement, half_points, removal
from ..repository.announcement import Announcement
from ..repository.series import Series
from ..storage import place
from . import journal_files, scratch_watch
from .held_series import Held
from .journal import Run
from .leftover import DRY_RUN, Leftover

# Another run's store cannot be read: a user who pulls into a directory need not have the credentials for a bucket.
_UNSEEN = errors.StoreError, errors.AccessDenied, errors.MissingSoftware, errors.UsageError


def reclaim(
    vm: domain.Domain, held: Optional[Held], dry_run: bool = False, keep: Optional[str] = None
) -> list[Leftover]:
    """Remove what dead runs left; return Leftovers. The caller holds the domain.

    held: the series, None if there is none; keep: id of a run that is resumed.
    """
    known = journal_files.runs(vm.uuid)
    runs = [run for run in known if run.id != keep]
    seen = {run.id for run in runs if _why_not_ours(run) or _is_here(held, run)}
    found = _frozen_guest(vm, runs[-1] if runs else None, dry_run)
    for run in runs:
        found += _reclaim_run(vm, held, run, dry_run)
    if held:
        found += _half_points(vm, held, {keep, *seen}, dry_run)
    found += _unknown_job(vm, {run.id for run in known})
    return found


def plan_of(run: Run) -> backup_spec.BackupSpec:
    """Return the BackupSpec that a journal records."""
    names = ("disks", "checkpoint", "checkpoint_disks", "socket", "scratch_dir")
    return backup_spec.BackupSpec(run_id=run.id, **{name: getattr(run, name) for name in names})


def _frozen_guest(vm: domain.Domain, previous: Optional[Run], dry_run: bool) -> list[Leftover]:
    """Thaw a guest whose nbdpull was killed together with the guard that would have thawed it."""
    if not vm.power.left_frozen:
        return []
    left = DRY_RUN if dry_run else ""
    if not dry_run:
        try:
            vm.power.thaw_guest()
        except errors.NbdpullError as error:
            left = str(error)
    return [Leftover(previous.id if previous else None, "freeze of the guest's file systems", left)]


def _reclaim_run(vm: domain.Domain, held: Optional[Held], run: Run, dry_run: bool) -> list[Leftover]:
    """Remove what a run with a journal here left in the domain, and its half point if that is in this series."""
    why = _why_not_ours(run)
    if why:
        return [Leftover(run.id, f"what {run.whose} left", why)]
    found, is_here = vm.backups.traces(plan_of(run)).found(), _is_here(held, run)
    committed = False if "backup job" in found or is_here else _committed(run)
    items = []
    if committed is None:
        why = f"{run.where} is missing or cannot be read, so it is not known whether the run succeeded"
        items = [Leftover(run.id, what, why) for what in found]
    elif not committed:
        items = [Leftover(run.id, what, DRY_RUN) for what in found] if dry_run else _remove(vm, run, found)
    if is_here and held:
        items.append(_half_point(held.series, run.id, dry_run))
    if not dry_run:
        _end_journal(run, any(item.left for item in items), withdrawn=committed is False)
    return items


def _is_here(held: Optional[Held], run: Run) -> bool:
    """Return whether the half point of a run is in this series, which may have been moved; a copy does not count."""
    if held is None or run.id not in half_points.names(held.series, held.points.ids):
        return False
    announced = half_points.announced(held.series, run.id)
    return announced is not None and not half_points.is_copy(held.series, announced)


def _end_journal(run: Run, is_left: bool, withdrawn: bool) -> None:
    """Remove the journal if nothing of the run is left."""
    if not is_left:
        journal_files.remove(run)
    elif withdrawn and not run.withdrawn:
        journal_files.withdraw(run)


def _why_not_ours(run: Run) -> str:
    """Return why the remains of a run are left alone, "" if they may be removed."""
    alive = journal_files.is_alive(run)
    if alive:
        return "its process is alive"
    return f"it ran on {run.process.host}: run nbdpull cleanup there" if alive is None else ""


def _committed(run: Run) -> Optional[bool]:
    """Return whether the run's point was committed; None if that cannot be determined from its store."""
    if run.store is None:
        return run.committed
    with suppress(*_UNSEEN):
        store = place.opened(run.store)
        if run.server not in (None, place.server(store)):  # a bucket of the same name on another server
            return None
        if store.holds(f"{run.folder}/{layout.MANIFEST}"):
            return True
        return False if run.withdrawn or store.holds(f"{run.folder}/{announcement.NAME}") else None
    return None


def _remove(vm: domain.Domain, run: Run, found: list[str]) -> list[Leftover]:
    starved = run.guest_runs and "backup job" in found and scratch_watch.starves(vm, run.scratch_dir)
    left = vm.backups.traces(plan_of(run)).clear()
    still = vm.backups.traces(plan_of(run)).found()
    items = [Leftover(run.id, what, "; ".join(left) or "not known" if what in still else "") for what in found]
    if starved and "backup job" not in still:
        vm.power.resume_guest()
        items.append(Leftover(run.id, "pause of the guest because scratch was full"))
    return items


def _half_points(vm: domain.Domain, held: Held, seen: Collection[Optional[str]], dry_run: bool) -> list[Leftover]:
    """Remove half points that no journal here records, or that a journal records at another place; remove the
    announcement of the newest point, too."""
    found, series = [], held.series
    for run_id in half_points.names(series, held.points.ids):
        if run_id in seen:
            continue
        announced = half_points.announced(series, run_id)
        why = _why_half_point_stays(vm, series, announced) if announced else ""
        if announced and why:
            found.append(Leftover(run_id, f"what {announced.whose} left", why))
        elif announced is None and (why := removal.why_stays(series, run_id)):
            found.append(Leftover(run_id, f"files in {series.store.path(series.folder, run_id)}", why))
        else:
            found.append(_half_point(series, run_id, dry_run, half_points.give_to_sweep))
    if not dry_run and held.points.newest:
        half_points.end_announcement(series, held.points.newest.id)
    return found


def _why_half_point_stays(vm: domain.Domain, series: Series, announced: Announcement) -> str:
    if announced.uuid != vm.uuid:
        return f"it belongs to another domain named {announced.domain} (uuid {announced.uuid})"
    if announced.is_alive:
        return "its process is alive"
    job = vm.jobs.backup()
    is_idle = job is None or job.run_id != announced.id  # else the run may be alive, and this is not a copy
    may_go = is_idle and (half_points.is_copy(series, announced) or half_points.is_forsaken(series, announced.id))
    if announced.is_alive is None and not may_go:
        return f"it ran on {announced.process.host}: run nbdpull cleanup there"
    return "" if may_go else half_points.why_in_use(series, announced.id, announced)


def _half_point(
    series: Series, run_id: str, dry_run: bool, remove: Callable[[Series, str], None] = half_points.remove
) -> Leftover:
    if not dry_run:
        remove(series, run_id)
    what = f"partial files in {series.store.path(series.folder, run_id)}"
    return Leftover(run_id, what, DRY_RUN if dry_run else "")


def _unknown_job(vm: domain.Domain, known: Collection[Optional[str]]) -> list[Leftover]:
    backup = vm.jobs.backup()
    if backup is None or (backup.run_id and backup.run_id in known):
        return []
    why = "it is not nbdpull's"
    if backup.run_id:
        why = "this machine has no record of its run; if that is not alive, end the job with virsh domjobabort"
    return [Leftover(backup.run_id, "backup job" + (f" of run {backup.run_id}" if backup.run_id else ""), why)]
