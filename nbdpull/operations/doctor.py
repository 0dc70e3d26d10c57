"""Doctor: is everything ready for pulls? Each finding is good, or says what to do. Nothing is changed.

Owns: the order of the checks, and that one missing part does not hide another. Must not know: what is checked (see
readiness/), what is printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from ..core import errors
from ..core.errors import Check, Report
from ..crypto import identity_files
from ..readiness import machine, versions
from ..readiness.finding import WARN, Finding, bad, good, guarded
from .options.domains import DoctorOptions as Options

if TYPE_CHECKING:
    from ..hypervisor.connection import Host


@dataclass(frozen=True)
class Result:
    """All Findings, in the order in which they are shown."""

    domain: Optional[str]
    findings: list[Finding]


def doctor(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Check this machine, libvirt, and a domain if one is named."""
    return Result(options.domain, list(_looks(options, check)))


def _looks(options: Options, check: Check) -> Iterator[Finding]:
    yield from machine.programs()
    yield from guarded("identity", _identities())
    check()
    try:
        from ..hypervisor import connection
    except errors.MissingSoftware as error:
        yield bad("libvirt's bindings", error)
        return
    try:
        with connection.host(options.uri) as host:
            yield from _host(host, options.scratch_dir)
    except errors.Failure as error:
        yield bad("libvirt", error)
        return
    if options.domain is not None:
        from ..readiness import domain

        yield from guarded(f"domain {options.domain}", domain.found(options.domain, options.uri, check))


def _identities() -> Iterator[Finding]:
    """Yield the Findings about the identities that verbs on this machine use if none is named."""
    found = identity_files.given([])
    if found:
        yield good("identity", ", ".join(each.what for each in found))
    for path, name in identity_files.meant([]):
        if identity_files.is_open_to_all(path):
            yield Finding(WARN, "identity", f"everybody on this machine can read {name}", f"chmod 600 {path}")


def _host(host: Host, scratch_dir: str) -> Iterator[Finding]:
    yield good("libvirt", f"{host.uri}, version {host.versions['libvirt']}")
    yield from versions.found(host.versions)
    if host.is_remote:
        yield Finding(WARN, "remote", f"{host.uri}: sockets and scratch are on that machine, and were not checked",
                      "run nbdpull doctor there; see --nbd for ways to its data")  # fmt: skip
    else:
        yield machine.scratch(scratch_dir)
        yield from machine.confinement()
    yield good("domains", ", ".join(host.names) or "none")
