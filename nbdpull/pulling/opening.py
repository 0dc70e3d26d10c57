"""What a backup begins with: a domain that is held and can be read, its disks, and the way to them.

Owns: the order of these steps, in which all is refused that can be before anything is begun. Must not know: what a disk
starts from, where what is read goes.
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
    """What of the options of a backup is needed here; see PullOptions."""

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
    """offline: how the domain is read that is off, None where it is up; warnings: of all this."""

    subject: Subject
    offline: Optional[str]
    warnings: list[str]


@contextmanager
def opened(wanted: Wanted, check: Check) -> Iterator[Opened]:
    """Nobody else backs the domain up as long as the block lasts."""
    if wanted.domain.startswith(KUBEVIRT):
        raise errors.UsageError(
            f"{wanted.domain} is no domain of libvirt: only pull, plan, doctor, cleanup and release take virtual "
            "machines of KubeVirt"
        )
    route.parse(wanted.nbd, wanted.tls)  # before anything is done
    with ExitStack() as entered:
        vm = entered.enter_context(domain.open(wanted.domain, wanted.uri, wanted.stall_timeout, check))
        hold = entered.enter_context(holder.holding(vm.uuid, vm.name))
        reached = entered.enter_context(offline.reached(vm, wanted.offline, hold, check, wanted.stall_timeout))
        vm = reached.vm
        way = route.to(vm, wanted.nbd, wanted.tls)
        disks, warnings = preparation.chosen(vm, way, wanted.disks, wanted.exclude, stands_paused=bool(reached.way))
        vm.jobs.require_no_foreign_job()
        yield Opened(Subject(vm, way, disks), reached.way, [*reached.warnings, *warnings])
