"""Release of kubevirt:NAMESPACE/VM: remove everything that nbdpull has in the cluster for this VM, for any store.

Owns: that nothing is removed while a backup of the VM runs. Must not know: stores (the next pull into each is full),
which objects are ours, how they are removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..core.errors import Check, Report
from ..kubevirt import backup, given, remains
from ..kubevirt.cluster import Cluster
from ..pulling.leftover import Leftover, removed
from .options.domains import KubevirtReleaseOptions as Options


@dataclass(frozen=True)
class Result:
    """Every Leftover found; its `left` says why it still exists."""

    domain: str
    found: list[Leftover]


def kubevirt_release(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Remove every tracker, and what dead runs left.

    Busy if a backup of the VM runs; NoSuchDomain if there is neither the VM nor any object of ours for it.
    """
    machine = given.machine(options.domain)
    cluster = Cluster(options.kubeconfig, options.context, options.stall_timeout, check)
    if not options.dry_run:
        backup.require_no_other(cluster, machine, None)
    left, hidden = remains.found(cluster, machine, None, remains.ALL)
    if not left:
        backup.require_known(cluster, machine)
    found = []
    for each in left:
        remove = partial(remains.remove, cluster, machine, each, options.stall_timeout)
        found.append(removed(each.run, each.what, remove, options.dry_run))
    return Result(machine.domain, found + [Leftover(None, what, why) for what, why in hidden])
