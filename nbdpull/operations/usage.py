"""Usage: what the points of a store take, each for itself and together.

Owns: which domains are counted, and that one which cannot be read hides no other. Must not know: how it is counted
(repository/usage.py does), how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..core import errors
from ..core.errors import Check, Report
from ..repository import point_choice
from ..repository import usage as repository_usage
from ..repository.usage import Usage
from . import store_choice
from .options import UsageOptions as Options


@dataclass(frozen=True)
class OfDomain:
    """used: None where a point cannot be read; problem: why."""

    domain: str
    used: Optional[Usage]
    problem: Optional[errors.NbdpullError] = None


@dataclass(frozen=True)
class Result:
    """Each domain."""

    domains: list[OfDomain]

    @property
    def short_ids(self) -> dict[str, str]:
        """{id of each point: as much of it as no other one begins with}"""
        return point_choice.short([p.point.id for each in self.domains if each.used for p in each.used.points])


def usage(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Count the files of every domain, or of those that a pattern fits. StoreError where there is none."""
    found = []
    for each in store_choice.find_domains(options.store, options.domain):
        check()
        try:
            found.append(OfDomain(each.domain, repository_usage.of_series(each, check)))
        except (errors.Damaged, errors.StoreError) as error:
            found.append(OfDomain(each.domain, None, error))
    return Result(found)
