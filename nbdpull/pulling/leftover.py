"""A thing that a run left behind, and what became of it.

Must not know: what it is, or how it is removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

from ..core import errors

DRY_RUN = "dry run"


@dataclass(frozen=True)
class Leftover:
    """run: id, or None where it is nobody's of us; what: a text; left: why it is still there, "" if it was removed."""

    run: Optional[str]
    what: str
    left: str = ""


def removed(run: Optional[str], what: str, remove: Callable[[], object], dry_run: bool) -> Leftover:
    """Unless this is a dry run, remove it by a call that may raise."""
    if dry_run:
        return Leftover(run, what, DRY_RUN)
    try:
        remove()
    except errors.Interrupted:
        raise
    except errors.NbdpullError as error:
        return Leftover(run, what, str(error))
    return Leftover(run, what)
