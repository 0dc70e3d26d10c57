"""A pull of kubevirt:NAMESPACE/VM: the volumes of a VirtualMachineBackup become a committed point.

Owns: who makes the backup, the cluster for us (kubevirt_cluster) or somebody else (kubevirt_urls). Must not know: the
steps of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..core import deadline
from ..core.errors import Check, Report
from ..kubevirt import given
from ..repository.series import Point
from . import kubevirt_cluster, kubevirt_urls
from .options import KubevirtOptions as Options


@dataclass(frozen=True)
class Result:
    """A committed point, and what else the operator should know. partial: its disks of which no whole image can be made
    by the store."""

    point: Point
    partial: frozenset[str]
    warnings: list[str]


def kubevirt(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make one point. report(**event) is told of progress; check() is called often, what it raises ends the run.

    Raises an NbdpullError; then no point is left, and nothing in the cluster that this made.
    """
    machine = given.machine(options.domain)
    check = deadline.bounded(check, options.max_duration, "the pull")
    pulled = kubevirt_urls.pulled if options.http_map else kubevirt_cluster.pulled
    return Result(*pulled(options, machine, partial(report, domain=machine.domain), check))
