"""The checkpoints that a new point replaces as a base: they are deleted at the very end of a pull.

Owns: which checkpoints are superseded, so that no disk loses its only base. Must not know: how a point was made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Callable, NamedTuple

from ..core import errors
from ..definitions.domain_xml import Checkpoint
from ..format.manifest import FULL
from ..hypervisor.domain import Domain
from ..repository.points import Points
from ..repository.series import Point
from . import base

log = logging.getLogger("nbdpull.pull")


class Dropped(NamedTuple):
    """checkpoints: names of the deleted checkpoints."""

    checkpoints: list[str]
    warnings: list[str]


def drop(vm: Domain, points: Points, point: Point) -> Dropped:
    """Delete the automatic checkpoints of the points that the new one replaces as a base.

    points: those before it. There may be thousands, of which only a few of the newest still have their checkpoints.
    """
    dropped = Dropped([], [])
    made = point.manifest.checkpoint
    if made is None:
        return dropped
    try:
        there = set(vm.checkpoints.names()) - {made.name}
    except errors.NbdpullError as error:  # only a warning: the point is committed
        dropped.warnings.append(f"the superseded checkpoints could not be deleted: {error}")
        return dropped
    for older, name in _automatic(_superseded(points, point)):
        if name in there and deleted(vm, name, made.name, partial(base.is_of, older), dropped.warnings):
            dropped.checkpoints.append(name)
            there.remove(name)
        if not there:
            break
    return dropped


def deleted(vm: Domain, name: str, new: str, is_it: Callable[[Checkpoint], bool], warnings: list[str]) -> bool:
    """Delete a checkpoint that a newer one, `new`, replaces as a base; return whether it was deleted. is_it: returns
    whether the checkpoint of that name is the very one to delete."""
    try:
        checkpoint = vm.checkpoints.get(name)
        if is_it(checkpoint) and _covers(vm, new, checkpoint) and vm.checkpoints.delete(name):
            log.info("superseded checkpoint %s deleted", name)
            return True
    except errors.NoSuchCheckpoint:
        pass
    except errors.NbdpullError as error:
        warnings.append(f"the superseded checkpoint {name} could not be deleted: {error}")
    return False


def _automatic(points: Iterable[Point]) -> Iterator[tuple[Point, str]]:
    """Return the points with checkpoints that we named, each with the name."""
    made = ((point, point.manifest.checkpoint) for point in points)
    return ((point, checkpoint.name) for point, checkpoint in made if checkpoint and checkpoint.automatic)


def _superseded(points: Points, point: Point) -> Iterator[Point]:
    """Yield the ancestors of a point, back to one in which every disk is full or whose parent was removed; then all
    points before that one."""
    below = point
    while any(disk.mode != FULL for disk in below.manifest.disks):
        wanted = below.manifest.parent
        if wanted is None:  # it starts from a checkpoint that is not nbdpull's
            return
        parent = points.get(wanted.point)
        if parent is None or parent.sha256 != wanted.sha256:
            break
        yield parent
        below = parent
    yield from (each for each in points.newest_first() if each.manifest.sequence < below.manifest.sequence)


def _covers(vm: Domain, new: str, checkpoint: Checkpoint) -> bool:
    """Return whether no disk loses its only base: the new checkpoint includes every disk of the old one that still
    exists."""
    present = {disk.target for disk in vm.disks()}
    try:
        covered = vm.checkpoints.get(new).disks
    except errors.NoSuchCheckpoint:  # else it would be news only with the next backup, which is full
        raise errors.HypervisorError(
            f"checkpoint {new}, which replaces it, was deleted by someone else: the next backup may have no base"
        ) from None
    return (set(checkpoint.disks) & present) <= set(covered)
