"""What a run writes down of itself before it begins, so that the next one can go on with it or remove what it left.

Owns: what is written, where, and until when it stays. Must not know: what the next run does with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from ..hypervisor.backup_spec import BackupSpec
from ..hypervisor.domain import Domain
from ..repository import journal
from ..repository.journal import Hold, Run
from ..repository.series import NewPoint, Point, Series
from . import resume
from .preparation import Dead

_NO_STORE = "/dev/null"  # of a run that makes no point


def of(vm: Domain, plan: BackupSpec, series: Optional[Series] = None, parent: Optional[Point] = None) -> Run:
    """The Run of this process. series, parent: of the point that it makes, and of that which it builds on."""
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
        store=series.store.root if series else _NO_STORE,
        folder=f"{series.folder}/{plan.run_id}" if series else "",
    )


@contextmanager
def new_point(series: Series, hold: Hold, run: Run, dead: Optional[Dead] = None) -> Iterator[NewPoint]:
    """A NewPoint whose folder says what is about to be made, and for whose domain this machine knows it too."""
    folder = series.resumed_point(run.id, dead.journal) if dead else series.new_point(run.id, run)
    try:
        with folder as new:
            hold.note(run)
            yield new
    except BaseException as error:
        if not getattr(error, "left_behind", None):
            hold.clear()
        raise
    hold.clear()
