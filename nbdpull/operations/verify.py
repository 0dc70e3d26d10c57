"""Verify: is everything in the store what was stored?

Owns: which points are looked at, in which order and for how long; or that files are, those first that were proved
longest ago. With a sample, a shard or a time limit it looks at a part, and says so. Must not know: how a point is
looked at (inspection.py does), which file is next (rolling.py), what follows of it (evidence.py and verdict.py do),
libvirt, what is printed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Optional, Union

from ..core import deadline, errors
from ..core.errors import Check, Report
from ..format import findings, layout, ledger
from ..format.layout import Document
from ..repository import half_points, healing, inspection, marker, series, verdict
from ..repository.evidence import Damage, Evidence
from ..repository.inspection import Depth, Inspector, Seen, TooNew
from ..repository.part import Part
from ..repository.rolling import ONLY_WINDOWS, Rolling
from ..repository.series import Point, Series
from ..storage.directory import DirectoryStore
from .options import VerifyOptions as Options


class Verdict(NamedTuple):
    """What is known of a point after the run, by this and by all that was found before. verdict: see verdict.py, None
    where nothing is known; when: the time that the verdict is of."""

    domain: str
    point: str
    verdict: Optional[str]
    when: Optional[str]

    @property
    def is_bad(self) -> bool:
        return self.verdict == verdict.DAMAGED


class Healed(NamedTuple):
    """A file that is what was stored again."""

    domain: str
    path: str


@dataclass(frozen=True)
class Result:
    """What was looked at, and every Damage and TooNew found, but for what was healed.

    domain: None if there are several; complete: the
    time sufficed for all that was to be looked at; verdicts: of every point that was to be; warnings: what is no
    damage, and should be known all the same."""

    domain: Optional[str]
    points: int
    files: int
    frames: int
    raw_bytes: int
    damages: list[Damage]
    healed: list[Healed]
    too_new: list[TooNew]
    verdicts: list[Verdict]
    warnings: list[str]
    complete: bool

    @property
    def is_bad(self) -> bool:
        """Whether a point that was to be looked at cannot be restored, by all that is known."""
        return bool(self.damages) or any(each.is_bad for each in self.verdicts)


class _TimeIsUp(Exception):
    """Raised by the look at the clock."""


class _Outcome(NamedTuple):
    """What follows of the looks at one series."""

    domain: str
    verdicts: list[Verdict]
    warnings: list[str]
    complete: bool


class _Tally:
    """What was seen so far, in all series; it is reported as it comes."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.points = self.files = self.frames = self.raw_bytes = 0
        self.damages: list[Damage] = []
        self.too_new: list[TooNew] = []

    def take(self, domain: str, found: Union[Damage, TooNew, Seen]) -> None:
        if isinstance(found, Damage):
            self.damages.append(found)
            self._report(event="damage", domain=domain, **vars(found))
        elif isinstance(found, TooNew):
            self.too_new.append(found)
            self._report(event="too-new", domain=domain, **vars(found))
        else:
            self.files += found.files
            self.frames += found.frames
            self.raw_bytes += found.raw_bytes
            self._report(event="progress", domain=domain, point=found.point, files=self.files, frames=self.frames)


