"""Init: an empty store, before the first pull.

Must not know: what makes a place a store.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import Check, Report
from ..repository import marker
from .options import InitOptions as Options


@dataclass(frozen=True)
class Result:
    """uuid: of the new store."""

    uuid: str


def init(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Make a store of a place that is new or empty. StoreError where it is neither; UsageError, OutputError."""
    return Result(marker.uuid_of(marker.create(options.store, options.group)))
