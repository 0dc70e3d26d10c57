"""What runs of nbdpull left in a cluster, and its removal.

Owns: which objects are ours, and the order of their removal. Must not know: which runs are alive, when objects may be
removed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Optional

from ..core import errors
from . import objects, ours
from .cluster import Cluster
from .given import Machine

POLL, MAX_POLL = 0.1, 2.0  # seconds between checks of a backup that is being deleted, at first and at most
OF_A_RUN = (objects.BACKUP, objects.SECRET, objects.CLAIM)  # in this order: the backup needs the others
ALL = (*OF_A_RUN, objects.TRACKER)


class Remain(NamedTuple):
    """An object to remove. kind: of objects; run: id of the run that created it, if known."""

    kind: str
    name: str
    run: Optional[str] = None

    @property
    def what(self) -> str:
        return f"{_CALLED[self.kind]} {self.name}"


_CALLED = {objects.BACKUP: "backup", objects.SECRET: "secret", objects.CLAIM: "claim", objects.TRACKER: "tracker"}


class Found(NamedTuple):
    """hidden: what could not be listed, and why."""

    found: list[Remain]
    hidden: list[tuple[str, str]]


def found(cluster: Cluster, machine: Machine, store: Optional[str], kinds: Sequence[str] = OF_A_RUN) -> Found:
    """Return the objects of runs for this VM, and for the store of that uuid; None = for any store."""
    remains: list[Remain] = []
    hidden = []
    for kind in kinds:
        try:
            items = cluster.items(kind, machine.namespace, ours.labels(store))
        except (errors.AccessDenied, errors.Unsupported) as error:
            if kind not in (objects.SECRET, objects.CLAIM):
                raise
            hidden.append((f"{_CALLED[kind]}s", str(error)))
            remains += [Remain(kind, each.name, each.run) for each in remains if each.kind == objects.BACKUP]
            continue
        mine = [each for each in items if ours.is_ours(each, machine)]
        remains += [Remain(kind, objects.name_of(each), ours.run_of(each)) for each in mine]
    return Found(remains, hidden)


def running(cluster: Cluster, machine: Machine, store: str) -> list[objects.Object]:
    """Return the running backups of a store's runs, including those of live runs."""
    items = cluster.items(objects.BACKUP, machine.namespace, ours.labels(store))
    return [each for each in items if ours.is_ours(each, machine) and not objects.is_over(each)]


def remove(cluster: Cluster, machine: Machine, remain: Remain, patience: float) -> None:
    """Delete an object, which need not exist. Wait until a backup is gone; HypervisorError after `patience` seconds."""
    cluster.delete(remain.kind, machine.namespace, remain.name)
    began, poll = time.monotonic(), POLL
    while remain.kind == objects.BACKUP and cluster.get(remain.kind, machine.namespace, remain.name) is not None:
        if time.monotonic() - began > patience:
            raise errors.HypervisorError(f"backup {remain.name} is still being deleted after {patience:g} s")
        cluster.pause(poll)
        poll = min(2 * poll, MAX_POLL)
