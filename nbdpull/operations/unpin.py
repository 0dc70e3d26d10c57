"""Unpin: allow the removal of a pinned point again.

Must not know: policies, how a pin is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import Check, Report
from ..repository import pins
from . import store_choice
from .options.points import PinOptions as Options


@dataclass(frozen=True)
class Result:
    """An unpinned point. was_pinned: whether it was pinned before."""

    domain: str
    point: str
    was_pinned: bool


def unpin(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Unpin a point. NoSuchPoint, OutputError."""
    target, point = store_choice.find_point(options.store, options.point, options.domain)
    return Result(target.domain, point.id, pins.unpin(target, point))
