"""Show: one point, whole.

Must not know: the shape of what is told of it (description.py does), how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..core.errors import Check, Report
from . import description, store_choice
from .description import Described
from .options import ShowOptions as Options


@dataclass(frozen=True)
class Result:
    """point: it described; definition: of its domain, as it was stored, where that was asked for instead."""

    domain: str
    point: Optional[Described] = None
    definition: Optional[str] = None


def show(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Show a point, or its definition, for which nothing else of the series is read; Damaged where that cannot be."""
    target, point = store_choice.find_point(options.store, options.point, options.domain, options.identities)
    if options.definition:
        return Result(target.domain, definition=target.definition(point))
    return Result(target.domain, description.of_point(target, point))
