"""Cleanup of kubevirt:NAMESPACE/VM: report and remove what dead runs left in the cluster and in a store.

Owns: that no run of the store is alive meanwhile. Must not know: which objects are ours, how they are removed.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from ..core import errors
from ..core.errors import Check, Report
from ..kubevirt import given, remains
from ..kubevirt.cluster import Cluster
from ..pulling import held_series
from ..pulling.leftover import Leftover, removed
from ..repository import marker
from ..volumes import machine_run
from .options.domains import KubevirtCleanupOptions as Options


@dataclass(frozen=True)
class Result:
    """Every Leftover found; its `left` says why it still exists."""

    domain: str
    found: list[Leftover]


def kubevirt_cleanup(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Find what dead runs left, and remove it unless dry_run is set. Busy if a live run holds the series."""
    machine = given.machine(options.domain)
    if options.output is None:
        raise errors.UsageError(
            f"cleanup of {options.domain} needs -o DIR: only the store shows whether the run that made an object of "
            "the cluster is still alive"
        )
    store = marker.open_store(options.output)
    cluster = Cluster(options.kubeconfig, options.context, options.stall_timeout, check)
    with ExitStack() as held:
        target, _ = machine_run.series_of(store, machine, "")
        found = []
        if target.folder in store.folders():
            found = machine_run.reclaimed(held.enter_context(held_series.holding(target)), options.dry_run)
        left, hidden = remains.found(cluster, machine, marker.uuid_of(store))
        for each in left:
            remove = partial(remains.remove, cluster, machine, each, options.stall_timeout)
            found.append(removed(each.run, each.what, remove, options.dry_run))
        return Result(machine.domain, found + [Leftover(None, what, why) for what, why in hidden])
