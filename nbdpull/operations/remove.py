"""Remove: remove points that are no longer needed, and free the space that only they take.

Owns: that no point is removed unless all of them can be. Must not know: what a removed point leaves (see removal.py),
how the result is shown.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Callable, Protocol

from ..core import errors
from ..core.errors import Check, Report
from ..repository import half_points, pins, removal
from ..repository.removal import Swept
from ..repository.series import Point, Series
from . import store_choice
from .options.points import RemoveOptions as Options


class Gone(Protocol):
    """How to remove points: see RemoveOptions."""

    @property
    def now(self) -> bool: ...
    @property
    def dry_run(self) -> bool: ...


@dataclass(frozen=True)
class Result:
    """What was removed, or would be with dry_run.

    points: ids; swept: the fate of their files, and of the files of points that were removed earlier.
    """

    domain: str
    points: list[str]
    swept: Swept


def remove(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Remove points of one domain. NoSuchPoint, UsageError for a pinned point, Busy: then none is removed."""
    target, points = _points(options)
    if options.now:
        removal.require_at_once(target.store)
    with half_points.writing(target, "remove points of"):
        for point in points:
            pins.require_none(target, point)
        return Result(target.domain, [point.id for point in points], gone(target, points, options, check))


def gone(
    target: Series,
    points: list[Point],
    options: Gone,
    check: Check,
    emptied: Callable[[], Collection[str]] = frozenset,
) -> Swept:
    """Remove points of a series, which the caller holds, and free what space can be freed. emptied: see
    removal.sweep."""
    if options.dry_run:
        return removal.would_sweep(target, frozenset(point.id for point in points), check)
    for point in points:
        removal.remove(target, point)
    return removal.sweep(target, 0 if options.now else None, check, emptied)


def _points(options: Options) -> tuple[Series, list[Point]]:
    found = [store_choice.find_point(options.store, wanted, options.domain) for wanted in options.points]
    target = found[0][0]
    if any(series.folder != target.folder for series, _ in found):
        raise errors.UsageError("these points are of several domains: remove those of one at a time")
    return target, list({point.id: point for _, point in found}.values())
