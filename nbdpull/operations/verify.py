"""Verify: is everything in the store what was stored?

Owns: which points are looked at, in which order and for how long; or that files are, those first that were proved
longest ago. With a sample, a shard or a time limit it looks at a part, and says so. Must not know: how a point is
looked at (inspection.py does), which file is next (rolling.py), what follows of it (evidence.py and verdict.py do),
libvirt, what is printed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Optional, Union

from ..core import deadline, errors
from ..core.errors import Check, Report
from ..format import findings, layout, ledger
from ..format.layout import Document
from ..format.manifest import FileEntry
from ..repository import crossing, half_points, healing, immutable, inspection, marker, series_choice, verdict
from ..repository.evidence import Damage, Evidence
from ..repository.healing import Outcome
from ..repository.inspection import Depth, Inspector, Seen, TooNew
from ..repository.part import Part
from ..repository.rolling import ONLY_WINDOWS, Rolling
from ..repository.series import Point, Series
from ..storage.base import Store
from . import earlier, unlocking
from .options import VerifyOptions as Options

_UNPROVED = (
    "{} is sealed, and there is no identity: it was not proved that its manifests were made with its key, only that "
    "the files are those that they name"
)


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
    _require_fitting(options)
    if options.as_of is not None:
        options = replace(earlier.seen(options), keep=False)
    copy = None if options.heal_from is None else marker.open_store(options.heal_from)
    opened, one = unlocking.opened(options.store, options.identities), (options.domain, options.point) != (None, None)
    wanted = [series_choice.only_series(opened, options.domain)] if one else series_choice.folders(opened)
    part = ONLY_WINDOWS if options.oldest else Part(options.sample, options.shard, options.max_duration)
    depth = Depth(options.level, part, options.threads, _until(options.max_duration, check))
    tally = _Tally(report)
    runs = [_Run(target, options, depth, tally) for target in wanted]
    if copy is not None:
        immutable.begin(opened)
    healers = [] if copy is None else [_Healer(run, copy, options, depth.check) for run in runs]
    outcomes, damages = _looked_and_healed(runs, healers, options, depth, tally)
    verdicts = [each for outcome in outcomes for each in outcome.verdicts]
    none = [] if verdicts else [f"{opened.root} has no points: nothing was verified"]
    locked = [] if opened.seal.opens else [_UNPROVED.format(opened.root)]
    return Result(
        domain=outcomes[0].domain if len(outcomes) == 1 else None,
        points=tally.points,
        files=tally.files,
        frames=tally.frames,
        raw_bytes=tally.raw_bytes,
        damages=damages,
        healed=[each for healer in healers for each in healer.healed],
        too_new=tally.too_new,
        verdicts=verdicts,
        warnings=[*opened.warnings(), *(each for outcome in outcomes for each in outcome.warnings), *none, *locked],
        complete=all(outcome.complete for outcome in outcomes),
    )


def _require_fitting(options: Options) -> None:
    if options.oldest and (options.point or options.sample or options.shard or not options.keep):
        raise errors.UsageError(
            "--oldest goes by what is on record of all files: it takes no --point, --sample, --shard, --no-record"
        )
    if options.heal_from is not None and options.as_of is not None:
        raise errors.UsageError("--as-of only reads: bring points back with nbdpull undelete, then heal them")
    if options.heal_from is not None and not options.keep:
        raise errors.UsageError("--heal-from goes by what is on record: it takes no --no-record")


def _looked_and_healed(
    runs: list[_Run], healers: list[_Healer], options: Options, depth: Depth, tally: _Tally
) -> tuple[list[_Outcome], list[Damage]]:
    """What follows of the looks, and the damages that are left."""
    for healer in healers:  # of what is on record: at the end a time limit might leave no time for it, run after run
        healer.heal()
    outcomes = _by_files(runs, depth, tally) if options.oldest else [_by_points(run, depth, tally) for run in runs]
    damages = tally.damages
    for healer in healers:
        damages = healer.heal_found(damages)
    if healers:
        outcomes = [each.run.outcome(each.complete and old.complete) for each, old in zip(healers, outcomes)]
    return outcomes, damages


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


class _Healer:
    """Heals files of one series, each once in a run. run: what is known by now; complete: the time sufficed; healed:
    the files. What it meets is a warning: what verify found must be told all the same."""

    def __init__(self, run: _Run, copy: Store, options: Options, check: Check) -> None:
        self.run, self.complete, self.healed = run, True, list[Healed]()
        self._copy, self._options, self._check = copy, options, check
        self._tried: set[FileEntry] = set()
        self._doubted: dict[str, None] = {}  # paths of what was damaged, and then was not, with nothing done
        self._unseen: list[str] = []  # paths of what was healed or doubted, and not looked at in all points

    def heal(self) -> list[str]:
        """Heal what is on record, as far as there is time; return the paths of what is sound all the same by now."""
        run = self.run
        found: dict[Outcome, list[healing.Tried]] = {outcome: [] for outcome in Outcome}
        try:
            for each in self._each():
                found[each.outcome].append(each)
        except _TimeIsUp:
            self.complete = False
        except (errors.Busy, errors.OutputError, errors.StoreError, errors.Damaged) as error:
            run.warn(f"damages of {run.target.domain} were not healed: {error}")
        for each in found[Outcome.UNWRITTEN]:
            run.warn(f"a damaged file was not healed: {each.problem}")
        if lacking := found[Outcome.LACKING]:
            more = f", nor {len(lacking) - 1} more damaged files" if lacking[1:] else ""
            run.warn(f"{self._copy.root} does not have {lacking[0].path} of {run.target.domain} whole{more}")
        healed = [each.path for each in found[Outcome.HEALED]]
        self.healed += [Healed(run.target.domain, path) for path in healed]
        self._unseen += healed
        return [each.path for each in found[Outcome.SOUND]]

    def _each(self) -> Iterator[healing.Tried]:
        run, known = self.run, self.run.evidence.known
        damaged = [each for each in run.points if known.recorded(each)]
        if damaged:
            last = run.points[-1].manifest
            with half_points.writing(run.target, "verify"):
                copy = series_choice.of_domain(self._copy, last.domain, last.uuid)
                yield from healing.heal(run.target, copy, damaged, known, self._tried, self._check)

    def heal_found(self, damages: list[Damage]) -> list[Damage]:
        """Heal what is on record now, and look at its places again; where a directory was healed, at all that it names.
        Return the damages that are left of these."""
        self._doubt(self.heal())
        while self._unseen:
            paths, self._unseen = self._unseen, []
            tally = _Tally(lambda **_: None)
            depth = Depth(self._options.level, self._part_again(paths), self._options.threads, self._check)
            self.run = _Run(self.run.target, self._options, depth, tally, self.run.warnings)
            left = damages
            if self._has_looked_again(depth, {*paths}):
                left = [each for each in damages if each.path not in paths]
            wanted = {each.id for each in self.run.points} if self._options.point else None
            found = [each for each in tally.damages if wanted is None or each.point in wanted]
            damages = list(dict.fromkeys([*left, *found]))
            self._doubt(self.heal())
        bad = {each.path for each in damages}  # what was written may read wrong
        self.healed = [each for each in self.healed if each.path not in bad]
        if cured := [each for each in self._doubted if each not in bad]:
            more = f", and so are {len(cured) - 1} more files" if cured[1:] else ""
            self.run.warn(
                f"{cured[0]} of {self.run.target.domain} was damaged, and is what was stored now{more}: another run "
                "has made it again, or its medium reads wrong now and then"
            )
        return damages

    def _doubt(self, sound: list[str]) -> None:
        """Look at files again that were damaged, and then were not. Once: a medium may read wrong for ever."""
        new = [path for path in sound if path not in self._doubted]
        self._doubted.update(dict.fromkeys(new))
        self._unseen += new

    def _part_again(self, paths: Collection[str]) -> Part:
        """What is to be looked at again besides the places on record."""
        run = self.run
        is_told = run.evidence.known.is_told(run.evidence.points)
        return ONLY_WINDOWS if is_told and all(map(layout.CHUNK_PATH.match, paths)) else Part()

    def _has_looked_again(self, depth: Depth, paths: Collection[str]) -> bool:
        """Look at what is on record of the points that are looked at, and then of others that share a file that was
        healed; whether there was time."""
        run, known = self.run, self.run.evidence.known
        inspector = Inspector(run.target, depth, run.tell)
        own, ids = [each for each in run.points if known.recorded(each)], {each.id for each in run.points}
        others = [each for each in run.evidence.points if each.id not in ids and known.names(each, paths)]
        try:
            for point in [*own, *others]:
                inspector.inspect(run.evidence.look(point))
        except _TimeIsUp:
            self.complete = False
        finally:
            run.conclude()
        return self.complete


class _Run:
    """What is seen of one series, from what is on record to what is recorded."""

    def __init__(
        self, target: Series, options: Options, depth: Depth, tally: _Tally, warnings: Iterable[str] = ()
    ) -> None:
        """warnings: of runs before it."""
        self._keep, self._tally = options.keep, tally
        self.evidence = Evidence(target, depth.level, depth.part)
        self.target = target = series_choice.renamed(target, self.evidence.points)
        self.points, self._refused = self.evidence.points, self.evidence.refused
        if options.point is not None:
            self.points, self._refused = [target.point(options.point)], {}
        self.tell = partial(tally.take, target.domain)
        self.warnings = [*warnings]
        self.warnings += [f"{path} cannot be read: its findings are lost" for path in self.evidence.unreadable]
        self.warnings += _strangers(target, self.points)
        for name, error in self._refused.items():
            self.tell(inspection.refusal(name, error))

    @property
    def _too_new(self) -> set[str]:
        return {each.point for each in self._tally.too_new}

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def conclude(self, proved: Optional[Document] = None) -> None:
        """Record what was found. proved: a new ledger."""
        before = self.evidence.ledgers
        if proved:
            self.evidence.ledgers = [proved]
            self.warnings += ledger.record(self.target, proved, before) if self._keep else []
        if (finding := self.evidence.conclude(self._too_new)) and self._keep:
            self.warnings += findings.kept(self.target, findings.VERIFY, **finding)
            self.warnings += self._told_of_new_points(finding)

    def _told_of_new_points(self, finding: Document) -> list[str]:
        """Once the finding is there: a pull that is committed from now on sees it."""
        known = {*(point.id for point in self.evidence.points), *self.evidence.refused}
        try:
            return crossing.tell_of_points(self.target, known, finding)
        except errors.StoreError as error:
            return [str(error)]

    def outcome(self, complete: bool) -> _Outcome:
        target, too_new = self.target, self._too_new
        verdicts = [
            *(_refused(target, name, too_new) for name in self._refused),
            *(_known(target, point, self.evidence, too_new) for point in self.points),
        ]
        return _Outcome(target.domain, verdicts, list(dict.fromkeys(self.warnings)), complete)


def _strangers(target: Series, points: list[Point]) -> Iterator[str]:
    """A copy of a series, or points that came from that of another domain: no pull of the domain finds them."""
    for name, uuid in sorted({(point.manifest.domain, point.manifest.uuid) for point in points}):
        found = series_choice.of_domain(target.store, name, uuid)
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
