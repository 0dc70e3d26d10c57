"""All disks of a run, from the job that stands into the files of a new point.

Owns: that they share one pipeline, in which order connections and files are opened and closed, and what is kept of a
dead run. Must not know: why a disk starts from which base, how the job was begun and will be ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NamedTuple, Optional, Protocol

from ..core import errors, extents, pipeline
from ..core.errors import Report
from ..core.throttle import Throttle
from ..definitions.domain_xml import Disk
from ..format import writer
from ..format.manifest import DiskEntry
from ..hypervisor.guest_load import Cores
from ..repository import known_frames
from ..repository.known_frames import KnownFrames
from ..repository.series import Series
from . import live_disk, resume, route, scratch_watch
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
                frames = _known_frames(series, prepared, disk, lookout, warnings)
            known = Known(prepared.choice.dirty_from(disk), prepared.choice.whole_parent(disk.target))
            by = how.storing, how.throttle, lookout.check
            copy = DiskCopy(disk, live, known, series, making, *by, frames, kept.get(disk.target))
            copies.append(open_disks.enter_context(copy))
        _copy_all(copies, how, lookout, report)
        entries = _close_all(copies, prepared, lookout)
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


def _known_frames(
    series: Series, prepared: Prepared, disk: Disk, lookout: Lookout, warnings: list[str]
) -> Optional[KnownFrames]:
    """What the parent holds of an incremental disk, where that is whole, and fits in memory."""
    parent = prepared.choice.parent
    if parent is None:
        return None
    try:
        return known_frames.of_point(series, parent, disk.target, lookout.check)
    except errors.Damaged as error:
        warnings.append(f"disk {disk.target} is stored without deduplication: {error}")
        return None


def _copy_all(copies: Sequence[DiskCopy], how: How, lookout: Lookout, report: Report) -> None:
    def work(item: tuple[DiskCopy, extents.Extents]) -> tuple[DiskCopy, writer.Encoded]:
        copy, batch = item
        buffers = copy.read(batch)
        with how.cores.computing():
            return copy, copy.encode(batch, buffers)

    threads = how.reading.threads
    encoded = pipeline.ordered(
        work,
        ((copy, batch) for copy in copies for batch in copy.batches()),
        threads=threads,
        budget=AHEAD_PER_THREAD * threads,
        weight=lambda item: extents.total(item[1], extents.DATA),
        check=lookout.check,
    )
    # Closed at once where `add` fails: threads that continue to read open connections that nobody closes, and QEMU
    # hangs, together with its guest, if its server is stopped while a client is busy.
    with closing(encoded):
        for copy, result in encoded:
            copy.add(result)
            lookout.check()
            report(event="progress", **copy.progress())


def _close_all(copies: Sequence[DiskCopy], prepared: Prepared, lookout: Lookout) -> list[DiskEntry]:
    """At once: what takes time here is the disk's, which does better with all of it to do."""
    return list(
        pipeline.ordered(
            lambda copy: copy.close(*prepared.choice.decisions[copy.disk.target]),
            copies,
            threads=len(copies),
            budget=len(copies),
            weight=lambda _: 0,
            check=lookout.check,
        )
    )
