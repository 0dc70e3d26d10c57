"""Diff: the ranges of a domain's disks that differ between two of its points.

Owns: which disks are compared. Must not know: how two images are compared (see changes.py), how the result is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..core import extents
from ..core.errors import Check, Report
from ..repository import changes
from ..repository.series import Point, Series
from . import store_choice
from .options.points import DiffOptions as Options


class Range(NamedTuple):
    """A range that differs, in bytes. kind: what point B has there, "data" or "zero"."""

    disk: str
    offset: int
    length: int
    kind: str


@dataclass(frozen=True)
class Result:
    """The outcome of a comparison of points A (before) and B (after).

    ranges: ascending, disk by disk, computed while they are consumed; gone: disks that only A has; new: disks that only
    B has.
    """

    domain: str
    before: str
    after: str
    ranges: Iterator[Range]
    gone: list[str]
    new: list[str]


def diff(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Compare the directories of two points; no data is read. NoSuchPoint, NoSuchDisk, PartialPoint, Damaged."""
    target, before = store_choice.find_point(options.store, options.before, options.domain, options.identities)
    after = target.point(options.after)
    if options.disk is not None:
        both = [before.disk(options.disk).name, after.disk(options.disk).name][:1]
        return Result(target.domain, before.id, after.id, _ranges(target, before, after, both, check), [], [])
    both = [name for name in after.disks if name in before.disks]
    gone = [name for name in before.disks if name not in both]
    new = [name for name in after.disks if name not in both]
    return Result(target.domain, before.id, after.id, _ranges(target, before, after, both, check), gone, new)


def _ranges(series: Series, before: Point, after: Point, disks: list[str], check: Check) -> Iterator[Range]:
    kinds = {extents.DATA: "data", extents.ZERO: "zero"}
    for disk in disks:
        one, other = series.directory(before, disk), series.directory(after, disk)
        for found in extents.merged_stream(changes.between(one, other, check)):
            for offset, length, kind in found.tolist():
                yield Range(disk, offset, length, kinds[kind])
