"""The records that a run writes before it begins, so that the next one can resume it or remove what it left.

Owns: what is recorded, where, and how long it is kept. Must not know: what the next run does with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Callable, NamedTuple, Optional

from ..core import errors
from ..hypervisor.backup_spec import BackupSpec
from ..hypervisor.domain import Domain
from ..repository import announcement
from ..repository import new_point as new_points
from ..repository.new_point import NewPoint
from ..repository.series import Point, Series
from ..storage import place
from . import journal, journal_files, resume
from .journal import Run
from .journal_files import Journal
from .preparation import Dead


class UnderWay(NamedTuple):
    """A point in progress, and the journal of the run that makes it."""

    point: NewPoint
    journal: Journal


def of(vm: Domain, plan: BackupSpec, series: Optional[Series] = None, parent: Optional[Point] = None) -> Run:
    """Return the Run of this process. series: of the point that it makes, None if it makes none; parent: the Point that
    it builds on."""
    return journal.of_this_process(
        id=plan.run_id,
        domain=vm.name,
        uuid=vm.uuid,
        uri=vm.shown_uri,
        checkpoint=plan.checkpoint,
        checkpoint_disks=list(plan.checkpoint_disks),
        parent=resume.parent_of(parent),
        disks=dict(plan.disks),
        socket=plan.socket,
        scratch_dir=plan.scratch_dir,
        guest_runs=vm.guest_state().running,
        store=series.store.root if series else None,
        server=place.server(series.store) if series else None,
        folder=f"{series.folder}/{plan.run_id}" if series else "",
    )


@contextmanager
def written(
    run: Run, resumed: Optional[Journal] = None, is_left: Callable[[], bool] = lambda: False
) -> Iterator[Journal]:
    """Keep the run's journal inside the block, and after it if something of the run may be left.

    resumed: the journal of a dead run that is resumed, instead of a new one; is_left: returns whether something is left
    in a store where only the journal shows to which run it belongs.
    """
    kept = resumed or journal_files.begin(run)
    try:
        yield kept
    except errors.NbdpullError as error:
        if not (error.left_behind or is_left()):
            journal_files.remove(run)
        raise
    else:
        journal_files.remove(run)
    finally:
        kept.close()


@contextmanager
def new_point(series: Series, run: Run, dead: Optional[Dead] = None) -> Iterator[UnderWay]:
    """Yield a new point with a journal on this machine and an announcement in its folder. dead: the run to resume."""
    announced = run.announced()
    with written(run, dead.journal if dead else None, lambda: _is_half(series, run)) as kept:
        try:
            with new_points.resumed(series, announced) if dead else new_points.begun(series, run.id, announced) as new:
                yield UnderWay(new, kept)
        except BaseException:
            with suppress(errors.NbdpullError):  # the store cannot be read: the point may have been committed
                if not series.has_point(run.id):
                    kept.withdrawn()
            raise


def _is_half(series: Series, run: Run) -> bool:
    """Return whether the run's half point is in a store in which only the journal shows that the run is dead."""
    try:
        return not series.store.has_locks and series.store.holds(f"{run.folder}/{announcement.NAME}")
    except errors.NbdpullError:
        return True
