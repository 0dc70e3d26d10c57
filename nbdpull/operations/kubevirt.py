"""A pull of kubevirt:NAMESPACE/VM: the volumes of a VirtualMachineBackup become a committed point.

Owns: the choice between a backup that the cluster makes for us (kubevirt_cluster) and one that already exists
(kubevirt_urls). Must not know: the steps of either.
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
from .options.pulls import KubevirtOptions as Options
from .prune import Pruned


@dataclass(frozen=True)
class Result:
    """A committed point, and what else the operator should know.

    partial: the disks of the point of which the store cannot make a whole image.
    """

    point: Point
    partial: frozenset[str]
    warnings: list[str]
    healed: list[Healed]
    pruned: Optional[Pruned] = None  # with --prune


def kubevirt(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make one point. report(**event) receives the progress; check() is called often, and its exception ends the run.

    Raises an NbdpullError; then neither a point nor any object that the run created in the cluster remains.
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
