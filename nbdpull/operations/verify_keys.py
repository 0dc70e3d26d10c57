"""The key files of a store that is verified, before one of them is needed to open it.

Owns: what is said about them. Must not know: how they are healed (repository/key_healing.py), what is verified after
that.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple, Optional

from ..core import errors
from ..repository import key_healing
from ..storage.base import Store
from .verify_heal import Healed


class Looked(NamedTuple):
    """healed: the files that were replaced; warnings: about those that are damaged."""

    healed: list[Healed]
    warnings: list[str]


def looked_at(store: Store, copy: Optional[Store]) -> Looked:
    """Look for damaged key files, and heal them from the copy if there is one. StoreError."""
    bad = key_healing.damaged(store)
    healed: list[str] = []
    warnings = []
    if bad and copy is not None:
        try:
            healed = key_healing.heal(store, copy, bad)
        except (errors.Busy, errors.OutputError, errors.StoreError) as error:
            warnings.append(f"damaged key files were not healed: {error}")
    root = shlex.quote(store.root)
    for path in (each for each in bad if each not in healed):
        first = (
            f"bring it back from a copy of the store (nbdpull verify {root} --heal-from STORE), or"
            if copy is None
            else f"{copy.root} does not have it intact:"
        )
        warnings.append(f"{store.path(path)} is damaged: {first} make another one with nbdpull key add")
    return Looked([Healed("", path) for path in healed], warnings)
