"""A pull of kubevirt:NAMESPACE/VM: the volumes of a VirtualMachineBackup become a committed point.

Owns: who makes the backup, the cluster for us (kubevirt_cluster) or somebody else (kubevirt_urls). Must not know: the
steps of either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Optional

from ..core import deadline
from ..core.errors import Check, Report
from ..kubevirt import given
from ..pulling.copies import Healed
from ..repository.series import Point
from . import kubevirt_cluster, kubevirt_urls, prune
from .options import KubevirtOptions as Options
from .prune import Pruned


@dataclass(frozen=True)
class Result:
    """A committed point, and what else the operator should know. partial: its disks of which no whole image can be made
    by the store."""

    point: Point
    partial: frozenset[str]
    warnings: list[str]
    healed: list[Healed]
    pruned: Optional[Pruned] = None  # with --prune


def kubevirt(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make one point. report(**event) is told of progress; check() is called often, what it raises ends the run.

    Raises an NbdpullError; then no point is left, and nothing in the cluster that this made.
    """
    machine = given.machine(options.domain)
    if options.prune:
        prune.require_policy(options.output, machine.domain)
    check = deadline.bounded(check, options.max_duration, "the pull")
    pulled = kubevirt_urls.pulled if options.http_map else kubevirt_cluster.pulled
    made = Result(*pulled(options, machine, partial(report, domain=machine.domain), check))
    if not options.prune:
        return made
    pruned = prune.after_pull(options.output, made.point, options.identities, check)
    return replace(made, pruned=pruned, warnings=[*made.warnings, *prune.warnings(pruned)])
