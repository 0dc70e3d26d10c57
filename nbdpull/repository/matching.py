"""The points of one domain in two stores: which both have, which only one, and whether the two are of one history.

A point is the same in both if its manifest is, to the byte, or was when it was first made: a copy under another seal
has another one. Pure: no file is looked at. Must not know: which points a user wants, how one is copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Optional

from ..core import errors
from .series import Point


@dataclass(frozen=True)
class Matched:
    """Each in the order of commits. same: in both; different: of this id both have one, and not the same; here, there:
    only in that one. last: of those there the one with the highest sequence, None where nothing is. is_remade: whether
    one that is in both was copied under another seal, so that its files differ."""

    same: list[Point]
    different: list[Point]
    here: list[Point]
    there: list[Point]
    last: Optional[Point]
    is_remade: bool = False

    @property
    def newest(self) -> int:
        """The highest sequence there, -1 where nothing is."""
        return self.last.manifest.sequence if self.last else -1

    @property
    def newer(self) -> list[Point]:
        """Only here, and made after all that is there."""
        return [point for point in self.here if point.manifest.sequence > self.newest]

    @property
    def older(self) -> list[Point]:
        """Only here, and made before one that is there, which may have had it once."""
        unordered = {point.id for point in self.unordered}
        return [p for p in self.here if p.manifest.sequence <= self.newest and p.id not in unordered]

    @property
    def unordered(self) -> list[Point]:
        """Only here, and made after the last one there by its time, but not by its number: that of a removed point was
        used again. Where the last one there is here, too, their numbers tell, whatever the clocks were."""
        if self.last is None or any(point.id == self.last.id for point in self.same):
            return []
        since = _created(self.last)
        return [p for p in self.here if p.manifest.sequence <= self.newest and _created(p) > since]

    def out_of_order(self, point: Point, there: str) -> errors.NbdpullError:
        """Why such a one is not copied. there: the name of the store."""
        return errors.StoreError(
            f"it was made after the newest point of {there}, but its number, {point.manifest.sequence}, is not higher "
            f"than {self.newest}: it would not be the latest there; copy it with --point, or copy into another store"
        )

    def strangers(self, points: Iterable[Point]) -> Iterator[tuple[Point, Point]]:
        """Yield (one of these points of here, one there) where nobody could tell which of the two came later.

        Numbers are counted in each store for itself. Where two stores were pulled into, each after the other's points
        had come, they are one history, and agree with the times; where side by side, they do not.
        """
        others = [*self.different, *self.there]
        known = [(other, other.manifest.sequence, _created(other)) for other in others]
        for point in points:
            number, made = point.manifest.sequence, _created(point)
            for other, its_number, its_time in known:
                agrees = point.manifest.store == other.manifest.store or (number < its_number) == (made < its_time)
                if number == its_number or not agrees:
                    yield point, other

    def require_one_history(self, points: Iterable[Point], here: str, there: str) -> None:
        """StoreError unless it is known where each of these points of here comes among those there. here, there: the
        names of the stores."""
        for point, other in self.strangers(points):
            raise errors.StoreError(
                f"point {point.id} of {here} and point {other.id} of {there} were made side by side, and nobody knows "
                "which comes first: both stores were pulled into; copy into another one"
            )


def matched(here: Sequence[Point], there: Sequence[Point], unreadable: Collection[str] = ()) -> Matched:
    """unreadable: ids of points that are there, and cannot be read: they count as different ones."""
    known, files = {point.id: point.origin for point in there}, {point.id: point.sha256 for point in there}
    ours = {point.id for point in here}
    return Matched(
        same=[point for point in here if known.get(point.id) == point.origin],
        different=[p for p in here if p.id in unreadable or known.get(p.id, p.origin) != p.origin],
        here=[point for point in here if point.id not in known and point.id not in unreadable],
        there=[point for point in there if point.id not in ours],
        last=max(there, key=lambda point: point.manifest.sequence, default=None),
        is_remade=any(files.get(p.id, p.sha256) != p.sha256 and known[p.id] == p.origin for p in here),
    )


def _created(point: Point) -> datetime:
    return datetime.fromisoformat(point.manifest.created)
