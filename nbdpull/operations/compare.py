"""Compare: which points two stores have, and by how much the second one is behind.

Owns: what is compared of the points of each domain. Must not know: which of two points is the right one, how the result
is shown.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ..core import errors
from ..core.errors import Check, Report
from ..repository import marker, matching, resealed_point, series_choice, soundness
from ..repository.matching import Matched
from ..repository.series import Point, Series
from ..storage.base import Store
from . import store_choice
from .options.stores import CompareOptions as Options

BOTH, DIFFERENT, STORE, DEST = "both", "different", "dir", "dest"


class Where(NamedTuple):
    """A point, and which store has it.

    where: BOTH; DIFFERENT: both have a point of this id, but not the same one; STORE or DEST: only that store. behind:
    whether a copy would copy it.
    """

    point: str
    where: str
    behind: bool


@dataclass(frozen=True)
class Domain:
    """One domain.

    points: in the order of commits; behind_bytes: size of the files that a copy would copy; problem: why nothing, or
    not everything, is known; warnings: about points that both stores have.
    """

    domain: str
    points: list[Where] = field(default_factory=list)
    behind_bytes: int = 0
    problem: Optional[errors.NbdpullError] = None
    warnings: list[str] = field(default_factory=list)

    @property
    def behind(self) -> int:
        return sum(each.behind for each in self.points)

    @property
    def differs(self) -> bool:
        """Whether anything differs from the state after a copy.

        A point that only one store has, and that a copy would not copy, is no difference.
        """
        return any(each.behind or each.where == DIFFERENT for each in self.points)


@dataclass(frozen=True)
class Result:
    """Every domain that one of the stores has, or those of them that were asked for."""

    domains: list[Domain]

    @property
    def differs(self) -> bool:
        return any(each.differs for each in self.domains)

    @property
    def errors(self) -> list[errors.NbdpullError]:
        return [each.problem for each in self.domains if each.problem]

    @property
    def warnings(self) -> list[str]:
        return [warning for each in self.domains for warning in each.warnings]


def compare(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Compare the manifests; no data is read. StoreError if neither store has a domain that was asked for."""
    opened, dest = marker.open_store(options.store), marker.open_store(options.dest)
    found = store_choice.fitting([*series_choice.all_series(opened), *series_choice.all_series(dest)], options.domain)
    sources, others = ([each for each in found if each.store is store] for store in (opened, dest))
    if not found:
        raise errors.StoreError(f"no domain {options.domain or 'at all'} in {opened.root} and {dest.root}")
    pairs = [(source, _counterpart(source, dest)) for source in sources]
    met = {target.folder for _, target in pairs}
    only_there = [_compared(None, target, check) for target in others if target.folder not in met]
    return Result([*(_compared(source, target, check) for source, target in pairs), *only_there])


def _counterpart(source: Series, dest: Store) -> Series:
    return series_choice.of_domain(dest, source.domain, source.uuid() or "")


def _compared(source: Optional[Series], target: Series, check: Check) -> Domain:
    domain = source.domain if source else target.domain
    try:
        known = soundness.of_series(source) if source else soundness.Soundness()
        here = known.points
        known_there = soundness.of_series(target)
        there, lost_there = known_there.points, known_there.refused
        target.require_of(there, (here or there)[-1].manifest.uuid if here or there else "")
    except errors.Failure as error:
        return Domain(domain, problem=error)
    match = matching.matched(here, there, lost_there)
    behind = _Behind([*known.refused.values(), *lost_there.values()])
    try:
        match.require_one_history(match.here, source.store.root if source else "", target.store.root)
        if source:
            _look(source, target, known, match, behind, check)
    except (errors.Damaged, errors.StoreError) as error:
        behind.problems.append(error)
    warnings = soundness.damaged_copies(known_there, target, match.same, source.store) if source else []
    sizes, problem = behind.sizes.values(), next(iter(behind.problems), None)
    return Domain(domain, _points(match, behind.points), sum(sizes), problem, warnings)


@dataclass
class _Behind:
    """What the second store lacks.

    problems: why points cannot be read, or would be refused; points: ids of the points that a copy would copy; sizes:
    {path: bytes} of the files that it would copy.
    """

    problems: list[errors.NbdpullError]
    points: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)


def _look(
    source: Series, target: Series, known: soundness.Soundness, match: Matched, behind: _Behind, check: Check
) -> None:
    behind.problems += [_of(point, match.out_of_order(point, target.store.root)) for point in match.unordered]
    find_lacking = resealed_point.lacking(source, target, match, check)
    for point in match.newer:
        check()
        try:
            if point.id in known.damaged:
                raise soundness.damage(source, point)
            lacking = find_lacking(point, behind.sizes)
        except (errors.Damaged, errors.StoreError) as error:
            behind.problems.append(_of(point, error))
            continue
        behind.points.add(point.id)
        behind.sizes.update({entry.path: entry.size for entry in lacking})


def _of(point: Point, error: errors.NbdpullError) -> errors.NbdpullError:
    return type(error)(f"copy would refuse point {point.id}: {error}")


def _points(match: Matched, behind: Container[str]) -> list[Where]:
    where = {BOTH: match.same, DIFFERENT: match.different, STORE: match.here, DEST: match.there}
    found = [(point, word) for word, points in where.items() for point in points]
    found.sort(key=lambda each: each[0].manifest.sequence)
    return [Where(point.id, word, point.id in behind) for point, word in found]
