"""Verify: is everything in the store what was stored, and does every chain hold?

Owns: what is looked at and in which order; it goes on after a damage, so that all of them are told. With a sample, a
shard or a time limit it looks at a part, and says so. Must not know: what follows of it for a point (evidence.py and
verdict.py do), libvirt, what is printed.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, NamedTuple, Optional

import numpy

from ..core import errors, extents, pipeline
from ..format import findings, manifest, reader
from ..repository import marker, series, verdict
from ..repository.evidence import Damage, Evidence
from ..repository.part import Part
from .options import VerifyOptions as Options

BATCH_FRAMES = 64
BUDGET = 1 << 26  # bytes of decompressed frames under way
MAX_DAMAGES = 10_000  # of a disk of a point that are told


@dataclass(frozen=True)
class TooNew:
    """A point that a later nbdpull made, or that builds on one: it can be neither proved nor called damaged here."""

    point: str
    problem: str


class Verdict(NamedTuple):
    """What is known of a point after the run, by this and by all that was found before. verdict: see verdict.py, None
    where nothing is known; damaged: ids of the points for whose damage it cannot be restored, maybe its own; when: the
    time that the verdict is of."""

    domain: str
    point: str
    verdict: Optional[str]
    damaged: list[str]
    when: Optional[str]

    @property
    def is_bad(self):
        return self.verdict in (verdict.DAMAGED, verdict.BASE_DAMAGED)


@dataclass
class Result:
    """What was looked at, and every Damage and TooNew found. domain: None if there are several; complete: the
    time sufficed for all that was to be looked at; verdicts: of every point that was to be; warnings: what is no
    damage, and should be known all the same."""

    domain: Optional[str] = None
    points: int = 0
    files: int = 0
    frames: int = 0
    raw_bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    too_new: list[TooNew] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def is_bad(self):
        """Whether a point that was to be looked at cannot be restored, by all that is known."""
        return bool(self.damages) or any(each.is_bad for each in self.verdicts)


class _TimeIsUp(Exception):
    """Raised by the look at the stop flag."""


class _Enough(Exception):
    """Raised where one disk of a point has so many damages that nobody reads on."""


def verify(options: Options, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Look at one point with all that it builds on, or at every point (of one domain).

    What was found of each point is recorded also where `check` ends the run.
    """
    opened, one = marker.open_store(options.store), (options.domain, options.point) != (None, None)
    wanted = [series.only_series(opened, options.domain)] if one else series.all_series(opened)
    part = Part(options.sample, options.shard, options.max_duration)
    found = _Verify(options.level == verdict.FILES, options.threads, report, check, part, options.keep)
    found.result.warnings += opened.warnings()
    found.result.domain = wanted[0].domain if len(wanted) == 1 else None
    for each in wanted:
        found.series(each, options.point)
    if not (found.result.points or found.result.is_bad or found.result.too_new):
        found.result.warnings.append(f"{opened.root} has no points: nothing was verified")
    return found.result


