"""Listing: the points of a store.

Owns: which domains are listed, and that an unreadable point hides no other. Must not know: how points are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core import errors
from ..core.errors import Check, Report
from ..repository import marker, point_choice, series_choice
from . import description, earlier
from .description import Described
from .options.points import ListOptions as Options


@dataclass(frozen=True)
class Result:
    """The points of a store.

    points: domain by domain, in the order of commits; refused: why other points cannot be read; warnings: about
    --cache-dir, and findings that cannot be read.
    """

    points: list[Described]
    refused: list[errors.NbdpullError]
    warnings: list[str]

    @property
    def short_ids(self) -> dict[str, str]:
        """{id of each point: its shortest unique beginning}"""
        return point_choice.short([point["id"] for point in self.points])


def listing(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """List the points of every domain, or of one."""
    options = earlier.seen(options)
    warnings: list[str] = []
    opened, domain = marker.open_store(options.store, warnings.append), options.domain
    points: list[Described] = []
    refused: list[errors.NbdpullError] = []
    for each in [series_choice.only_series(opened, domain)] if domain is not None else series_choice.folders(opened):
        check()
        try:
            described, why, lost = description.of_series(each)
        except errors.StoreError as error:  # its folder, or a file in it, may not be read
            described, why, lost = [], [error], []
        points += described
        refused += why
        warnings += lost
    return Result(points, refused, warnings)
