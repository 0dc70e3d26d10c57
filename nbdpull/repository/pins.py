"""Pins: points that are kept whatever a policy says. A pin is a small file with a digest in the point's directory.

Must not know: policies, or what the reason is used for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..core import errors, members
from ..format import findings, layout
from .series import Point, Series

NAME = "pinned.json"


@dataclass(frozen=True)
class Pin:
    """when: ISO 8601; who: user@host; reason: "" if none was given."""

    when: str
    who: str
    reason: str


def pin(series: Series, point: Point, reason: str) -> None:
    """Pin a point. OutputExists if it is pinned already; NoSuchPoint if it was removed meanwhile: no pin remains."""
    document = {"format": layout.FORMAT, "requires": [], **findings.now(), "reason": reason}
    series.store.publish(_path(series, point), layout.seal(document))
    if not series.has_point(point.id):  # a removal looks for a pin after the point is gone: so one sees the other
        series.store.delete(_path(series, point))
        raise errors.NoSuchPoint(f"point {point.id} of {series.domain} was removed meanwhile")


def unpin(series: Series, point: Point) -> bool:
    """Remove the pin of a point; return whether it was pinned. OutputError if it still is."""
    is_pinned = series.store.holds(_path(series, point))
    series.store.delete(_path(series, point))
    return is_pinned


def of_point(series: Series, point: Point) -> Optional[Pin]:
    """Return the pin of a point, None if it is not pinned. A pin that cannot be read counts as a pin."""
    path = _path(series, point)
    try:
        data = series.store.find(path)
        return members.build(Pin, layout.unseal(data, series.store.path(path))) if data is not None else None
    except (errors.Failure, ValueError):
        return Pin("", "", f"{series.store.path(path)} cannot be read")


def require_none(series: Series, point: Point) -> None:
    """Raise UsageError if the point is pinned."""
    found = of_point(series, point)
    if found:
        why = f": {found.reason}" if found.reason else ""
        raise errors.UsageError(f"point {point.id} is pinned{why}; to remove it, run nbdpull unpin first")


def _path(series: Series, point: Point) -> str:
    return f"{series.folder}/{point.id}/{NAME}"
