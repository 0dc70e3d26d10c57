"""The copy of all disks of a run, from a running backup job into the files of a new point.

Owns: the order in which connections and files are opened and closed, and what is kept of a dead run. Must not know: why
a disk starts from which base, how the job is begun and ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

from ..core import pipeline
from ..core.errors import Report
from ..core.throttle import Throttle
from ..format.directory import Directory
from ..hypervisor.guest_load import Cores
from ..repository.new_point import Stored
from ..repository.series import Series
from . import active_job, copies, live_disk, resume
from .copies import Healed
from .disk_copy import DiskCopy, Storing
from .live_disk import Reading
from .lookout import Lookout
from .preparation import Prepared, Subject
from .run_record import UnderWay


@dataclass(frozen=True)
class How:
    """How the disks are copied. dedupe: do not store again what the parent holds already."""

    reading: Reading
    storing: Storing
    dedupe: bool
    throttle: Throttle
    cores: Cores


class Copied(NamedTuple):
    """kept_bytes: size of the files of an interrupted run that were kept."""

    disks: list[Stored]
    kept_bytes: int
    healed: list[Healed]


@contextmanager
def copied(
    subject: Subject,
    series: Series,
    prepared: Prepared,
    making: UnderWay,
    job: active_job.Job,
    how: How,
    lookout: Lookout,
    report: Report,
) -> Iterator[Callable[[], Copied]]:
    """Read every disk, and go on as soon as nothing more is read. The files are completed meanwhile: what is yielded
    waits until they are durable. JobLost if the job ended before everything was read."""
    check, choice = lookout.check, prepared.choice
    with ExitStack() as open_files:
        with active_job.live(subject, job, lookout, how.reading) as live, how.cores.watching(), ExitStack() as sources:
            bases = {disk.target: copies.base_of(series, choice, disk.target, check) for disk in subject.disks}
            kept = _kept(subject, series, prepared, making, bases, lookout)
            made = []
            for disk in subject.disks:
                base = bases[disk.target]
                known = live_disk.known(disk, choice, base, check)
                source = sources.enter_context(live_disk.opened(disk, live, known, check))
                into = choice.decisions[disk.target], series, making.point.id, how.storing, how.throttle
                copy = DiskCopy(disk, source, *into, base, how.dedupe, kept.get(disk.target), making.journal.sealed)
                made.append(open_files.enter_context(copy))
            copies.copy_all(made, how.reading.threads, how.cores, check, report)
            # Without check: once the job has ended, to complete the point takes no longer than to give it up. What may
            # take longer, requests to a bucket, heeds signals by itself.
            closed = open_files.enter_context(pipeline.meanwhile(lambda: copies.close_all(made)))
            job.require_alive()
        kept_bytes = sum(entry.size for each in kept.values() for entry in each.files)

        def completed() -> Copied:
            stored = copies.logged(made, closed())  # here and not in the thread: the lines of a log have one order
            return Copied(stored, kept_bytes, copies.healed(bases.values()))

        yield completed


def _kept(
    subject: Subject,
    series: Series,
    prepared: Prepared,
    making: UnderWay,
    bases: Mapping[str, Optional[Directory]],
    lookout: Lookout,
) -> dict[str, resume.Kept]:
    """Return {target: what is kept of that disk} if an interrupted run is resumed, else {}; remove everything else that
    the run wrote."""
    if not prepared.dead:
        return {}
    run = prepared.dead.run
    kept = {disk.target: resume.Kept(series, run, disk, bases[disk.target], lookout.check) for disk in subject.disks}
    making.point.remove_all_but([entry for each in kept.values() for entry in each.files])
    return kept
