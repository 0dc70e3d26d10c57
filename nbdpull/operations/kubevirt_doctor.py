"""Doctor for kubevirt:NAMESPACE/VM: is everything ready for pulls? Each finding is good, or says what to do.

Owns: the order of the checks, and that one missing part does not hide another. Must not know: what is checked (see
readiness/), what is printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..core import errors
from ..core.errors import Check, Report
from ..kubevirt import given
from ..kubevirt.cluster import Cluster
from ..kubevirt.given import Machine
from ..readiness import kubevirt
from ..readiness.finding import Finding, bad
from .options.domains import KubevirtDoctorOptions as Options


@dataclass(frozen=True)
class Result:
    """All Findings, in the order in which they are shown."""

    domain: str
    findings: list[Finding]


def kubevirt_doctor(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Check the cluster and one of its virtual machines; nothing is changed."""
    return Result(options.domain, list(_looks(options, given.machine(options.domain), check)))


def _looks(options: Options, machine: Machine, check: Check) -> Iterator[Finding]:
    try:
        cluster = Cluster(options.kubeconfig, options.context, options.stall_timeout, check)
    except errors.Failure as error:
        yield bad("cluster", error)
        return
    yield from kubevirt.found(cluster, machine)
