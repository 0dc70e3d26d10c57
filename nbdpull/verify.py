"""Verify: is everything in the store what was stored, and does every chain hold?

Owns: what is looked at and in which order; it goes on after a damage, so that all of them are told. With a sample, a
shard or a time limit it looks at a part, and says so. Must not know: libvirt, what is printed.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Callable, Optional

import numpy

from . import errors, extents, findings, format, manifest, pipeline, reader, series, store
from .part import Part

BATCH_FRAMES = 64
BUDGET = 1 << 26  # bytes of decompressed frames under way


@dataclass(frozen=True)
class Damage:
    """One thing that is not as stored. point: its folder's name; disk and range (bytes) where they are known."""

    point: str
    disk: Optional[str]
    problem: str
    offset: Optional[int] = None
    length: Optional[int] = None


@dataclass(frozen=True)
class TooNew:
    """A point that a later nbdpull made, or that builds on one: it can be neither proved nor called damaged here."""

    point: str
    problem: str


@dataclass
class Report:
    """What was looked at, and every Damage and TooNew found. complete: the time sufficed for all that was to be looked
    at; notices: what is no damage, and should be known all the same."""

    points: int = 0
    files: int = 0
    frames: int = 0
    raw_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    too_new: list[TooNew] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    complete: bool = True
    findings: list = field(default_factory=list)  # (Series, members) of what `keep` records

    def keep(self):
        """Record beside the points what was found of each; OutputError where the store cannot be written to."""
        for target, members in self.findings:
            findings.record(target, findings.VERIFY, **members)


class _TimeIsUp(Exception):
    """Raised by the look at the stop flag."""


def verify(
    root: str,
    domain: Optional[str] = None,
    point: Optional[str] = None,
    quick: bool = False,
    threads: int = 2,
    report: Callable = lambda **event: None,
    check: Callable = lambda: None,
    part: Part = Part(),  # noqa: B008
) -> Report:
    """Look at one point with all that it builds on, or at every point (of one domain); quick: without decompressing."""
    opened = store.open_store(root)
    wanted = [series.only_series(opened, domain)] if (domain, point) != (None, None) else series.all_series(opened)
    found = _Verify(quick, threads, report, check, part)
    found.report.notices += opened.warnings()
    for each in wanted:
        if found.report.complete:
            found.series(each, point)
    return found.report


