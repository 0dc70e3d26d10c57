"""Cleanup: report and remove what dead runs left in a domain and a store, without making a point.

Owns: which domain and series are inspected. Must not know: what a run leaves, and how to find it (see reclaim.py).
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Optional

from ..core import errors
from ..core.errors import Check, Report
from ..hypervisor import domain
from ..pulling import held_series, holder, journal_files, reclaim
from ..pulling.held_series import Held
from ..pulling.leftover import DRY_RUN, Leftover
from ..repository import marker, series_choice
from .options.domains import CleanupOptions as Options


@dataclass(frozen=True)
class Result:
    """Every Leftover found; its `left` says why it still exists."""

    domain: str
    found: list[Leftover]


def cleanup(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Find what dead runs left, and remove it unless dry_run is set. Busy if a live run holds the domain or series."""
    with ExitStack() as stack:
        vm = stack.enter_context(domain.open(options.domain, options.uri, options.stall_timeout, check))
        hold = stack.enter_context(holder.holding(vm.uuid, vm.name))
        left_paused = vm.power.left_paused(hold)
        dead = next((run.id for run in reversed(journal_files.runs(vm.uuid))), None)
        if hold.starting and not left_paused and not options.dry_run:  # that start failed, or somebody took over
            hold.clear_start()
        with vm.power.awake(False, hold) if left_paused and not options.dry_run else nullcontext():
            found = reclaim.reclaim(vm, _held(options, vm, stack), options.dry_run)
        found += _lost_job(vm)
        return Result(vm.name, found + ([_paused(vm, dead, options.dry_run)] if left_paused else []))


def _lost_job(vm: domain.Domain) -> list[Leftover]:
    """Return the Leftover of a job that libvirt does not know, but that blocks others: only the user can end it."""
    try:
        vm.jobs.require_no_lost_job()
    except errors.JobStuck as error:
        return [Leftover(None, "job that libvirt has lost", str(error))]
    except (errors.DomainNotRunning, errors.DomainStopped):
        pass
    return []


def _paused(vm: domain.Domain, run: Optional[str], dry_run: bool) -> Leftover:
    """Return the Leftover of a domain that was off, and that a dead run, perhaps `run`, left paused.

    Its QEMU process was ended once what was left in it had been removed.
    """
    left = DRY_RUN if dry_run else "a job uses it, or somebody has resumed it" if vm.active else ""
    return Leftover(run, "paused QEMU process of the domain, which was off before", left)


def _held(options: Options, vm: domain.Domain, stack: ExitStack) -> Optional[Held]:
    if options.output is None:
        return None
    target = series_choice.of_domain(marker.open_store(options.output), vm.name, vm.uuid)
    if target.folder not in target.store.folders():
        return None
    return stack.enter_context(held_series.holding(target, "clean up"))
