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
    """definition: of the domain, as it was stored; None where it was not asked for."""

    domain: str
    point: Described
    definition: Optional[str]


def show(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Show a point; Damaged where its definition is asked for and cannot be read."""
    target, point = store_choice.find_point(options.store, options.point, options.domain)
    definition = target.definition(point) if options.definition else None
    return Result(target.domain, description.of_point(target, point), definition)
