"""A store as it was at a time that the user names, of a verb that only reads.

Owns: what counts as a time there. Must not know: how the past is read (storage/place.py), what is done with it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, TypeVar

from ..core import errors
from ..repository import point_choice
from ..storage import place

_O = TypeVar("_O", bound=Any)  # the options of a verb, which have store and as_of


def seen(options: _O) -> _O:
    """The same options, whose store is the one as of then, where they tell a time. UsageError."""
    if options.as_of is None:
        return options
    told: _O = replace(options, store=place.as_of(options.store, moment(options.as_of)), as_of=None)
    return told


def moment(text: str) -> datetime:
    """The last instant that a text means; UsageError."""
    try:
        found = point_choice.moment(text, datetime.now(timezone.utc))
    except ValueError as error:
        raise errors.UsageError(f"--as-of: {error}") from None
    if found is None:
        raise errors.UsageError(f"--as-of {text}: not a time; write {point_choice.FORMS}")
    return found.astimezone(timezone.utc)
