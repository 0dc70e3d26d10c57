"""A backup that KubeVirt makes for us: from the creation of its objects until it can be read, and its end.

Owns: the order in which objects are created and removed, and the checks that the backup is still ours and starts at the
requested checkpoint. Must not know: what is read from it, why it has to start there, HTTP.

When a backup object is deleted or expires, its tracker moves to the new checkpoint, whether or not anybody has read the
backup. So call `finish` once what was read is durable. If `close` ends the backup before that, the base is lost.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..core.choices import BackupType
from . import objects, ours, remains
from .cluster import Cluster, Refused
from .endpoint import Access
from .given import Machine
from .objects import State
from .ours import Wish
from .remains import Remain

POLL, MAX_POLL = 0.1, 2.0  # seconds between checks of a status, at first and at most
SETTLED = 10.0  # seconds to wait until a tracker names its new checkpoint
PATIENCE = 5  # times stall_timeout: pods have to start
NEEDS_PVC = "name a claim for the scratch with --pvc"

log = logging.getLogger("nbdpull.kubevirt")


class MovedBase(Exception):
    """The backup starts at a checkpoint other than the requested one."""


class Who(NamedTuple):
    """The owner of the objects. store: uuid of the store."""

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
    """Return the VM; NoSuchDomain."""
    found = cluster.get(objects.VM, machine.namespace, machine.name)
    if found is None:
        raise errors.NoSuchDomain(f"namespace {machine.namespace} has no virtual machine {machine.name}")
    return found


def virtual_machine(cluster: Cluster, machine: Machine) -> objects.Object:
    """Return the VM; raise unless it can be backed up."""
    found = require_known(cluster, machine)
    require_able(machine, found)
    return found


def require_able(machine: Machine, found: objects.Object) -> None:
    """Raise if the VM cannot be backed up: KubeVirt would wait for ever."""
    if not objects.uid(found):
        raise errors.HypervisorError(f"virtual machine {machine.domain} has no uid")
    if objects.is_off(found):
        raise errors.DomainNotRunning(f"virtual machine {machine.domain} is off: KubeVirt backs up only running ones")
    tracking = objects.tracking(found)
    if tracking not in ("Enabled", None):
        raise errors.Unsupported(
            f"virtual machine {machine.domain} has no changed block tracking ({tracking or 'not requested'}), without "
            "which KubeVirt makes no backup: add the label by which the cluster selects VMs for it, and restart it"
        )


def require_no_other(cluster: Cluster, machine: Machine, store: Optional[str]) -> None:
    """Raise Busy if the VM has a running backup of another store, or of another program. store: None = of any store."""
    trackers = cluster.items(objects.TRACKER, machine.namespace)
    for each in cluster.items(objects.BACKUP, machine.namespace):
        mine = store is not None and ours.store_of(each) == store
        if objects.is_of(each, machine, trackers) and not mine and not objects.is_over(each):
            of = " that does not belong to this store" if store else ""
            problem = f"virtual machine {machine.domain} has a backup{of}: {objects.name_of(each)}"
            whose = ours.store_of(each)
            end = f"if its run has died, nbdpull cleanup with -o its store ({whose}) ends it" if whose else "let it end"
            raise errors.Busy(f"{problem}; {end}")


def claims(cluster: Cluster, machine: Machine, found: objects.Object) -> dict[str, Optional[objects.Object]]:
    """Return {volume: its claim} of a VM; None if it does not exist, or we may not see it."""
    known: dict[str, Optional[objects.Object]] = {}
    for volume, name in objects.claims(found).items():
        try:
            known[volume] = cluster.get(objects.CLAIM, machine.namespace, name)
        except errors.AccessDenied:
            known[volume] = None
    return known


def scratch(claims: Iterable[Optional[objects.Object]]) -> int:
    """Return the bytes that the scratch of a backup may take: the total size of its claims; 0 if unknown."""
    sizes = list(map(objects.capacity, claims))
    return sum(sizes) + (1 << 30) if all(sizes) and sizes else 0


class Backup:
    """The backup of one run.

    Call `begin`, then `wait`; `require_alive` after the last read; `finish` after the commit; always `close`. token:
    for the endpoint.
    """

    def __init__(self, cluster: Cluster, who: Who, stall_timeout: float) -> None:
        self._cluster, self._who, self._stall_timeout = cluster, who, stall_timeout
        self._made: list[tuple[str, str]] = []  # (kind, name), to be removed from the end backwards
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
        """Remove what dead runs of this store left. Busy if the VM has a running backup of somebody else.

        The caller holds the series, so no other run of this store is alive.
        """
        require_no_other(self._cluster, self._who.machine, self._who.store)
        found = remains.found(self._cluster, self._who.machine, self._who.store).found
        for each in found:
            try:
                remains.remove(self._cluster, self._who.machine, each, self._stall_timeout)
            except errors.AccessDenied:
                if each.kind == objects.BACKUP:  # the other objects are in nobody's way
                    raise
        return [f"removed {each.what}, which an interrupted run left" for each in found if each.kind == objects.BACKUP]

    def base(self) -> Optional[str]:
        """Return the checkpoint that an incremental backup would start at."""
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
        """Create the objects of the backup.

        base: the checkpoint that it has to start at, None = full; pvc: claim for the scratch, None = a claim of our own
        with scratch() bytes.
        """
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
            raise errors.UsageError(f"the size of the scratch is unknown: {NEEDS_PVC}")
        try:
            self._create(objects.CLAIM, ours.claim(self._who.name, labelled, size))
        except (Refused, errors.Unsupported, errors.AccessDenied) as error:
            raise type(error)(f"{error}; {NEEDS_PVC}") from None
        return self._who.name

    def _create(self, kind: str, body: objects.Object) -> None:
        self._made.append((kind, objects.name_of(body)))  # before the request: its answer may be lost
        created = self._cluster.create(kind, self._namespace, body)
        log.info("made %s %s", body["kind"], objects.name_of(body))
        if kind == objects.BACKUP:
            self._uid = objects.uid(created)

    def wait(self) -> State:
        """Wait until the backup can be read; MovedBase if it starts at another checkpoint than requested."""
        began, poll, conditions = time.monotonic(), POLL, ""
        while not (state := self._state()).ready:
            if state.conditions != conditions:
                log.info("backup %s: %s", self._who.name, state.conditions)
                began, conditions = time.monotonic(), state.conditions
            if time.monotonic() - began > PATIENCE * self._stall_timeout:
                raise errors.HypervisorError(f"backup {self._who.name} did not become ready: {conditions}")
            self._cluster.pause(poll)
            poll = min(2 * poll, MAX_POLL)
        self._require_base(state)
        return state

    def _require_base(self, state: State) -> None:
        """Check where KubeVirt started it: its tracker does not move while a backup runs.

        A backup that should be full may be an incremental one: everything of it is read.
        """
        if state.type is None:
            raise errors.HypervisorError(f"backup {self._who.name} does not report its type")
        if self._base is not None and state.type == BackupType.INCREMENTAL and self.base() != self._base:
            raise MovedBase

    def _state(self) -> State:
        found = self._cluster.get(objects.BACKUP, self._namespace, self._who.name)
        if found is None:
            raise errors.JobLost(f"backup {self._who.name} was deleted by somebody else")
        state = objects.state(found, self._cluster.inside)
        if self._uid and state.uid != self._uid:
            raise errors.JobLost(f"backup {self._who.name} was replaced by another backup of this name")
        if state.ended:
            raise errors.JobLost(f"backup {self._who.name}: {state.ended}")
        return state

    def renewed(self) -> Access:
        """Return where it can be read now: KubeVirt may create the endpoint anew elsewhere."""
        try:
            access = self.wait().access
        except MovedBase:
            raise errors.JobLost(f"tracker {self._who.tracker} moved while backup {self._who.name} was read") from None
        assert access
        return access

    def require_alive(self) -> None:
        """Raise JobLost if the backup is gone or not ours, or its tracker has moved."""
        self._state()
        if self._base is not None and self.base() != self._base:
            raise errors.JobLost(f"tracker {self._who.tracker} moved while backup {self._who.name} was read")

    # Its end

    def finish(self, checkpoint: Optional[str]) -> list[str]:
        """Remove the backup once what was read is durable; return warnings.

        checkpoint: the one that the tracker has to name now.
        """
        self._finished = True
        self._cluster.heed()
        left = self._removed([each for each in reversed(self._made) if each[0] != objects.TRACKER])
        if left:
            return [f"left in the cluster: {each}" for each in left]
        try:
            latest = self._latest(checkpoint)
        except errors.NbdpullError as error:
            return [f"it is unknown whether the next pull can be incremental: {error}"]
        if latest != checkpoint:
            return [
                f"tracker {self._who.tracker} names checkpoint {latest or 'none'}, not that of the point "
                f"({checkpoint or 'none'}): the next pull will be full"
            ]
        return []

    def _latest(self, checkpoint: Optional[str]) -> Optional[str]:
        """Return the checkpoint that the tracker names; wait a while for it to be this one."""
        began = time.monotonic()
        while (latest := self.base()) != checkpoint and time.monotonic() - began < min(self._stall_timeout, SETTLED):
            self._cluster.pause(POLL)
        return latest

    def close(self) -> list[str]:
        """Remove everything that was created, unless the backup is finished; return what could not be removed."""
        self._cluster.heed()
        return [] if self._finished else self._removed(list(reversed(self._made)))

    def _removed(self, made: Iterable[tuple[str, str]]) -> list[str]:
        """Remove the backup first, and wait until it is gone, as it needs the others; return what could not be
        removed."""
        left = []
        for kind, name in made:
            try:
                remains.remove(self._cluster, self._who.machine, Remain(kind, name), self._stall_timeout)
                self._made.remove((kind, name))
            except errors.NbdpullError as error:
                left.append(f"{kind.rpartition('/')[2]}/{name} in namespace {self._namespace} ({error})")
        return left
