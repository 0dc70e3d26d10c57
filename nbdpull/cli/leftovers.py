"""What is said by a verb that removes things: what went, what is left, and the exit code of that.

Must not know: what it was, or how it is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from . import terminal
from .output import Outcome


def outcome(
    found: Sequence[terminal.Leftover], dry_run: bool, domain: Optional[str], nothing: str, code: int, after: str = ""
) -> Outcome:
    """nothing: said where nothing was found; code: where something is left; after: said where something went."""
    lines = terminal.leftovers(found) or [nothing]
    if after and any(not item.left for item in found):
        lines.append(after)
    left = any(item.left for item in found) and not dry_run
    return Outcome({"found": [vars(item) for item in found]}, lines, code if left else 0, domain=domain)
