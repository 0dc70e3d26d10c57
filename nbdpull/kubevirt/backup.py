"""A backup that we have KubeVirt make: from its objects until it can be read, and its end.

Owns: the order in which objects are made and removed, that it is still ours, and that it starts where it was asked to.
Must not know: what is read of it, why it has to start there, HTTP.

When a backup object goes, or its time is over, its tracker moves to the new checkpoint, whether anybody has read the
backup or not. So `finish` is called after what was read is durable, and what `close` ends before that costs the base.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from typing import Callable, NamedTuple, Optional

from ..core import errors
from . import objects, ours, remains
from .cluster import Cluster, Refused
from .endpoint import Access
from .given import Machine
from .objects import State
from .ours import Wish
from .remains import Remain

Scratch = Callable[[], int]  # tells bytes that it may take
POLL, MAX_POLL = 0.1, 2.0  # seconds between looks at a status, at first and at most
SETTLED = 10.0  # seconds until a tracker names its new checkpoint
PATIENCE = 5  # times stall_timeout: pods have to be started
NEEDS_PVC = "name a claim for the scratch with --pvc"

log = logging.getLogger("nbdpull.kubevirt")


class MovedBase(Exception):
    """The backup starts at another checkpoint than it was to."""


class Who(NamedTuple):
    """Whose the objects are. store: uuid of the store."""

    machine: Machine
    store: str
    run_id: str

    @property
    def name(self) -> str:
        return ours.run_name(self.run_id)

    @property
    def tracker(self) -> str:
        return ours.tracker_name(self.machine, self.store)


def require_known(cluster: Cluster, machine: Machine) -> objects.Object:
    """The VM; NoSuchDomain."""
    found = cluster.get(objects.VM, machine.namespace, machine.name)
    if found is None:
        raise errors.NoSuchDomain(f"namespace {machine.namespace} has no virtual machine {machine.name}")
    return found


def virtual_machine(cluster: Cluster, machine: Machine) -> objects.Object:
    """The VM, of which a backup can be made."""
    found = require_known(cluster, machine)
    require_able(machine, found)
    return found


def require_able(machine: Machine, found: objects.Object) -> None:
    """For others KubeVirt would wait for ever."""
    if not objects.uid(found):
        raise errors.HypervisorError(f"virtual machine {machine.domain} has no uid")
    if objects.is_off(found):
        raise errors.DomainNotRunning(f"virtual machine {machine.domain} is off: KubeVirt backs up running ones only")
    tracking = objects.tracking(found)
    if tracking not in ("Enabled", None):
        raise errors.Unsupported(
            f"virtual machine {machine.domain} has no changed block tracking ({tracking or 'not asked for'}), without "
            "which KubeVirt makes no backup: give it the label that the cluster selects for it, and restart it"
        )


def require_no_other(cluster: Cluster, machine: Machine, store: Optional[str]) -> None:
    """Busy where a backup of the VM runs that is of another store, or of somebody else. store: None: of any."""
    trackers = cluster.items(objects.TRACKER, machine.namespace)
    for each in cluster.items(objects.BACKUP, machine.namespace):
        mine = store is not None and ours.store_of(each) == store
        if objects.is_of(each, machine, trackers) and not mine and not objects.is_over(each):
            of = " that is not of this store" if store else ""
            told = f"virtual machine {machine.domain} has a backup{of}: {objects.name_of(each)}"
            whose = ours.store_of(each)
            end = (
                f"if its run has died, nbdpull cleanup with -o its store ({whose}) ends it" if whose else "wait for it"
            )
            raise errors.Busy(f"{told}; {end}")


def claims(cluster: Cluster, machine: Machine, found: objects.Object) -> dict[str, Optional[objects.Object]]:
    """{volume: its claim} of a VM; None where there is none, or we may not see it."""
    known: dict[str, Optional[objects.Object]] = {}
    for volume, name in objects.claims(found).items():
        try:
            known[volume] = cluster.get(objects.CLAIM, machine.namespace, name)
        except errors.AccessDenied:
            known[volume] = None
    return known


def scratch(claims: Iterable[Optional[objects.Object]]) -> int:
    """Bytes that the scratch of a backup may take: all that its claims hold; 0 where that is not known."""
    sizes = list(map(objects.capacity, claims))
    return sum(sizes) + (1 << 30) if all(sizes) and sizes else 0


class Backup:
    """Of one run. `begin`, then `wait`; `require_alive` after the last read; `finish` after the commit; `close` always.

    token: for the endpoint.
    """

    def __init__(self, cluster: Cluster, who: Who, stall_timeout: float) -> None:
        self._cluster, self._who, self._stall_timeout = cluster, who, stall_timeout
        self._made: list[tuple[str, str]] = []  # (kind, name), in the order of their removal from the end
        self._base: Optional[str] = None
        self._uid = ""
        self._finished = False
        self.token = secrets.token_urlsafe(32)

    @property
    def run_id(self) -> str:
        return self._who.run_id

    @property
    def _namespace(self) -> str:
        return self._who.machine.namespace

    # Before

    def sweep(self) -> list[str]:
        """Remove what dead runs of this store left. Busy where somebody else's backup of the VM runs. The series is
        held: no run of this store lives but this one."""
        require_no_other(self._cluster, self._who.machine, self._who.store)
        found = remains.found(self._cluster, self._who.machine, self._who.store).found
        for each in found:
            try:
                remains.remove(self._cluster, self._who.machine, each, self._stall_timeout)
            except errors.AccessDenied:
                if each.kind == objects.BACKUP:  # the others are in nobody's way
                    raise
        return [f"removed {each.what}, which an interrupted run left" for each in found if each.kind == objects.BACKUP]

    def base(self) -> Optional[str]:
        """The checkpoint that an incremental backup would start at."""
        return objects.latest_checkpoint(self._tracker())

    def _tracker(self) -> Optional[objects.Object]:
        return self._cluster.get(objects.TRACKER, self._namespace, self._who.tracker)

    # Its life

    def begin(
        self,
        base: Optional[str],
        skip_quiesce: bool,
        seconds: Optional[float],
        pvc: Optional[str],
        scratch: Callable[[], int],
    ) -> None:
        """base: the checkpoint that it has to start at, None: it is to be full; pvc: claim for the scratch, None: one
        of our own of scratch() bytes."""
        labelled = ours.labels(self._who.store, self._who.run_id, self._who.tracker)
        self._base = base
        if self._tracker() is None:
            self._create(objects.TRACKER, ours.tracker(self._who.machine, self._who.tracker, labelled))
        self._create(objects.SECRET, ours.secret(self._who.name, labelled, self.token))
        if pvc is None:
            pvc = self._create_claim(labelled, scratch())
        wish = Wish(self._who.tracker, base is None, skip_quiesce, seconds, pvc)
        self._create(objects.BACKUP, ours.backup(self._who.name, labelled, wish))

    def _create_claim(self, labelled: dict[str, str], size: int) -> str:
        if not size:
            raise errors.UsageError(f"how large the scratch has to be is not known: {NEEDS_PVC}")
        try:
            self._create(objects.CLAIM, ours.claim(self._who.name, labelled, size))
        except (Refused, errors.Unsupported, errors.AccessDenied) as error:
            raise type(error)(f"{error}; {NEEDS_PVC}") from None
        return self._who.name

    def _create(self, kind: str, body: objects.Object) -> None:
        self._made.append((kind, objects.name_of(body)))  # first: an answer may be lost
        created = self._cluster.create(kind, self._namespace, body)
        log.info("made %s %s", body["kind"], objects.name_of(body))
        if kind == objects.BACKUP:
            self._uid = objects.uid(created)

    def wait(self) -> State:
        """Until it can be read; MovedBase where it starts elsewhere than asked."""
        began, poll, told = time.monotonic(), POLL, ""
        while not (state := self._state()).ready:
            if state.told != told:
                log.info("backup %s: %s", self._who.name, state.told)
                began, told = time.monotonic(), state.told
            if time.monotonic() - began > PATIENCE * self._stall_timeout:
                raise errors.HypervisorError(f"backup {self._who.name} did not become ready: {told}")
            self._cluster.pause(poll)
            poll = min(2 * poll, MAX_POLL)
        self._require_base(state)
        return state

    def _require_base(self, state: State) -> None:
        """What KubeVirt began it at: its tracker does not move while a backup runs."""
        if state.type is None:
            raise errors.HypervisorError(f"backup {self._who.name} does not tell its type")
        if state.type == "incremental" and self.base() != self._base:
            raise MovedBase

    def _state(self) -> State:
        found = self._cluster.get(objects.BACKUP, self._namespace, self._who.name)
        if found is None:
            raise errors.JobLost(f"backup {self._who.name} was deleted by somebody else")
        state = objects.state(found, self._cluster.inside)
        if self._uid and state.uid != self._uid:
            raise errors.JobLost(f"backup {self._who.name} was replaced by another one of its name")
        if state.ended:
            raise errors.JobLost(f"backup {self._who.name}: {state.ended}")
        return state

    def renewed(self) -> Access:
        """Where it can be read by now; it may be made anew elsewhere."""
        try:
            access = self.wait().access
        except MovedBase:
            raise errors.JobLost(f"tracker {self._who.tracker} moved while backup {self._who.name} was read") from None
        assert access
        return access

    def require_alive(self) -> None:
        """JobLost where it is not there any more, or not ours, or its tracker has moved."""
        self._state()
        if self._base is not None and self.base() != self._base:
            raise errors.JobLost(f"tracker {self._who.tracker} moved while backup {self._who.name} was read")

    # Its end

    def finish(self, checkpoint: Optional[str]) -> list[str]:
        """What was read is durable. checkpoint: that the tracker has to name now. Return warnings."""
        self._finished = True
        self._cluster.heed()
        left = self._removed([each for each in reversed(self._made) if each[0] != objects.TRACKER])
        if left:
            return [f"left in the cluster: {each}" for each in left]
        try:
            latest = self._latest(checkpoint)
        except errors.NbdpullError as error:
            return [f"whether the next pull can be incremental is not known: {error}"]
        if latest != checkpoint:
            return [
                f"tracker {self._who.tracker} names checkpoint {latest or 'none'}, and not that of the point "
                f"({checkpoint or 'none'}): the next pull will be full"
            ]
        return []

    def _latest(self, checkpoint: Optional[str]) -> Optional[str]:
        """What the tracker names, as soon as it is this."""
        began = time.monotonic()
        while (latest := self.base()) != checkpoint and time.monotonic() - began < min(self._stall_timeout, SETTLED):
            self._cluster.pause(POLL)
        return latest

    def close(self) -> list[str]:
        """Unless it was finished, remove all that was made; return what could not be."""
        self._cluster.heed()
        return [] if self._finished else self._removed(list(reversed(self._made)))

    def _removed(self, made: Iterable[tuple[str, str]]) -> list[str]:
        """The backup first, until it is gone: it needs the others."""
        left = []
        for kind, name in made:
            try:
                remains.remove(self._cluster, self._who.machine, Remain(kind, name), self._stall_timeout)
                self._made.remove((kind, name))
            except errors.NbdpullError as error:
                left.append(f"{kind.rpartition('/')[2]}/{name} in namespace {self._namespace} ({error})")
        return left
