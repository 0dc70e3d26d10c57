"""Compare: which points two stores have, and by how much the second one is behind.

Owns: what of their points is to be known of each domain. Must not know: which of two points is the right one, how it is
shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ..core import errors
from ..core.errors import Check, Report
from ..repository import incoming, marker, matching, series
from ..repository.matching import Matched
from ..repository.series import Series
from ..storage.directory import DirectoryStore
from . import store_choice
from .options import CompareOptions as Options

BOTH, DIFFERENT, STORE, DEST = "both", "different", "dir", "dest"


class Where(NamedTuple):
    """A point. where: BOTH; DIFFERENT: of its id both have one, and not the same; STORE or DEST: only there. behind:
    whether a copy would take it."""

    point: str
    where: str
    behind: bool


@dataclass(frozen=True)
class Domain:
    """One domain. points: in the order of commits; behind_bytes: of the files that a copy would take; problem: why
    nothing can be told, or not all."""

    domain: str
    points: list[Where] = field(default_factory=list)
    behind_bytes: int = 0
    problem: Optional[errors.NbdpullError] = None

    @property
    def behind(self) -> int:
        return sum(each.behind for each in self.points)

    @property
    def differs(self) -> bool:
        """Whether anything is not as after a copy. What each store keeps for itself is no difference."""
        return any(each.behind or each.where == DIFFERENT for each in self.points)


@dataclass(frozen=True)
class Result:
    """Every domain that one of the stores has, or of those that were asked for."""

    domains: list[Domain]

    @property
    def differs(self) -> bool:
        return any(each.differs for each in self.domains)

    @property
    def errors(self) -> list[errors.NbdpullError]:
        return [each.problem for each in self.domains if each.problem]


def compare(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Compare the manifests; no data is read. StoreError."""
    opened, dest = marker.open_store(options.store), marker.open_store(options.dest)
    sources, others = (store_choice.fitting(each, options.domain) for each in (opened, dest))
    if not sources and not others:
        raise errors.StoreError(f"no domain {options.domain or 'at all'} in {opened.root} and {dest.root}")
    pairs = [(source, _counterpart(source, dest)) for source in sources]
    met = {target.folder for _, target in pairs}
    only_there = [_compared(None, target, check) for target in others if target.folder not in met]
    return Result([*(_compared(source, target, check) for source, target in pairs), *only_there])


def _counterpart(source: Series, dest: DirectoryStore) -> Series:
    return series.of_domain(dest, source.domain, source.uuid() or "")


def _compared(source: Optional[Series], target: Series, check: Check) -> Domain:
    domain = source.domain if source else target.domain
    try:
        here, lost = source.load() if source else ([], {})
        there, lost_there = target.load()
        target.require_of(there, (here or there)[-1].manifest.uuid if here or there else "")
    except errors.NbdpullError as error:
        return Domain(domain, problem=error)
    match = matching.matched(here, there, lost_there)
    problem = next(iter([*lost.values(), *lost_there.values()]), None)
    size = 0
    try:
        match.require_one_history(match.here, source.store.root if source else "", target.store.root)
        size = _behind(source, target, match, check) if source else 0
    except (errors.Damaged, errors.StoreError) as error:
        problem = problem or error
    return Domain(domain, _points(match), size, problem)


def _behind(source: Series, target: Series, match: Matched, check: Check) -> int:
    """Bytes of the files that a copy would take."""
    sizes: dict[str, int] = {}
    for point in match.newer:
        check()
        sizes.update({entry.path: entry.size for entry in incoming.lacking(source, target, point, sizes)})
    return sum(sizes.values())


def _points(match: Matched) -> list[Where]:
    where = {BOTH: match.same, DIFFERENT: match.different, STORE: match.here, DEST: match.there}
    newer = {point.id for point in match.newer}
    found = [(point, word) for word, points in where.items() for point in points]
    found.sort(key=lambda each: each[0].manifest.sequence)
    return [Where(point.id, word, point.id in newer) for point, word in found]
