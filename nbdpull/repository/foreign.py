"""Checks that a series and its store are those that a pull is meant for.

If somebody replaced the right master key with his own, the next point would be sealed for him. The sign of this is that
the existing points do not have the MAC of the key. Their MACs do not prove that a key is right: whoever can write to
the store can remove the points, or give them the MAC of his own key. Only an identity that states its master key can
prove that (keyring.py).

Owns: which existing points forbid writing a new one. Must not know: how a point is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized

from ..core import errors
from . import series_choice
from .points import Points
from .series import Refused, Series


def require_none(target: Series, points: Sized, refused: Refused) -> None:
    """Raise Foreign if a point of the series was not made with the key of the store, or belongs to another domain than
    the other points; raise Damaged if the store has points, but none that can be read has that key. refused: as
    Series.heads returns it."""
    for error in refused.values():
        if isinstance(error, errors.Foreign):
            raise errors.Foreign(f"{error}; until that is settled, nothing is written beside it")
    if target.store.seal.id is not None and not len(points):
        _require_key_of_any(target, refused.values())


def points_of(target: Series, uuid: str) -> Points:
    """Return the points of a series with which a pull of the domain with this UUID would begin. Foreign, Damaged: as
    require_none raises them; OtherDomain."""
    heads, refused = target.heads()
    points = Points(target, heads)
    require_none(target, points, refused)
    points.require_of(uuid)
    return points


def _require_key_of_any(target: Series, refused: Iterable[errors.NbdpullError]) -> None:
    """Require one point of another series that proves the key, as a series without points proves nothing."""
    store, flaws, is_proved = target.store, [*refused], False
    for each in series_choice.folders(store):
        try:
            is_proved |= each.folder != target.folder and each.some_point() is not None
        except errors.Foreign:
            raise
        except (errors.Damaged, errors.StoreError) as error:
            flaws.append(error)
    if flaws and not is_proved:
        raise errors.Damaged(
            f"{store.root} is sealed with master key {store.seal.id}, and has no readable point that was made with it: "
            f"its marker and keys may be somebody else's ({flaws[0]}); bring a manifest back from a copy, or move "
            "these points away if you know that the key is yours"
        )
