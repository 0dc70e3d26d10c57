"""Pin: protect a point from removal.

Must not know: policies, how a pin is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core import errors, members
from ..core.errors import Check, Report
from ..repository import pins
from . import store_choice
from .options.points import PinOptions as Options


@dataclass(frozen=True)
class Result:
    """A pinned point. was_pinned: whether it was pinned before."""

    domain: str
    point: str
    was_pinned: bool


def pin(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Pin a point. NoSuchPoint, OutputError; UsageError if the reason cannot be stored."""
    if flaw := members.flaw_of_text(options.reason):
        raise errors.UsageError(f"--reason {flaw}")
    target, point = store_choice.find_point(options.store, options.point, options.domain)
    was_pinned = pins.of_point(target, point) is not None
    if not was_pinned:
        pins.pin(target, point, options.reason)
    return Result(target.domain, point.id, was_pinned)
