"""A run that makes a point of a virtual machine of KubeVirt while it holds the machine's series.

Owns: which series that is, and what dead runs left in it. Must not know: where a backup comes from, HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from ..core.errors import Check, Report
from ..core.laps import Laps
from ..kubevirt.given import Machine
from ..pulling import held_series
from ..pulling.copies import Healed
from ..pulling.held_series import Held
from ..pulling.leftover import Leftover, removed
from ..repository import half_points, removal, series_choice
from ..repository.points import Points
from ..repository.series import Point, Series
from ..storage.base import Store


class Done(NamedTuple):
    """A committed point. partial: its disks of which the store cannot make a whole image."""

    point: Point
    partial: frozenset[str]
    warnings: list[str]
    healed: list[Healed]


@dataclass(frozen=True)
class Run:
    """What every step receives. uuid: of the machine; warnings: of all steps so far."""

    machine: Machine
    uuid: str
    held: Held
    report: Report
    check: Check
    warnings: list[str]
    laps: Laps = field(default_factory=Laps)
    healed: list[Healed] = field(default_factory=list)

    @property
    def series(self) -> Series:
        return self.held.series

    @property
    def points(self) -> Points:
        return self.held.points

    def done(self, point: Point) -> Done:
        warnings = [*self.warnings, *self.held.late_warnings(), *self.series.store.warnings()]
        return Done(point, point.manifest.partial, warnings, self.healed)


@contextmanager
def begun(store: Store, machine: Machine, uid: str, report: Report, check: Check, warnings: list[str]) -> Iterator[Run]:
    """Hold the series inside the block: nobody else writes to it. uid: see series_of; warnings: the earlier ones."""
    target, uid = series_of(store, machine, uid)
    with held_series.for_new_point(target) as held:
        held.points.require_of(uid)
        left = [each for each in reclaimed(held) if each.left]
        leftovers = [f"left by an interrupted run: {each.what}: {each.left}" for each in left]
        yield Run(machine, uid, held, report, check, [*warnings, *held.warnings, *leftovers])


def series_of(store: Store, machine: Machine, uid: str) -> tuple[Series, str]:
    """Return the series of a machine, and the UUID that its points have.

    uid: of the machine; if it is "", because it is unknown, use the UUID of the series, or one made from the machine's
    name.
    """
    known = uid or Series(store, machine.domain).uuid() or str(uuid.uuid5(uuid.NAMESPACE_URL, machine.domain))
    return series_choice.of_domain(store, machine.domain, known), known


def reclaimed(held: Held, dry_run: bool = False) -> list[Leftover]:
    """Remove the half points of dead runs, except those that may still be in use, and the announcement of the newest
    point."""
    target, found = held.series, []
    for name in half_points.names(target, held.points.ids):
        announced, where = half_points.announced(target, name), target.store.path(target.folder, name)
        alive = announced.is_alive if announced else False
        is_locked = alive is None and target.store.has_locks
        if announced and (alive or (is_locked and not half_points.is_copy(target, announced))):
            found.append(Leftover(name, f"what {announced.whose} left", f"remove {where} if that run has ended"))
        elif why := half_points.why_in_use(target, name, announced) if announced else removal.why_stays(target, name):
            found.append(Leftover(name, f"files in {where}", why))
        else:
            remove = partial(half_points.give_to_sweep, target, name)
            found.append(removed(name, f"partial files in {where}", remove, dry_run))
    if not dry_run and held.points.newest:
        half_points.end_announcement(target, held.points.newest.id)
    return found