class _Verify:
    def __init__(self, quick, threads, tell, check, part, keep):
        self.result = Result()
        self._quick, self._threads, self._report, self._user_check = quick, threads, tell, check
        self._part, self._keep = part, keep
        self._deadline = time.monotonic() + part.max_duration if part.max_duration is not None else None

    def _check(self):
        self._user_check()
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _TimeIsUp

    def _refused(self, point, error):
        """Tell of a point that a reader must refuse whole, or what it builds on."""
        if isinstance(error, errors.FormatTooNew):
            self.result.too_new.append(TooNew(point, str(error)))
            self._tell(event="too-new", point=point, problem=str(error))
        else:
            self._damage(Damage(point, None, str(error)))

    def _damage(self, damage):
        self.result.damages.append(damage)
        self._tell(event="damage", **vars(damage))

    def series(self, target, wanted):
        """Look at a series: all its points, or `wanted` and what it builds on."""
        self._tell = partial(self._report, domain=target.domain)
        evidence = Evidence(target, verdict.FILES if self._quick else verdict.FRAMES, self._part)
        points, refused = evidence.points, evidence.refused
        self.result.warnings += [
            f"{path} cannot be read: what it told of points is lost" for path in evidence.unreadable
        ]
        if wanted is not None:
            points, refused = self._lineage(target, target.point(wanted)), {}
        for point, error in refused.items():
            self._refused(point, error)
        self._strangers(target, points)
        try:
            self._points(target, points, evidence)
        except _TimeIsUp:
            self.result.complete = False
        finally:  # also where the user ends it: a damage that was seen is on record
            self._conclude(target, points, refused, evidence)

    def _points(self, target, points, evidence):
        known_good: set[tuple[str, str]] = set()
        if self._deadline is not None:  # what was looked at longest ago comes first: else no run gets to the end
            points = sorted(points, key=evidence.known.last_look)
        for point in points:
            self._check()
            self.result.points += 1
            look = evidence.look(point)
            self._files(target, look, known_good)
            self._links(target, point)
            look.complete = all([self._disk(target, look, disk) for disk in point.manifest.disks])

    def _conclude(self, target, points, refused, evidence):
        too_new = {each.point for each in self.result.too_new}
        finding = evidence.conclude(too_new)
        for name in refused:
            about = (None, [], None) if name in too_new else (verdict.DAMAGED, [name], None)
            self.result.verdicts.append(Verdict(target.domain, name, *about))
        for point in points:
            known = None if point.id in too_new else evidence.known.verdict(point)
            about = (known["verdict"], known["damaged"], known["when"]) if known else (None, [], None)
            self.result.verdicts.append(Verdict(target.domain, point.id, *about))
        if finding and self._keep:
            try:
                findings.record(target, findings.VERIFY, **finding)
            except (errors.OutputError, errors.StoreError) as error:  # no failure of the verification
                self.result.warnings.append(f"the result is not kept: {error}")

    def _strangers(self, target, points):
        """A copy of a series, or points that came from that of another domain: no pull of the domain finds them."""
        for name, uuid in sorted({(point.manifest.domain, point.manifest.uuid) for point in points}):
            found = series.of_domain(target.store, name, uuid)
            if found.folder != target.folder:
                self.result.warnings.append(
                    f"{target.store.path(target.folder)} holds points of domain {name}, whose series is in "
                    f"{found.folder}: a pull of it does not find them"
                )

    def _lineage(self, target, point):
        points = [point]
        try:
            while (point := target.parent(point)) is not None:
                points.insert(0, point)
        except errors.NbdpullError:
            pass  # _links tells it
        return points

    def _files(self, target, look, known_good):
        """Size and digest of every file; one that several points refer to is read once."""
        point = look.point
        disks = {e.path: d.name for d in point.manifest.disks for e in [d.index, *d.chunks]}
        chunks = {chunk.path for disk in point.manifest.disks for chunk in disk.chunks}
        entries = [entry for entry in point.manifest.all_files() if (entry.path, entry.sha256) not in known_good]
        paths = {entry.path for entry in entries}
        whole = {path for path in paths if path not in chunks or self._part.file(path) or look.is_wanted(path)}

        def work(entry):
            return target.file_flaw(entry, self._check) if entry.path in whole else target.size_flaw(entry)

        flaws = pipeline.ordered(work, entries, threads=self._threads, budget=1, weight=lambda _: 0, check=self._check)
        for entry, flaw in zip(entries, flaws):
            self.result.files += entry.path in whole
            if flaw:
                self._damage(look.found(disks.get(entry.path), flaw, path=entry.path))
            elif entry.path in whole:
                known_good.add((entry.path, entry.sha256))
            self._tell(event="progress", point=point.id, files=self.result.files, frames=self.result.frames)

    def _links(self, target, point):
        try:
            target.parent(point)
            for disk in point.manifest.disks:
                with suppress(errors.NoFullPull):  # it is as it was stored
                    target.chain(point, disk.name)
        except (errors.Damaged, errors.FormatTooNew) as error:
            self._refused(point.id, error)

    def _disk(self, target, look, disk):
        """Every record, and the frames to be looked at, of one disk of one point; return whether it came to an end."""
        before = len(look.damages)
        try:
            self._frames(target, look, disk, self._told_records(target, look, disk, before), before)
        except errors.Damaged as error:
            self._damage(look.found(disk.name, error, path=disk.index.path))
        except _Enough:
            self._damage(look.found(disk.name, f"more than {MAX_DAMAGES} damages: no more of this disk is looked at"))
            return False
        return True

    def _range_damage(self, look, before, *what):
        """Tell of a damage of a part of a disk; before: how many the point had before the disk."""
        self._damage(look.found(*what))
        if len(look.damages) - before >= MAX_DAMAGES:
            raise _Enough

    def _told_records(self, target, look, disk, before):
        """Yield the disk's records; a full disk whose records leave out a range is damaged."""
        reached = 0
        for batch in reader.records(target.store, target.folder, disk):
            if disk.mode == manifest.FULL:
                self._uncovered(look, disk, before, extents.gaps(batch, reached, int(extents.ends(batch[-1:])[0])))
            reached = int(extents.ends(batch[-1:])[0])
            yield batch
        if disk.mode == manifest.FULL and reached < disk.size:
            self._uncovered(look, disk, before, [(reached, disk.size - reached)])

    def _uncovered(self, look, disk, before, gaps):
        for offset, length in gaps:
            problem = "the index leaves out a range of a full disk"
            self._range_damage(look, before, disk.name, problem, offset, length, disk.index.path)

    def _frames(self, target, look, disk, record_batches, before):
        with reader.FrameReader(target.store, target.folder, disk) as frames:

            def work(records):
                return records, [_frame_flaw(frames, record) for record in records]

            chosen = (self._chosen(look, disk, batch[batch["kind"] == extents.DATA]) for batch in record_batches)
            data = (part for batch in chosen for part in _in_parts(batch))
            for records, flaws in pipeline.ordered(
                work,
                data,
                threads=self._threads,
                budget=BUDGET,
                weight=lambda records: int(records["raw"].sum()),
                check=self._check,
            ):
                self.result.frames += len(records)
                self.result.raw_bytes += int(records["raw"].sum())
                for record, flaw in zip(records, flaws):
                    if flaw:
                        where = int(record["offset"]), int(record["length"]), disk.chunks[int(record["chunk"])].path
                        self._range_damage(look, before, disk.name, flaw, *where)
                self._tell(event="progress", point=look.point.id, files=self.result.files, frames=self.result.frames)

    def _chosen(self, look, disk, records):
        """Of data records, those whose frames are looked at."""
        self._check()
        wanted = look.wanted(disk, records)
        return records[wanted if self._quick else wanted | self._part.frames(records)]


def _in_parts(records):
    return numpy.array_split(records, -(-len(records) // BATCH_FRAMES)) if len(records) else []


def _frame_flaw(frames, record):
    try:
        frames.read(record)
    except errors.Damaged as error:
        return str(error)
    return None
