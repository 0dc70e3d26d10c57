"""Show: one point, whole.

Must not know: the shape of what is told of it (description.py does), how it is shown.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Optional

from ..core.errors import Check, Report
from . import description, store_choice
from .description import Described
from .options import ShowOptions as Options


@dataclass(frozen=True)
class Result:
    """point: it described; definition: of its domain, as it was stored, where that was asked for instead; warnings: of
    --cache-dir."""

    domain: str
    point: Optional[Described] = None
    definition: Optional[str] = None
    warnings: list[str] = field(default_factory=list)


def show(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Show a point, or its definition, for which nothing else of the series is read; Damaged where that cannot be."""
    warnings: list[str] = []
    with ExitStack() as looking:
        target, point = store_choice.find_point(
            options.store, options.point, options.domain, options.identities, warnings.append, looking
        )
        if options.definition:
            return Result(target.domain, definition=target.definition(point), warnings=warnings)
        return Result(target.domain, description.of_point(target, point), warnings=warnings)
