"""The checks of one series, from the records that exist to the new ones.

Owns: what is known of the points of a series before and after a run, the counts of everything that was seen, and the
warnings. Must not know: which points are checked, in which order and for how long (verify.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import NamedTuple, Optional, Union

from ..core import errors
from ..core.errors import Report
from ..format import findings, ledger
from ..format.layout import Document
from ..repository import crossing, inspection, series_choice, verdict
from ..repository.evidence import Damage, Evidence
from ..repository.inspection import Depth, Seen, TooNew
from ..repository.series import Point, Series
from .options.restores import VerifyOptions as Options


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


class TimeIsUp(Exception):
    """Raised by the check when the time limit is reached."""


class Outcome(NamedTuple):
    """The outcome of the checks of one series."""

    domain: str
    verdicts: list[Verdict]
    warnings: list[str]
    complete: bool


class Tally:
    """Counts what was seen so far in all series, and reports it as it comes."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.points = self.files = self.frames = self.raw_bytes = 0
        self.damages: list[Damage] = []
        self.too_new: list[TooNew] = []

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many files, frames, bytes of data and damages were seen."""
        return self.files, self.frames, self.raw_bytes, len(self.damages)

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


class Run:
    """The checks of one series, from the existing records to the new ones."""

    def __init__(
        self, target: Series, options: Options, depth: Depth, tally: Tally, warnings: Iterable[str] = ()
    ) -> None:
        """Read the records. warnings: of earlier Runs of the same series."""
        self._keep, self._tally = options.keep, tally
        self.evidence = Evidence(target, depth.level, depth.part)
        self.target = target = series_choice.renamed(target, self.evidence.points)
        self.points, self._refused = self.evidence.points, self.evidence.refused
        if options.point is not None:
            self.points, self._refused = [target.point(options.point)], {}
        self.report = partial(tally.take, target.domain)
        self.warnings = [*warnings]
        self.warnings += self.evidence.unreadable
        self.warnings += _strangers(target, self.points)
        for name, error in self._refused.items():
            self.report(inspection.refusal(name, error))

    @property
    def _too_new(self) -> set[str]:
        return {each.point for each in self._tally.too_new}

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def conclude(self, proved: Optional[Document] = None) -> None:
        """Record what was found, and remove what earlier records make needless. proved: a new ledger."""
        before = self.evidence.ledgers
        if proved:
            self.evidence.ledgers = [proved]
            self.warnings += ledger.record(self.target, proved, before) if self._keep else []
        if (finding := self.evidence.conclude(self._too_new)) and self._keep:
            self.warnings += findings.kept(self.target, findings.VERIFY, **finding)
            self.warnings += self._warnings_of_new_points(finding)
        if self._keep:
            self.evidence.remove_outdated()

    def _warnings_of_new_points(self, finding: Document) -> list[str]:
        """Record the finding for points that were committed meanwhile, too; return warnings.

        Called once the finding is written: a pull that commits after that sees it.
        """
        known = {*(point.id for point in self.evidence.points), *self.evidence.refused}
        try:
            return crossing.warn_of_points(self.target, known, finding)
        except errors.StoreError as error:
            return [str(error)]

    def outcome(self, complete: bool) -> Outcome:
        target, too_new = self.target, self._too_new
        verdicts = [
            *(_refused(target, name, too_new) for name in self._refused),
            *(_known(target, point, self.evidence, too_new) for point in self.points),
        ]
        return Outcome(target.domain, verdicts, list(dict.fromkeys(self.warnings)), complete)


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


def _refused(target: Series, name: str, too_new: Collection[str]) -> Verdict:
    """Return the verdict on a point that cannot be read."""
    return Verdict(target.domain, name, None if name in too_new else verdict.DAMAGED, None)


def _known(target: Series, point: Point, evidence: Evidence, too_new: Collection[str]) -> Verdict:
    known = None if point.id in too_new else evidence.known.verdict(point)
    if known is None:
        return Verdict(target.domain, point.id, None, None)
    return Verdict(target.domain, point.id, known["verdict"], known["when"])
