"""A dead run whose backup job still exists: whether a pull can resume it, and what of its work is kept.

As long as the job exists, so does its frozen view of the disks: data that was read from it and is durable need not be
read again. Owns: what must match, and the proof of the files that are kept. Must not know: how a job, a chunk file or a
journal is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Optional

from ..core import errors, extents, file_system, unix_socket
from ..core.choices import Quiesce, Resume
from ..core.errors import Check
from ..definitions.domain_xml import Disk
from ..format import layout, reader
from ..format.directory import NOWHERE, Directory
from ..format.manifest import FileEntry
from ..format.pages import Page
from ..hypervisor import backup_spec, domain, domain_freeze
from ..repository import half_points, lock_free
from ..repository.series import Point, Series
from ..storage import place
from . import journal, journal_files, scratch_watch

SOON = 3600  # seconds: without --resume, the state of the disks in a new point is not older than this


def find(vm: domain.Domain, series: Series) -> Optional[journal.Run]:
    """Return the dead run of this series whose backup job the domain still has, or None."""
    job = vm.jobs.backup()
    run = next((run for run in journal_files.runs(vm.uuid) if job and run.id == job.run_id), None)
    if not run or journal_files.is_alive(run) is not False or run.id not in half_points.names(series):
        return None
    if run.server not in (None, place.server(series.store)):
        return None
    # A store that was moved still belongs to the run. A copy does not: for the original, the point's checkpoint would
    # be one that a dead run left.
    announced = half_points.announced(series, run.id)
    return run if announced and not half_points.is_copy(series, announced) else None


def obstacle(
    vm: domain.Domain,
    run: journal.Run,
    plan: backup_spec.BackupSpec,
    parent: Optional[Point],
    how: str,
    scratch_limit: Optional[int],
) -> str:
    """Return why a pull by this plan cannot resume that run, as text; "" if it can.

    plan: with the run's id; parent: the Point that the pull builds on, or None.
    """
    if run.freeze is None:
        return "its job was not complete yet, or about to end"
    if plan.quiesce == Quiesce.REQUIRE and run.freeze[0] != domain_freeze.FROZEN:
        return "its guest was not frozen"
    if run.parent != parent_of(parent):
        return "it builds on another point"
    if (run.checkpoint, set(run.checkpoint_disks)) != (plan.checkpoint, set(plan.checkpoint_disks)):
        return "this pull makes another checkpoint"
    if not vm.backups.traces(plan).is_under_way():
        return "this pull needs other disks, another base, scratch directory or way to QEMU"
    return _unfit(vm, plan, scratch_limit) or ("" if how == Resume.ALWAYS else _too_old(run))


def unsafe(series: Series, run: journal.Run) -> str:
    """Return why the files that a dead run made in its store must not be used any more, as text; "" if they may."""
    return "it made no progress for so long that its files may be removed" if lock_free.stood(series, run.id) else ""


def parent_of(point: Optional[Point]) -> Optional[list[str]]:
    """Return what a journal records of the Point that a run builds on."""
    return [point.id, point.sha256] if point else None


def _unfit(vm: domain.Domain, plan: backup_spec.BackupSpec, scratch_limit: Optional[int]) -> str:
    """Return why the job cannot be read from for much longer, or at all; "" if it can. It was not watched since its run
    died."""
    if vm.is_remote:
        return ""
    if plan.socket and not unix_socket.is_there(plan.socket):
        return f"its socket {plan.socket} is gone"
    try:
        used = file_system.used_bytes(vm.backups.traces(plan).scratch_files)
    except OSError:
        return "its scratch is gone"
    if scratch_limit and used > scratch_limit:
        return f"its scratch takes {used} bytes, more than --scratch-limit ({scratch_limit})"
    free = file_system.free_bytes(plan.scratch_dir)
    if free is not None and free < scratch_watch.reserve(plan.scratch_dir):
        return "its scratch directory is almost full"
    return ""


def _too_old(run: journal.Run) -> str:
    age = (datetime.now(timezone.utc) - datetime.fromisoformat(run.begun)).total_seconds()
    if 0 <= age <= SOON:
        return ""
    when = "more than an hour ago" if age > 0 else "which is later than now: a clock was set"
    return f"it began at {run.begun}, {when} (--resume resumes it nevertheless)"


class Kept:
    """The intact chunk files that a dead run made of a disk, up to the first that is not intact.

    files: FileEntry of each; reached: offset up to which the disk is done; read_bytes: bytes of the disk read for them.
    check() is called often while the files are verified.
    """

    def __init__(
        self, series: Series, run: journal.Run, disk: Disk, base: Optional[Directory], check: Check = lambda: None
    ) -> None:
        """disk: as the domain has it; base: the directory that the run's files may refer to."""
        self._series, self._point, self._disk, self._size = series, run.id, disk.target, disk.size
        self._base = base
        self._again = extents.of([]) if base is None else base.again
        self.files: list[FileEntry] = []
        self.reached = self.read_bytes = 0
        for sealed in run.sealed.get(disk.target, []):
            check()
            entry = FileEntry(sealed.path, sealed.size, sealed.sha256)
            if not self._is_taken(entry, check):
                break
            self.files.append(entry)
            self.read_bytes += sealed.read_bytes

    def _is_taken(self, entry: FileEntry, check: Check) -> bool:
        """Return whether the file is intact and next in order; if so, the disk is done up to the end of its records."""
        if entry.path != f"{self._point}/{layout.chunk_name(self._disk, len(self.files))}":
            return False  # the journal lacks the line of an earlier file
        try:
            page = None if self._series.file_flaw(entry, check) else self._page(entry)
        except errors.Damaged:
            return False
        # Records that a reader would have to refuse must not get into the point, whoever wrote them.
        if page is None or not len(page.records) or layout.records_flaw(page.records, self._size, len(page.names)):
            return False
        if not all(name == entry.path or self._is_of_base(name) for name in page.names):
            return False
        if int(page.records["offset"][0]) < self.reached:
            return False
        reached = int(extents.ends(page.records[-1:])[0])
        again = extents.clip(self._again, self.reached, reached)
        if extents.total(extents.intersect(page.records, again)) != extents.total(again):
            return False  # the run did not read a damaged range again: the damage was not known yet
        self.reached = reached
        return True

    def _is_of_base(self, path: str) -> bool:
        return self._base is not None and self._base.number(path) != NOWHERE and path not in self._base.bad

    def is_own(self, name: str) -> bool:
        """Return whether a chunk file was made by the run."""
        return name.startswith(f"{self._point}/")

    def pages(self) -> Iterator[Page]:
        """Yield the records of each kept file, with the names of the chunk files that they refer to."""
        return map(self._page, self.files)

    def _page(self, entry: FileEntry) -> Page:
        return reader.chunk_records(self._series.store, f"{self._series.folder}/{entry.path}", entry.size, self._disk)
