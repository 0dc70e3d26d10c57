"""Something that a run left behind, and whether it was removed.

Must not know: what it is, or how it is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from ..core import errors

DRY_RUN = "dry run"


@dataclass(frozen=True)
class Leftover:
    """run: id, None if no run of nbdpull left it; what: a text; left: why it still exists, "" if it was removed."""

    run: Optional[str]
    what: str
    left: str = ""


def removed(run: Optional[str], what: str, remove: Callable[[], object], dry_run: bool) -> Leftover:
    """Call `remove` unless this is a dry run; return a Leftover with the error, if any."""
    if dry_run:
        return Leftover(run, what, DRY_RUN)
    try:
        remove()
    except errors.Failure as error:
        return Leftover(run, what, str(error))
    return Leftover(run, what)
