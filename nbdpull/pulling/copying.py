"""All disks of a run, from the job that stands into the files of a new point.

Owns: that they share one pipeline, in which order connections and files are opened and closed, and what is kept of a
dead run. Must not know: why a disk starts from which base, how the job was begun and will be ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NamedTuple, Optional, Protocol

from ..core import errors, extents, pipeline
from ..core.errors import Check, Report
from ..core.throttle import Throttle
from ..format import writer
from ..format.manifest import DiskEntry
from ..hypervisor.guest_load import Cores
from ..repository import known_frames
from ..repository.known_frames import KnownFrames
from ..repository.series import Point, Series
from . import live_disk, resume, route, scratch_watch
from .base import Decision
from .disk_copy import DiskCopy, Storing
from .live_disk import Known, Live, Reading
from .lookout import Lookout
from .preparation import Prepared, Subject
from .run_record import UnderWay

AHEAD_PER_THREAD = 8 << 20  # bytes of data under way for each thread


class Job(live_disk.Job, scratch_watch.Job, Protocol):
    """What of a job is needed here. socket: path of QEMU's, on its machine."""

    socket: str


@dataclass(frozen=True)
class How:
    """dedupe: what a parent holds already is not stored again."""

    reading: Reading
    storing: Storing
    dedupe: bool
    throttle: Throttle
    cores: Cores


class Copied(NamedTuple):
    """kept_bytes: of an interrupted run's files, not read again."""

    disks: list[DiskEntry]
    kept_bytes: int
    warnings: list[str]


def copied(
    subject: Subject,
    series: Series,
    prepared: Prepared,
    making: UnderWay,
    job: Job,
    how: How,
    lookout: Lookout,
    report: Report,
) -> Copied:
    """Read every disk. JobLost where the job did not last until all was read."""
    warnings: list[str] = []
    with lookout.watching(job), how.cores.watching(), ExitStack() as open_disks:
        kept = _kept(subject, series, prepared, making, lookout)
        server = open_disks.enter_context(route.opened(subject.route, subject.vm, job.socket, lookout.check))
        live = Live(lookout.kept(server), job, how.reading)
        copies = []
        for disk in subject.disks:
            frames = None
            if how.dedupe and job.exports[disk.target].bitmap:
                frames = frames_of(series, prepared.choice.parent, disk.target, lookout.check, warnings)
            known = Known(prepared.choice.dirty_from(disk), prepared.choice.whole_parent(disk.target))
            source = open_disks.enter_context(live_disk.opened(disk, live, known, series, lookout.check))
            into = series, making.point.id, how.storing, how.throttle
            copy = DiskCopy(disk, source, *into, frames, kept.get(disk.target), making.journal.sealed)
            copies.append(open_disks.enter_context(copy))
        copy_all(copies, how.reading.threads, how.cores, lookout.check, report)
        entries = close_all(copies, prepared.choice.decisions, lookout.check)
        job.require_alive()
    kept_bytes = sum(entry.size for each in kept.values() for entry in each.files)
    return Copied(entries, kept_bytes, warnings)


def _kept(
    subject: Subject, series: Series, prepared: Prepared, making: UnderWay, lookout: Lookout
) -> dict[str, resume.Kept]:
    """{target: what is kept of it} if an interrupted run is resumed; all else that it wrote is removed."""
    if not prepared.dead:
        return {}
    run = prepared.dead.run
    kept = {disk.target: resume.Kept(series, run, disk, lookout.check) for disk in subject.disks}
    making.point.remove_all_but([entry for each in kept.values() for entry in each.files])
    return kept


def frames_of(
    series: Series, parent: Optional[Point], disk: str, check: Check, warnings: list[str]
) -> Optional[KnownFrames]:
    """What the parent holds of an incremental disk, where that is whole, and fits in memory."""
    if parent is None:
        return None
    try:
        return known_frames.of_point(series, parent, disk, check)
    except errors.Damaged as error:
        warnings.append(f"disk {disk} is stored without deduplication: {error}")
        return None


def copy_all(copies: Sequence[DiskCopy], threads: int, cores: Cores, check: Check, report: Report) -> None:
    """Read all of the disks, and write it."""

    def work(item: tuple[DiskCopy, extents.Extents]) -> tuple[DiskCopy, writer.Encoded]:
        copy, batch = item
        buffers = copy.read(batch)
        with cores.computing():
            return copy, copy.encode(batch, buffers)

    encoded = pipeline.ordered(
        work,
        ((copy, batch) for copy in copies for batch in copy.batches()),
        threads=threads,
        budget=AHEAD_PER_THREAD * threads,
        weight=lambda item: extents.total(item[1], extents.DATA),
        check=check,
    )
    # Closed at once where `add` fails: threads that continue to read open connections that nobody closes, and QEMU
    # hangs, together with its guest, if its server is stopped while a client is busy.
    with closing(encoded):
        for copy, result in encoded:
            copy.add(result)
            check()
            report(event="progress", **copy.progress())


def close_all(copies: Sequence[DiskCopy], decisions: Mapping[str, Decision], check: Check) -> list[DiskEntry]:
    """At once: what takes time here is the disk's, which does better with all of it to do."""
    return list(
        pipeline.ordered(
            lambda copy: copy.close(*decisions[copy.disk.target]),
            copies,
            threads=len(copies),
            budget=len(copies),
            weight=lambda _: 0,
            check=check,
        )
    )
