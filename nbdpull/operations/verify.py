"""Verify: is everything in the store what was stored?

Owns: which points are checked, in which order and for how long; or, with --oldest, that the files proved longest ago
are checked first. With a sample, a shard or a time limit, only a part is checked, and the result says so. Must not
know: how a point is checked (see inspection.py), which file is next (rolling.py), what follows from it (evidence.py and
verdict.py), libvirt, what is printed.
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
from .options.restores import VerifyOptions as Options

_UNPROVED = (
    "{} is sealed, and there is no identity: it was not proved that its manifests were made with its key, only that "
    "the files are those that they name"
)


class Verdict(NamedTuple):
    """What is known of a point after the run, from this run and from all earlier ones.

    verdict: see verdict.py, None if nothing is known; when: the time of the verdict.
    """

    domain: str
    point: str
    verdict: Optional[str]
    when: Optional[str]

    @property
    def is_bad(self) -> bool:
        return self.verdict == verdict.DAMAGED


class Healed(NamedTuple):
    """A damaged file that was replaced, and is what was stored again."""

    domain: str
    path: str


@dataclass(frozen=True)
class Result:
    """What was checked, and every Damage and TooNew found, except for what was healed.

    domain: None if there are several; complete: whether the time sufficed for everything that should be checked;
    verdicts: of every point that should be checked; warnings: what is no damage, but should be known.
    """

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
        """Whether a point that should be checked cannot be restored, by all that is known."""
        return bool(self.damages) or any(each.is_bad for each in self.verdicts)


class _TimeIsUp(Exception):
    """Raised by the check when the time limit is reached."""


class _Outcome(NamedTuple):
    """The outcome of the checks of one series."""

    domain: str
    verdicts: list[Verdict]
    warnings: list[str]
    complete: bool


class _Tally:
    """Counts what was seen so far in all series, and reports it as it comes."""

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
    """Check one point with everything that it refers to, or every point (of one domain).

    What was found is recorded even if `check` ends the run.
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
            "--oldest relies on the records of all files: it takes no --point, --sample, --shard, --no-record"
        )
    if options.heal_from is not None and options.as_of is not None:
        raise errors.UsageError("--as-of only reads: bring points back with nbdpull undelete, then heal them")
    if options.heal_from is not None and not options.keep:
        raise errors.UsageError("--heal-from relies on the records: it takes no --no-record")


def _looked_and_healed(
    runs: list[_Run], healers: list[_Healer], options: Options, depth: Depth, tally: _Tally
) -> tuple[list[_Outcome], list[Damage]]:
    """Check and heal the series; return (their outcomes, the damages that remain)."""
    for healer in healers:  # recorded damages first: at the end, a time limit might never leave time for them
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
    """Check all points of a series, or the one that was asked for."""
    complete = True
    try:
        _look(run.points, run.evidence, Inspector(run.target, depth, run.tell), depth, tally)
    except _TimeIsUp:
        complete = False
    finally:  # even if the user ends the run, damage that was seen is recorded
        run.conclude()
    return run.outcome(complete)


def _by_files(runs: list[_Run], depth: Depth, tally: _Tally) -> list[_Outcome]:
    """Check the files of several series, those that were proved longest ago first."""
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
        runs[0].warn("the time was too short to prove a single file: the next run will get no further")
    return [run.outcome(complete) for run in runs]


class _Healer:
    """Heals files of one series, each once in a run.

    run: what is known by now; complete: whether the time sufficed; healed: the files. Its errors become warnings, as
    the findings of verify must be reported in any case.
    """

    def __init__(self, run: _Run, copy: Store, options: Options, check: Check) -> None:
        self.run, self.complete, self.healed = run, True, list[Healed]()
        self._copy, self._options, self._check = copy, options, check
        self._tried: set[FileEntry] = set()
        self._doubted: dict[str, None] = {}  # paths of files that were damaged, and later sound without being healed
        self._unseen: list[str] = []  # paths of healed or doubted files that were not yet checked again in all points

    def heal(self) -> list[str]:
        """Heal the recorded damages, as far as there is time; return the paths of files that are sound without that."""
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
        """Heal the damages that are recorded now, and check the healed files again; for a healed directory, also
        everything that it names. Return those of these damages that remain, and new ones."""
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
        bad = {each.path for each in damages}  # a file that was written may read wrong
        self.healed = [each for each in self.healed if each.path not in bad]
        if cured := [each for each in self._doubted if each not in bad]:
            more = f", and so are {len(cured) - 1} more files" if cured[1:] else ""
            self.run.warn(
                f"{cured[0]} of {self.run.target.domain} was damaged, and is what was stored now{more}: another run "
                "has made it again, or its medium reads wrong now and then"
            )
        return damages

    def _doubt(self, sound: list[str]) -> None:
        """Have files that were damaged, and then were not, checked again. Once: a medium may read wrong for ever."""
        new = [path for path in sound if path not in self._doubted]
        self._doubted.update(dict.fromkeys(new))
        self._unseen += new

    def _part_again(self, paths: Collection[str]) -> Part:
        """Return the part to check again besides the recorded damages."""
        run = self.run
        is_told = run.evidence.known.is_told(run.evidence.points)
        return ONLY_WINDOWS if is_told and all(map(layout.CHUNK_PATH.match, paths)) else Part()

    def _has_looked_again(self, depth: Depth, paths: Collection[str]) -> bool:
        """Check the recorded damages of the points in this run again, then those of other points with a damage in one
        of these files; return whether there was time."""
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
    """The checks of one series, from the existing records to the new ones."""

    def __init__(
        self, target: Series, options: Options, depth: Depth, tally: _Tally, warnings: Iterable[str] = ()
    ) -> None:
        """Read the records. warnings: of earlier _Runs of the same series."""
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
        """Record the finding for points that were committed meanwhile, too; return warnings.

        Called once the finding is written: a pull that commits after that sees it.
        """
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
    """Yield warnings about a copy of a series, or points from that of another domain: no pull of the domain finds
    them."""
    for name, uuid in sorted({(point.manifest.domain, point.manifest.uuid) for point in points}):
        found = series_choice.of_domain(target.store, name, uuid)
        if found.folder != target.folder:
            yield (
                f"{target.store.path(target.folder)} holds points of domain {name}, whose series is in "
                f"{found.folder}: its pulls do not find them"
            )


def _look(points: list[Point], evidence: Evidence, inspector: Inspector, depth: Depth, tally: _Tally) -> None:
    if depth.part.max_duration is not None:  # first what was checked longest ago: else no run would reach the end
        points = sorted(points, key=evidence.known.last_look)
    for point in points:
        depth.check()
        tally.points += 1
        inspector.inspect(evidence.look(point))


def _refused(target: Series, name: str, too_new: Collection[str]) -> Verdict:
    """Return the verdict on a point that cannot be read."""
    return Verdict(target.domain, name, None if name in too_new else verdict.DAMAGED, None)


def _known(target: Series, point: Point, evidence: Evidence, too_new: Collection[str]) -> Verdict:
    known = None if point.id in too_new else evidence.known.verdict(point)
    if known is None:
        return Verdict(target.domain, point.id, None, None)
    return Verdict(target.domain, point.id, known["verdict"], known["when"])
