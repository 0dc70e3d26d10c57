"""The points of one domain in two stores: which are in both, which in only one, and whether they share one history.

A point is the same in both stores if its manifests are, byte for byte, or if they were when the point was first made: a
copy under another seal has another manifest. Pure: reads no file. Must not know: which points a user wants, how a point
is copied.
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
    """The points of two stores, "here" and "there", each list in the order of commits.

    same: points in both; different: both have a point with this id, but not the same one; here, there: points in that
    store only; last: the point there with the highest sequence, None if there is none; is_remade: whether points that
    are or were in both were copied under another seal, so that their files differ.
    """

    same: list[Point]
    different: list[Point]
    here: list[Point]
    there: list[Point]
    last: Optional[Point]
    is_remade: bool = False

    @property
    def newest(self) -> int:
        """The highest sequence there, -1 if there are no points."""
        return self.last.manifest.sequence if self.last else -1

    @property
    def newer(self) -> list[Point]:
        """The points that are only here, and were made after all points there."""
        return [point for point in self.here if point.manifest.sequence > self.newest]

    @property
    def older(self) -> list[Point]:
        """The points that are only here, and were made before a point there. The other store may have had them once."""
        unordered = {point.id for point in self.unordered}
        return [p for p in self.here if p.manifest.sequence <= self.newest and p.id not in unordered]

    @property
    def unordered(self) -> list[Point]:
        """The points that are only here, and were made after the last point there by time, but not by number: the
        number of a removed point was used again. If the last point there is also here, the numbers decide, whatever the
        clocks showed."""
        if self.last is None or any(point.id == self.last.id for point in self.same):
            return []
        since = _created(self.last)
        return [p for p in self.here if p.manifest.sequence <= self.newest and _created(p) > since]

    def out_of_order(self, point: Point, there: str) -> errors.NbdpullError:
        """Return the error that says why a point of `unordered` is not copied. there: the name of the store."""
        return errors.StoreError(
            f"it was made after the newest point of {there}, but its number, {point.manifest.sequence}, is not higher "
            f"than {self.newest}: it would not be the latest there; copy it with --point, or copy into another store"
        )

    def strangers(self, points: Iterable[Point]) -> Iterator[tuple[Point, Point]]:
        """Yield (one of these points of here, a point there) for each pair of which it is unknown which came later.

        Each store counts its own numbers. If pulls went into both stores, each after the other's points had been
        copied, the points are one history, and the numbers agree with the times. If pulls went into both independently,
        they do not.
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
        """Raise StoreError unless the place of each of these points of here in the order of those there is known.
        here, there: the names of the stores."""
        for point, other in self.strangers(points):
            raise errors.StoreError(
                f"point {point.id} of {here} and point {other.id} of {there} were made independently, so it is unknown "
                "which comes first: both stores were pulled into; copy into another store"
            )


def matched(here: Sequence[Point], there: Sequence[Point], unreadable: Collection[str] = ()) -> Matched:
    """Compare the points of two stores. unreadable: ids of points there that cannot be read: they count as
    different."""
    known = {point.id: point.origin for point in there}
    ours = {point.id for point in here}
    return Matched(
        same=[point for point in here if known.get(point.id) == point.origin],
        different=[p for p in here if p.id in unreadable or known.get(p.id, p.origin) != p.origin],
        here=[point for point in here if point.id not in known and point.id not in unreadable],
        there=[point for point in there if point.id not in ours],
        last=max(there, key=lambda point: point.manifest.sequence, default=None),
        is_remade=_is_remade(here, there),
    )


def _is_remade(here: Sequence[Point], there: Sequence[Point]) -> bool:
    """See Matched. If no point is in both, files that are left of removed points may differ: if only one of the stores
    was copied under another seal, they do."""
    ours, common = {point.id: point for point in here}, False
    for point in there:
        mine = ours.get(point.id)
        if mine and mine.origin == point.origin:
            if mine.sha256 != point.sha256:
                return True
            common = True
    origins = [{point.manifest.origin is None for point in points} for points in (here, there)]
    return bool(here and there) and not common and origins[0] != origins[1]


def _created(point: Point) -> datetime:
    return datetime.fromisoformat(point.manifest.created)
