"""A dead run whose job still stands: whether a pull can go on with it, and what of its work is kept.

As long as the job is there, so is the frozen view of the disks: what was read of it and is durable need not be read
again. Owns: what has to match, and the proof of the files that are kept. Must not know: how a job, a chunk file or a
journal is made.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Optional

from . import domain, errors, extents, journal, reader, scratch_watch
from .manifest import FileEntry

AUTO, ALWAYS, NEVER = "auto", "always", "never"
SOON = 3600  # seconds: who asks for nothing gets no older state of the disks than that


def find(vm, series) -> Optional[journal.Run]:
    """The dead run of this series whose backup job the domain still has; None where there is none."""
    job = vm.backup_job()
    run = series.dead_runs().get(job.run_id) if job else None
    return run if run and run.uuid == vm.uuid and run.is_alive is False else None


def obstacle(vm, run, plan, how=AUTO) -> str:
    """Why a pull by this plan cannot go on with that run, as text; "" if it can. plan: with the run's id."""
    if run.freeze is None:
        return "its job was not whole yet, or about to be ended"
    if plan.quiesce == domain.REQUIRE and run.freeze[0] != domain.FROZEN:
        return "its guest was not frozen"
    if (run.checkpoint, set(run.checkpoint_disks)) != (plan.checkpoint, set(plan.checkpoint_disks)):
        return "another checkpoint is to be made"
    if not vm.is_under_way(plan):
        return "other disks, another base, scratch folder or way to QEMU are wanted"
    if scratch_watch.starves(vm, run.scratch_dir):
        return "its scratch is full"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(run.begun)
    if how == AUTO and age.total_seconds() > SOON:
        return f"it began at {run.begun}, more than an hour ago (--resume goes on with such a one, too)"
    return ""


class Kept:
    """What a dead run made of a disk and is still as it was: its chunk files up to the first that is not.

    chunks: FileEntry of the disk's list so far, older points' included; reached: offset up to which the disk is done;
    read_bytes: read for it. check() is called before each file is looked at.
    """

    def __init__(self, series, run, disk, check=lambda: None):
        self._series, self._point = series, run.id
        self.chunks: list[FileEntry] = []
        self.reached = self.read_bytes = 0
        for sealed in run.sealed.get(disk, []):
            check()
            chunks = [FileEntry(*chunk) for chunk in sealed.chunks]
            if not self._taken([chunk for chunk in chunks if self._is_own(chunk)]):
                break
            self.chunks += chunks
            self.read_bytes += sealed.read_bytes

    def _taken(self, files):
        """Whether these are what they were; the disk is then done up to where their records end."""
        try:
            if any(self._series.file_flaw(file) for file in files):
                return False
            self.reached = int(extents.ends(self._records(files[-1])[-1:])[0])
        except errors.Damaged:
            return False
        return True

    def _is_own(self, chunk):
        return chunk.path.startswith(f"{self._point}/")

    @property
    def own(self):
        """Numbers in `chunks` of the files that the run made itself."""
        return [number for number, chunk in enumerate(self.chunks) if self._is_own(chunk)]

    @property
    def files(self):
        """Those files, as FileEntry."""
        return [self.chunks[number] for number in self.own]

    def records(self):
        """Yield the records of each of those files, as arrays: the index of the disk so far."""
        return map(self._records, self.files)

    def _records(self, chunk):
        return reader.chunk_records(self._series.store, f"{self._series.folder}/{chunk.path}", chunk.size)
