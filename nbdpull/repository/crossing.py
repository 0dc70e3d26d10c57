"""Damage that a verification finds while a point is being made: it is recorded for that point, too.

Neither waits for the other: a verification holds no lock, and a pull reads the recorded findings when it chooses its
base. So each checks again once its own result exists: the verification checks for new points, the pull for new
findings. Whichever finishes later sees the other's result. Otherwise a point that refers to a damaged file would count
as intact, and the next pull would build on it. Owns: which damage affects such a point. Must not know: how the damage
was found.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from typing import Optional

from ..format import findings
from ..format.layout import Document
from . import verdict
from .evidence import MAX_PLACES, Damage, Needs
from .series import Point, Series


def warn_of_points(series: Series, known: Collection[str], finding: Document) -> list[str]:
    """Record what a stored finding of a verification means for points that were committed since; return a warning for
    each affected point. known: ids of the points that the verification considered. StoreError."""
    if not any(about["damages"] for about in finding["points"]):
        return []
    new = [point for point in series.load()[0] if point.id not in known]
    return [text for point in new for text in _recorded(series, point, [finding])]


def warn_of_findings(series: Series, points: Iterable[Point], known: Container[str]) -> list[str]:
    """Record what findings stored while these points were made mean for them; return a warning for each affected point.
    known: names of the findings that existed before. StoreError."""
    new = [each for each in findings.names(series) if each not in known]
    found = [each for each in findings.load(series, new) if each["kind"] == findings.VERIFY]
    return [text for point in points for text in _recorded(series, point, found)] if found else []


def _recorded(series: Series, point: Point, found: list[Document]) -> list[str]:
    about = _about(series, point, found)
    if about is None:
        return []
    kept = findings.kept(series, findings.VERIFY, level=found[0]["level"], points=[about])
    return [
        f"point {point.id} of {series.domain}, which was made while a verification ran, refers to files that the "
        "verification found damaged: it is recorded as damaged, too, and the next pull does not use them",
        *kept,
    ]


def _about(series: Series, point: Point, found: list[Document]) -> Optional[Document]:
    """Return what a finding should record of the point; None if nothing that the point refers to is damaged. If the
    findings do not list all damage, whether the rest affects the point is unknown, so the point counts as damaged
    unless it refers only to its own files."""
    places, is_complete = _places(found)
    needs, seen = Needs(series, point), dict[tuple[Optional[str], Optional[int]], Document]()
    for place in places:
        at = map(place.get, ("offset", "length", "path"))
        damage = Damage(point.id, place.get("disk"), place.get("problem") or "", *at)
        if damage.path and needs.includes(damage):
            seen.setdefault((damage.path, damage.offset), damage.place)
    if not seen and (is_complete or needs.is_alone):
        return None
    about = {**findings.entry(point), "verdict": verdict.DAMAGED, "damages": max(1, len(seen)), "complete": False}
    more = {} if is_complete and len(seen) <= MAX_PLACES else {"more": True}
    return {**about, "places": [*seen.values()][:MAX_PLACES], **more}


def _places(found: list[Document]) -> tuple[list[Document], bool]:
    """Return (places of the damage that none of these findings settles, whether these are all places)."""
    settled = {
        (about["point"], name) for each in found for about in each["points"] for name in about.get("settles", [])
    }
    left = [
        about
        for each in found
        for about in each["points"]
        if about["damages"] and (about["point"], each.get("id")) not in settled
    ]
    return [place for about in left for place in about.get("places", [])], not any(about.get("more") for about in left)
