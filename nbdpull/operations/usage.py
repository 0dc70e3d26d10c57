"""Usage: the space that the points of a store take, each by itself and together.

Owns: which domains are counted, and that an unreadable one hides no other. Must not know: how to count (see
repository/usage.py), how the result is shown.
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
from .options.points import UsageOptions as Options


@dataclass(frozen=True)
class OfDomain:
    """The usage of a domain. used: None if a point cannot be read; problem: why."""

    domain: str
    used: Optional[Usage]
    problem: Optional[errors.NbdpullError] = None


@dataclass(frozen=True)
class Result:
    """The usage of each domain."""

    domains: list[OfDomain]

    @property
    def short_ids(self) -> dict[str, str]:
        """{id of each point: its shortest unique beginning}"""
        return point_choice.short([p.point.id for each in self.domains if each.used for p in each.used.points])


def usage(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Count the files of every domain, or of those that match a pattern. StoreError if there is none."""
    found = []
    for each in store_choice.find_domains(options.store, options.domain):
        check()
        try:
            found.append(OfDomain(each.domain, repository_usage.of_series(each, check)))
        except (errors.Damaged, errors.StoreError) as error:
            found.append(OfDomain(each.domain, None, error))
    return Result(found)
