"""The watchers of a backup job: of its scratch, its domain, and the connections that QEMU must close first.

Owns: which watchers there are, and when each is active; one check covers everything that may end a run. Must not know:
what is read from the job, and what is done with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Optional, Union

from ..core.errors import Check
from ..hypervisor.backup_spec import BackupSpec
from ..hypervisor.domain import Domain
from ..hypervisor.domain_watch import DomainWatch
from ..hypervisor.socket_keeper import SocketKeeper
from ..nbd import address
from . import scratch_watch
from .live_disk import Server


class Checks:
    """Several checks that are called as one; others than the first are added later."""

    def __init__(self, first: Check) -> None:
        self._all = [first]

    def add(self, check: Check) -> None:
        self._all.append(check)

    def __call__(self) -> None:
        for check in self._all:
            check()


class Lookout:
    """The watchers of one job: `guarding` is entered from before its start until after its end, `watching` while it is
    read.

    keeps_sockets: see socket_keeper.required; check: that of the run; the checks of the watchers are added to it.
    """

    def __init__(
        self,
        vm: Domain,
        plan: BackupSpec,
        check: Checks,
        keeps_sockets: bool,
        scratch_limit: Optional[int] = None,
    ) -> None:
        self._vm, self._run_id = vm, plan.run_id
        self.check = check
        self.scratch = scratch_watch.ScratchWatch(vm, plan.scratch_dir, scratch_limit)
        self._domain = DomainWatch(vm.require_there)
        self._keeps_sockets = keeps_sockets
        self._keeper: Optional[SocketKeeper] = None
        check.add(self.scratch.check)
        check.add(self._domain.check)
        vm.heed(check)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        with ExitStack() as entered:
            entered.enter_context(self.scratch.guarding_guest())
            if self._keeps_sockets:
                self._keeper = entered.enter_context(SocketKeeper(self._vm.uri, self._vm.uuid, self._run_id))
                self.check.add(self._keeper.check)
            yield

    @contextmanager
    def watching(self, job: scratch_watch.Job) -> Iterator[None]:
        with self.scratch.watching(job), self._domain.watching():
            yield

    def kept(self, server: Union[str, address.Tcp]) -> Server:
        """Return the server; if QEMU must close its connections first, in a form that keeps them open."""
        return address.Kept(server, self._keeper) if self._keeper else server
