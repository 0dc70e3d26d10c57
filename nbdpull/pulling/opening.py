"""The first steps of a backup: hold a domain that can be read, choose its disks, and find the way to them.

Owns: the order of these steps, in which everything that can be refused is refused before anything is begun. Must not
know: what a disk starts from, where the data goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Optional, Protocol

from ..core import errors
from ..core.choices import KUBEVIRT
from ..core.errors import Check
from ..hypervisor import domain
from . import holder, offline, preparation, route
from .preparation import Subject


class Wanted(Protocol):
    """The options of a backup that are needed here; see PullOptions."""

    @property
    def domain(self) -> str: ...
    @property
    def uri(self) -> Optional[str]: ...
    @property
    def disks(self) -> Sequence[str]: ...
    @property
    def exclude(self) -> Sequence[str]: ...
    @property
    def offline(self) -> str: ...
    @property
    def nbd(self) -> Optional[str]: ...
    @property
    def tls(self) -> Optional[str]: ...
    @property
    def stall_timeout(self) -> float: ...


class Opened(NamedTuple):
    """offline: how a domain that is off is read, None if it is running; warnings: from all steps."""

    subject: Subject
    offline: Optional[str]
    warnings: list[str]


@contextmanager
def opened(wanted: Wanted, check: Check) -> Iterator[Opened]:
    """Hold the domain inside the block: no other process on this machine can back it up."""
    if wanted.domain.startswith(KUBEVIRT):
        raise errors.UsageError(
            f"{wanted.domain} is not a domain of libvirt: only pull, plan, doctor, cleanup and release take virtual "
            "machines of KubeVirt"
        )
    route.parse(wanted.nbd, wanted.tls)  # refuse bad options before anything is done
    with ExitStack() as entered:
        vm = entered.enter_context(domain.open(wanted.domain, wanted.uri, wanted.stall_timeout, check))
        hold = entered.enter_context(holder.holding(vm.uuid, vm.name))
        reached = entered.enter_context(offline.reached(vm, wanted.offline, hold, check, wanted.stall_timeout))
        vm = reached.vm
        way = route.to(vm, wanted.nbd, wanted.tls)
        disks, warnings = preparation.chosen(vm, way, wanted.disks, wanted.exclude, stands_paused=bool(reached.way))
        vm.jobs.require_no_foreign_job()
        yield Opened(Subject(vm, way, disks), reached.way, [*reached.warnings, *warnings])
