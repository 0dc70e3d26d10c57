"""Whether a series, and the store that it is in, are those that a pull is meant for.

A master key that somebody put in the place of the right one would seal the next point for him. What tells is that the
points do not have its mac. It is no proof that a key is right: who can write to the store can remove the points, or
give them the mac of his own. That, only an identity which says what key it is for can tell (keyring.py).

Owns: what nothing may be written beside. Must not know: how a point is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized

from ..core import errors
from . import series_choice
from .series import Refused, Series


def require_none(target: Series, points: Sized, refused: Refused) -> None:
    """Foreign where a point of a series was not made with the key of the store, or is of another domain than others;
    Damaged where the store has points, and none that can be read has that key. refused: what Series.heads gives."""
    for error in refused.values():
        if isinstance(error, errors.Foreign):
            raise errors.Foreign(f"{error}; until that is settled, nothing is written beside it")
    if target.store.seal.id is not None and not len(points):
        _require_key_of_any(target, refused.values())


def _require_key_of_any(target: Series, refused: Iterable[errors.NbdpullError]) -> None:
    """A series without points proves nothing: others do, each by one of its points."""
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
