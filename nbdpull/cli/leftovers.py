"""The output of a verb that removes things: what was removed, what is left, and the exit code.

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
    """Return the Outcome. nothing: the text if nothing was found; code: if something is left; after: if something was
    removed."""
    lines = terminal.leftovers(found) or [nothing]
    if after and any(not item.left for item in found):
        lines.append(after)
    left = any(item.left for item in found) and not dry_run
    return Outcome({"found": [vars(item) for item in found]}, lines, code if left else 0, domain=domain)
