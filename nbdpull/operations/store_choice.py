"""Which domain and which point of a store the user means.

Must not know: what is done with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Optional

from ..core import errors
from ..core.choices import LATEST
from ..repository import marker, point_choice, policies, series, series_choice
from ..storage import place
from . import unlocking


def find_point(
    root: str,
    wanted: str,
    domain: Optional[str] = None,
    identities: Sequence[str] = (),
    cache: Optional[place.Warn] = None,
    looking: Optional[ExitStack] = None,
) -> tuple[series.Series, series.Point]:
    """Return (Series, Point) for an id or whatever else Series.point takes; an id is searched in all domains.

    NoSuchPoint, StoreError. identities, cache, and further errors: see unlocking.opened; looking: see
    series_choice.only_point.
    """
    opened = unlocking.opened(root, identities, cache)
    if domain is None and wanted != LATEST:
        found = series_choice.holding(opened, wanted)
        ids = list(dict.fromkeys(name for _, names in found for name in names))
        if len(ids) > 1:
            raise point_choice.ambiguous(wanted, ids)
        strange: Optional[errors.Foreign] = None
        for each, _ in found:
            try:
                return each, each.point(wanted)
            except errors.Foreign as error:  # somebody copied it there, and its own series may have it, too
                strange = error
        if strange:
            raise strange
    return series_choice.only_point(opened, domain, wanted, looking)


def find_domains(root: str, pattern: Optional[str], identities: Sequence[str] = ()) -> list[series.Series]:
    """Return the Series of all domains, of the one with this name or UUID, or of those whose names match.

    StoreError if there is none. identities, and further errors: see unlocking.opened.
    """
    opened = unlocking.opened(root, identities)
    every = series_choice.all_series(opened)
    wanted = fitting(every, pattern)
    if not wanted:
        known = ", ".join(sorted(each.domain for each in every)) or "none"
        raise errors.StoreError(f"no domain {pattern or 'at all'} in {opened.root}; it has: {known}")
    return wanted


def fitting(every: list[series.Series], pattern: Optional[str]) -> list[series.Series]:
    """Return those of some Series that `find_domains` would, perhaps none. The name of a domain is no pattern."""
    called = [each for each in every if each.domain == pattern]
    return called or [
        each for each in every if policies.fits(each.domain, pattern) or each.uuid() == str(pattern).lower()
    ]


def only_domain(root: str) -> str:
    """Return the name of the only domain of a store; StoreError if it does not contain exactly one."""
    return series_choice.only_series(marker.open_store(root)).domain
