"""Show: one point in full.

Must not know: the shape of a description (see description.py), how it is shown.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Optional

from ..core.errors import Check, Report
from . import description, store_choice
from .description import Described
from .options.points import ShowOptions as Options


@dataclass(frozen=True)
class Result:
    """The wanted point.

    point: its description; definition: that of its domain as stored, if this was asked for instead; warnings: about
    --cache-dir.
    """

    domain: str
    point: Optional[Described] = None
    definition: Optional[str] = None
    warnings: list[str] = field(default_factory=list)


def show(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Describe a point, or return its definition, which reads nothing else of the series; Damaged."""
    warnings: list[str] = []
    with ExitStack() as looking:
        target, point = store_choice.find_point(
            options.store, options.point, options.domain, options.identities, warnings.append, looking
        )
        if options.definition:
            return Result(target.domain, definition=target.definition(point), warnings=warnings)
        return Result(target.domain, description.of_point(target, point), warnings=warnings)