class _Verify:
    def __init__(self, quick, threads, tell, check, part):
        self.report = Report()
        self._quick, self._threads, self._tell, self._user_check, self._part = quick, threads, tell, check, part
        self._deadline = time.monotonic() + part.max_duration if part.max_duration is not None else None

    def _check(self):
        self._user_check()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _TimeIsUp

    def _refused(self, point, error):
        """Tell of a point that a reader must refuse whole, or what it builds on."""
        if isinstance(error, errors.FormatTooNew):
            self.report.too_new.append(TooNew(point, str(error)))
            self._tell(event="too-new", point=point, problem=str(error))
        else:
            self._damage(point, None, error)

    def _damage(self, point, disk, problem, offset=None, length=None):
        damage = Damage(point, disk, str(problem), offset, length)
        self.report.damages.append(damage)
        self._tell(event="damage", **vars(damage))

    def series(self, target, wanted):
        """Look at a series: all its points, or `wanted` and what it builds on."""
        points, refused = target.load()
        if wanted is not None:
            points, refused = self._lineage(target, target.point(wanted)), {}
        for point, error in refused.items():
            self._refused(point, error)
        self._strangers(target, points)
        looked_at = []
        known_good: set[str] = set()
        try:
            for point in self._in_order(target, points):
                self._point(target, point, known_good)
                looked_at.append(point)
        except _TimeIsUp:
            self.report.complete = False
        too_new = {each.point for each in self.report.too_new}
        if proved := [point for point in looked_at if point.id not in too_new]:
            self.report.findings.append((target, self._finding(proved)))

    def _strangers(self, target, points):
        """A folder that was renamed, or a domain: each point is whole, but a pull of the domain would not find it."""
        for name in sorted({point.manifest.domain for point in points}):
            if format.folder_name(name) != target.folder:
                self.report.notices.append(
                    f"{target.store.path(target.folder)} holds points of domain {name}, whose folder is "
                    f"{format.folder_name(name)}: a pull of it does not find them"
                )

    def _finding(self, points):
        counts = Counter(damage.point for damage in self.report.damages)
        part = {name: getattr(self._part, name) for name in ("sample", "shard") if getattr(self._part, name)}
        return {
            "level": "files" if self._quick else "frames",
            **part,
            "points": [{**findings.entry(point), "verdict": "damaged" if counts[point.id] else "ok",
                        "damages": counts[point.id]} for point in points],
        }  # fmt: skip

    def _in_order(self, target, points):
        """Where the time is limited, what was verified longest ago comes first: else a run never gets to the end."""
        if self._deadline is None:
            return points
        last = findings.latest(target, points)
        return sorted(points, key=lambda point: last[point.id].get(findings.VERIFY, {}).get("when", ""))

    def _point(self, target, point, known_good):
        self._check()
        self.report.points += 1
        self._files(target, point, known_good)
        self._links(target, point)
        for disk in point.manifest.disks:
            self._disk(target, point, disk)

    def _lineage(self, target, point):
        points = [point]
        try:
            while (point := target.parent(point)) is not None:
                points.insert(0, point)
        except errors.NbdpullError:
            pass  # _links tells it
        return points

    def _files(self, target, point, known_good):
        """Size and digest of every file; one that several points refer to is read once."""
        disks = {e.path: d.name for d in point.manifest.disks for e in [d.index, *d.chunks]}
        chunks = {chunk.path for disk in point.manifest.disks for chunk in disk.chunks}
        entries = [entry for entry in point.manifest.all_files() if (entry.path, entry.sha256) not in known_good]
        whole = {entry.path for entry in entries if entry.path not in chunks or self._part.file(entry.path)}

        def work(entry):
            return target.file_flaw(entry) if entry.path in whole else target.size_flaw(entry)

        flaws = pipeline.ordered(work, entries, threads=self._threads, budget=1, weight=lambda _: 0, check=self._check)
        for entry, flaw in zip(entries, flaws):
            self.report.files += entry.path in whole
            if flaw:
                self._damage(point.id, disks.get(entry.path), flaw)
            else:
                known_good.add((entry.path, entry.sha256))
            self._tell(event="progress", point=point.id, files=self.report.files, frames=self.report.frames)

    def _links(self, target, point):
        try:
            target.parent(point)
            for disk in point.manifest.disks:
                with suppress(errors.NoFullPull):  # it is as it was stored
                    target.chain(point, disk.name)
        except (errors.Damaged, errors.FormatTooNew) as error:
            self._refused(point.id, error)

    def _disk(self, target, point, disk):
        """Every record, and unless quick every frame, of one disk of one point."""
        try:
            records = self._told_records(target, point, disk)
            if self._quick:
                for _ in records:
                    self._check()
            else:
                self._frames(target, point, disk, records)
        except errors.Damaged as error:
            self._damage(point.id, disk.name, error)

    def _told_records(self, target, point, disk):
        """Yield the disk's records; a full disk whose records leave out a range is damaged."""
        reached = 0
        for batch in reader.records(target.store, target.folder, disk):
            if disk.mode == manifest.FULL:
                self._uncovered(point, disk, extents.gaps(batch, reached, int(extents.ends(batch[-1:])[0])))
            reached = int(extents.ends(batch[-1:])[0])
            yield batch
        if disk.mode == manifest.FULL and reached < disk.size:
            self._uncovered(point, disk, [(reached, disk.size - reached)])

    def _uncovered(self, point, disk, gaps):
        for offset, length in gaps:
            self._damage(point.id, disk.name, "the index leaves out a range of a full disk", offset, length)

    def _frames(self, target, point, disk, record_batches):
        with reader.FrameReader(target.store, target.folder, disk) as frames:

            def work(records):
                return records, [_frame_flaw(frames, record) for record in records]

            chosen = (self._part.frames(batch[batch["kind"] == extents.DATA]) for batch in record_batches)
            data = (part for batch in chosen for part in _in_parts(batch))
            for records, flaws in pipeline.ordered(
                work,
                data,
                threads=self._threads,
                budget=BUDGET,
                weight=lambda records: int(records["raw"].sum()),
                check=self._check,
            ):
                self.report.frames += len(records)
                self.report.raw_bytes += int(records["raw"].sum())
                for record, flaw in zip(records, flaws):
                    if flaw:
                        self._damage(point.id, disk.name, flaw, int(record["offset"]), int(record["length"]))
                self._tell(event="progress", point=point.id, files=self.report.files, frames=self.report.frames)


def _in_parts(records):
    return numpy.array_split(records, -(-len(records) // BATCH_FRAMES)) if len(records) else []


def _frame_flaw(frames, record):
    try:
        frames.read(record)
    except errors.Damaged as error:
        return str(error)
    return None
