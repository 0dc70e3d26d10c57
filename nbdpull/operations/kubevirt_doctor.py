"""Doctor for kubevirt:NAMESPACE/VM: is all fit for pulls? Each finding is good, or says what to do.

Owns: the order of the looks, and that what is missing hides nothing else. Must not know: what is found (readiness/
does), what is printed.
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
from .options import KubevirtDoctorOptions as Options


@dataclass(frozen=True)
class Result:
    """All Findings, in the order in which a person reads them."""

    domain: str
    findings: list[Finding]


def kubevirt_doctor(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Look at the cluster, and at a virtual machine of it; nothing is changed."""
    return Result(options.domain, list(_looks(options, given.machine(options.domain), check)))


def _looks(options: Options, machine: Machine, check: Check) -> Iterator[Finding]:
    try:
        cluster = Cluster(options.kubeconfig, options.context, options.stall_timeout, check)
    except errors.NbdpullError as error:
        yield bad("cluster", error)
        return
    yield from kubevirt.found(cluster, machine)