def verify(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Look at one point with all that it refers to, or at every point (of one domain).

    What was found of each point is recorded also where `check` ends the run.
    """
    if options.oldest and (options.point or options.sample or options.shard or not options.keep):
        raise errors.UsageError(
            "--oldest goes by what is on record of all files: it takes no --point, --sample, --shard, --no-record"
        )
    if options.heal_from is not None and not options.keep:
        raise errors.UsageError("--heal-from goes by what is on record: it takes no --no-record")
    copy = None if options.heal_from is None else marker.open_store(options.heal_from)
    opened, one = marker.open_store(options.store), (options.domain, options.point) != (None, None)
    wanted = [series.only_series(opened, options.domain)] if one else series.folders(opened)
    part = ONLY_WINDOWS if options.oldest else Part(options.sample, options.shard, options.max_duration)
    depth = Depth(options.level, part, options.threads, _until(options.max_duration, check))
    tally = _Tally(report)
    runs = [_Run(target, options, depth, tally) for target in wanted]
    outcomes = _by_files(runs, depth, tally) if options.oldest else [_by_points(run, depth, tally) for run in runs]
    damages, healed = tally.damages, list[Healed]()
    if copy is not None:
        again = [_healed(run, copy, options, check) for run in runs]
        healed = [each for found in again for each in found.healed]
        damages = _left(damages, healed, [damage for found in again for damage in found.damages])
        outcomes = [found.run.outcome(outcome.complete) for found, outcome in zip(again, outcomes)]
    verdicts = [each for outcome in outcomes for each in outcome.verdicts]
    none = [] if verdicts else [f"{opened.root} has no points: nothing was verified"]
    return Result(
        domain=outcomes[0].domain if len(outcomes) == 1 else None,
        points=tally.points,
        files=tally.files,
        frames=tally.frames,
        raw_bytes=tally.raw_bytes,
        damages=damages,
        healed=healed,
        too_new=tally.too_new,
        verdicts=verdicts,
        warnings=[*opened.warnings(), *(each for outcome in outcomes for each in outcome.warnings), *none],
        complete=all(outcome.complete for outcome in outcomes),
    )


def _until(seconds: Optional[float], check: Check) -> Check:
    is_over = deadline.after(seconds)

    def check_both() -> None:
        check()
        if is_over():
            raise _TimeIsUp

    return check_both


def _by_points(run: _Run, depth: Depth, tally: _Tally) -> _Outcome:
    """Look at all points of a series, or at the one that is wanted."""
    complete = True
    try:
        _look(run.points, run.evidence, Inspector(run.target, depth, run.tell), depth, tally)
    except _TimeIsUp:
        complete = False
    finally:  # also where the user ends it: a damage that was seen is on record
        run.conclude()
    return run.outcome(complete)


def _by_files(runs: list[_Run], depth: Depth, tally: _Tally) -> list[_Outcome]:
    """Look at the files of some series, whichever was proved longest ago."""
    rolling = [Rolling(run.evidence, depth, run.tell) for run in runs]
    complete = True
    try:
        while left := [each for each in rolling if each.next is not None]:
            min(left, key=lambda each: each.next or "").go_on()
    except _TimeIsUp:
        complete = False
    finally:
        ledgers = [each.conclude() for each in rolling]
        for run, proved in zip(runs, ledgers):
            run.conclude(proved)
    tally.points += sum(each.points for each in rolling)
    if not complete and not any(ledgers):
        runs[0].warn("the time did not suffice to prove a single file: the next run will come no further")
    return [run.outcome(complete) for run in runs]


class _Again(NamedTuple):
    """A second look at what was healed of a series. damages: what it found."""

    run: _Run
    healed: list[Healed]
    damages: list[Damage]


def _healed(run: _Run, copy: DirectoryStore, options: Options, check: Check) -> _Again:
    """Heal files of a series, and look at their places again; where a directory was healed, at all that it names."""
    healed, last = list[Healed](), _Tally(lambda **_: None)
    while paths := _heal(run, copy, check):
        healed += [Healed(run.target.domain, path) for path in paths]
        only_chunks = all(map(layout.CHUNK_PATH.match, paths))
        depth = Depth(options.level, ONLY_WINDOWS if only_chunks else Part(), options.threads, check)
        last = _Tally(lambda **_: None)
        run = _Run(run.target, options, depth, last)
        inspector = Inspector(run.target, depth, run.tell)
        try:
            for point in (each for each in run.points if run.evidence.known.recorded(each)):
                inspector.inspect(run.evidence.look(point))
        finally:
            run.conclude()
    return _Again(run, healed, last.damages)


def _heal(run: _Run, copy: DirectoryStore, check: Check) -> list[str]:
    known = run.evidence.known
    damaged = [each for each in run.points if known.recorded(each)]
    if not damaged:
        return []
    last = run.points[-1].manifest
    with half_points.writing(run.target):
        return healing.heal(run.target, series.of_domain(copy, last.domain, last.uuid), damaged, known, check)


def _left(before: list[Damage], healed: list[Healed], after: list[Damage]) -> list[Damage]:
    """The damages that are left: those of no healed file, and what the second look found."""
    paths = {each.path for each in healed}
    return list(dict.fromkeys([*(each for each in before if each.path not in paths), *after]))


class _Run:
    """What is seen of one series, from what is on record to what is recorded."""

    def __init__(self, target: Series, options: Options, depth: Depth, tally: _Tally) -> None:
        self._keep, self._tally = options.keep, tally
        self.evidence = Evidence(target, depth.level, depth.part)
        self.target = target = series.renamed(target, self.evidence.points)
        self.points, self._refused = self.evidence.points, self.evidence.refused
        if options.point is not None:
            self.points, self._refused = [target.point(options.point)], {}
        self.tell = partial(tally.take, target.domain)
        self._warnings = [f"{path} cannot be read: its findings are lost" for path in self.evidence.unreadable]
        self._warnings += _strangers(target, self.points)
        for name, error in self._refused.items():
            self.tell(inspection.refusal(name, error))

    @property
    def _too_new(self) -> set[str]:
        return {each.point for each in self._tally.too_new}

    def warn(self, text: str) -> None:
        self._warnings.append(text)

    def conclude(self, proved: Optional[Document] = None) -> None:
        """Record what was found. proved: a new ledger."""
        before = self.evidence.ledgers
        if proved:
            self.evidence.ledgers = [proved]
            self._warnings += ledger.record(self.target, proved, before) if self._keep else []
        if (finding := self.evidence.conclude(self._too_new)) and self._keep:
            self._warnings += findings.kept(self.target, findings.VERIFY, **finding)

    def outcome(self, complete: bool) -> _Outcome:
        target, too_new = self.target, self._too_new
        verdicts = [
            *(_refused(target, name, too_new) for name in self._refused),
            *(_known(target, point, self.evidence, too_new) for point in self.points),
        ]
        return _Outcome(target.domain, verdicts, self._warnings, complete)


def _strangers(target: Series, points: list[Point]) -> Iterator[str]:
    """A copy of a series, or points that came from that of another domain: no pull of the domain finds them."""
    for name, uuid in sorted({(point.manifest.domain, point.manifest.uuid) for point in points}):
        found = series.of_domain(target.store, name, uuid)
        if found.folder != target.folder:
            yield (
                f"{target.store.path(target.folder)} holds points of domain {name}, whose series is in "
                f"{found.folder}: its pulls do not find them"
            )


def _look(points: list[Point], evidence: Evidence, inspector: Inspector, depth: Depth, tally: _Tally) -> None:
    if depth.part.max_duration is not None:  # what was looked at longest ago comes first: else no run gets to the end
        points = sorted(points, key=evidence.known.last_look)
    for point in points:
        depth.check()
        tally.points += 1
        inspector.inspect(evidence.look(point))


def _refused(target: Series, name: str, too_new: Collection[str]) -> Verdict:
    """Of a point that cannot be read."""
    return Verdict(target.domain, name, None if name in too_new else verdict.DAMAGED, None)


def _known(target: Series, point: Point, evidence: Evidence, too_new: Collection[str]) -> Verdict:
    known = None if point.id in too_new else evidence.known.verdict(point)
    if known is None:
        return Verdict(target.domain, point.id, None, None)
    return Verdict(target.domain, point.id, known["verdict"], known["when"])
