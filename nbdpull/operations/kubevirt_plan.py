"""What a pull of kubevirt:NAMESPACE/VM would read, as far as the cluster's objects and a store show; none is begun.

Owns: the prediction of what the tracker will name. Must not know: how a backup is made, how a store is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from ..core.errors import Check, Report
from ..definitions.domain_xml import Disk
from ..format import layout
from ..kubevirt import backup, given, objects, remains
from ..kubevirt.backup import Who
from ..kubevirt.cluster import Cluster
from ..kubevirt.given import Machine
from ..repository import foreign, marker
from ..repository.points import Points
from ..repository.series import Series
from ..volumes import machine_run, start
from ..volumes.start import Start
from . import unlocking
from .options.domains import KubevirtPlanOptions as Options


@dataclass(frozen=True)
class Result:
    """What a pull would do, with the members of a plan.

    What only a map shows is None: a map takes a backup, and that moves the tracker.
    """

    domain: str
    since: Optional[str]
    parent: Optional[str]
    disks: list[dict[str, Any]]
    seconds: Optional[float]
    offline: Optional[str]
    warnings: list[str]


class _Kept(NamedTuple):
    """What a store has of the VM. store: uuid of the store."""

    store: Optional[str] = None
    series: Optional[Series] = None
    points: Points = Points()


def kubevirt_plan(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Plan a pull without changing anything. Errors as of the pull."""
    machine = given.machine(options.domain)
    cluster = Cluster(options.kubeconfig, options.context, options.stall_timeout, check)
    found = backup.virtual_machine(cluster, machine)
    kept = _kept(options, machine, objects.uid(found))
    backup.require_no_other(cluster, machine, kept.store)
    latest, warnings = _latest(cluster, machine, kept.store)
    begin = start.by_tracker(kept.series, kept.points, latest, options.full, check)
    volumes = [name for name, source in objects.volumes(found).items() if source]
    names = given.wanted(volumes, options.disks, options.exclude)
    claims = backup.claims(cluster, machine, found)
    sources, sizes = objects.sources(machine, found, claims), _sizes(claims)
    disks = [_disk(machine, begin, name, sources, sizes) for name in names]
    choice = begin.choice(disks)
    unknown = dict.fromkeys(("dirty_bytes", "zero_bytes", "data_bytes", "extents", "stored_bytes_estimate", "seconds"))
    described = [{**each, "size": sizes.get(each["name"]), **unknown} for each in choice.described(disks)]
    return Result(
        domain=machine.domain,
        since=choice.since,
        parent=choice.parent.id if choice.parent else None,
        disks=described,
        seconds=None,
        offline=None,
        warnings=[*cluster.warnings, *warnings, *begin.warnings, *choice.lost_warnings()],
    )


def _kept(options: Options, machine: Machine, uid: str) -> _Kept:
    if options.output is None or marker.is_new(options.output):
        return _Kept()
    store = unlocking.opened(options.output, options.identities)
    target, uid = machine_run.series_of(store, machine, uid)
    return _Kept(marker.uuid_of(store), target, foreign.points_of(target, uid))


def _latest(cluster: Cluster, machine: Machine, store: Optional[str]) -> tuple[Optional[str], list[str]]:
    """Return (the checkpoint that the tracker will name when a pull begins, warnings).

    A pull deletes the backups that dead runs left, and that moves the tracker.
    """
    if store is None:
        return None, []
    latest = backup.Backup(cluster, Who(machine, store, layout.new_point_id()), 0).base()
    warnings = []
    for each in remains.running(cluster, machine, store):
        state = objects.state(each, cluster.inside)
        latest = state.checkpoint[0] if state.checkpoint else latest
        warnings.append(f"backup {objects.name_of(each)} exists: a pull is running, or one died and left it")
    return latest, warnings


def _sizes(claims: dict[str, Optional[objects.Object]]) -> dict[str, int]:
    """Return {volume: bytes of its claim} for the claims that state their size."""
    return {volume: size for volume, claim in claims.items() if (size := objects.capacity(claim))}


def _disk(machine: Machine, begin: Start, name: str, sources: dict[str, str], sizes: dict[str, int]) -> Disk:
    """Return the Disk of a volume, with the size that it had last, if known: only a map shows the present size."""
    before = begin.base.size(name) if begin.base else None
    return begin.disk(machine, name, sources.get(name), before if before is not None else sizes.get(name, 0))
