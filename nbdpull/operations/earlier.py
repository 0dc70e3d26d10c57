"""A store as it was at a time that the user names, for verbs that only read.

Owns: what counts as a time. Must not know: how an earlier state is read (see storage/place.py), what is done with it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from ..core import errors
from ..repository import point_choice
from ..storage import place

_O = TypeVar("_O", bound=Any)  # the options of a verb, which have store and as_of


def seen(options: _O) -> _O:
    """Return the options with the store as of their `as_of`, or unchanged if that is None. UsageError."""
    if options.as_of is None:
        return options
    changed: _O = replace(options, store=place.as_of(options.store, moment(options.as_of)), as_of=None)
    return changed


def moment(text: str) -> datetime:
    """Return the last instant that a text stands for, in UTC; UsageError if it is not a time, or one after today."""
    now = datetime.now(timezone.utc)
    try:
        found = point_choice.moment(text, now)
    except ValueError as error:
        raise errors.UsageError(f"--as-of: {error}") from None
    if found is None:
        raise errors.UsageError(f"--as-of {text}: not a time; write {point_choice.FORMS}")
    if found > now + timedelta(days=1):
        raise errors.UsageError(f"--as-of {text}: nothing is known of a time in the future")
    return found.astimezone(timezone.utc)
